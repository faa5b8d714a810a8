"""EngineClient: a front end's side of the connection to the engine, for asyncio."""

import asyncio
import itertools
import logging
from collections.abc import Callable
from enum import StrEnum

import msgspec
import zmq
import zmq.asyncio

from jaxserve.engine.messages import (
    AbortRequests,
    AddRequest,
    Duplicate,
    EngineFailed,
    EngineInfo,
    EngineReady,
    FromEngine,
    GetStats,
    Hello,
    QueueFull,
    Rejected,
    Stats,
    StepUpdates,
    ToEngine,
)
from jaxserve.engine.request_stream import RequestStream
from jaxserve.errors import DuplicateRequestError, EngineDeadError, InvalidRequestError, QueueFullError
from jaxserve.request import FinishReason, Request, RequestUpdate
from jaxserve.scheduler.scheduler import SchedulerStats

logger = logging.getLogger(__name__)


class EngineState(StrEnum):
    """What a front end knows of its engine."""

    STARTING = "starting"  # loading or compiling
    READY = "ready"
    DEAD = "dead"  # failed or gone; it never comes back under the same client


class EngineClient:
    """Submits requests to an engine and hands out what it says of them. Belongs to one event loop.

    Args:
        endpoint: what the engine binds; it may do so later.

    Attributes:
        state: what is known of the engine.
        info: what it serves; None until it is ready.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.state = EngineState.STARTING
        self.info: EngineInfo | None = None
        self._death = EngineDeadError("the engine has failed; the server must be restarted")
        self._listeners: list[Callable[[EngineState], None]] = []
        # The process's own context, which is never ended: ending one waits for every socket to be closed, and would
        # hang where a client was dropped without `close`.
        self._socket: zmq.asyncio.Socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        self._tags = itertools.count()
        self._streams: dict[int, RequestStream] = {}
        self._request_ids: set[str] = set()
        self._stats_waiters: dict[int, asyncio.Future[SchedulerStats]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)

    @property
    def num_requests(self) -> int:
        """Submissions in flight."""
        return len(self._streams)

    def connect(self) -> None:
        """Begin to listen to the engine; `state` turns READY once it has loaded."""
        self._socket.setsockopt(zmq.LINGER, 200)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._monitor: zmq.asyncio.Socket = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(self.endpoint)
        self._send(Hello())
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._watch())]

    def on_state_change(self, listener: Callable[[EngineState], None]) -> None:
        """Have `listener` called, in the event loop, with each new state."""
        self._listeners.append(listener)

    async def wait_until_ready(self) -> EngineInfo:
        """Wait for the engine to load.

        Raises:
            EngineDeadError: it failed instead.
        """
        changed = asyncio.Event()
        self.on_state_change(lambda _: changed.set())
        while self.info is None or self.state is not EngineState.READY:
            if self.state is EngineState.DEAD:
                raise self._death
            await changed.wait()
            changed.clear()
        return self.info

    def submit(self, request: Request) -> RequestStream:
        """Send a validated request to the engine; its updates come from the returned stream.

        Raises:
            DuplicateRequestError: a request with this id is in flight here.
            EngineDeadError: the engine has failed.
        """
        if self.state is EngineState.DEAD:
            raise self._death
        if request.request_id in self._request_ids:
            raise DuplicateRequestError(f"a request with id {request.request_id!r} is still in flight")
        tag = next(self._tags)
        stream = RequestStream(request.request_id, lambda: self._abort(tag))
        self._streams[tag] = stream
        self._request_ids.add(request.request_id)
        self._send(AddRequest(tag, request))
        return stream

    async def stats(self) -> SchedulerStats:
        """Ask the engine for its counts.

        Raises:
            EngineDeadError: the engine has failed.
        """
        if self.state is EngineState.DEAD:
            raise self._death
        tag = next(self._tags)
        waiter: asyncio.Future[SchedulerStats] = asyncio.get_running_loop().create_future()
        self._stats_waiters[tag] = waiter
        self._send(GetStats(tag))
        try:
            return await waiter
        finally:
            self._stats_waiters.pop(tag, None)

    def mark_dead(self, reason: str) -> None:
        """Take the engine for dead: every stream ends with EngineDeadError. Later calls change nothing."""
        if self.state is EngineState.DEAD:
            return
        self._death = EngineDeadError(reason)
        self._set_state(EngineState.DEAD)
        self.fail_all(self._death)
        for waiter in self._stats_waiters.values():
            if not waiter.done():
                waiter.set_exception(self._death)

    def fail_all(self, error: Exception) -> None:
        """End every stream in flight with an error, and abort its request."""
        tags = list(self._streams)
        for tag in tags:
            self._forget(tag).fail(error)
        if tags and self.state is not EngineState.DEAD:
            self._send(AbortRequests(tags))

    async def close(self) -> None:
        """Abort what is in flight and leave."""
        self.fail_all(EngineDeadError("the connection to the engine was closed"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tasks:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
        self._socket.close()

    def _set_state(self, state: EngineState) -> None:
        self.state = state
        for listener in tuple(self._listeners):
            listener(state)

    def _abort(self, tag: int) -> None:
        if tag in self._streams:
            self._forget(tag)
            self._send(AbortRequests([tag]))

    def _forget(self, tag: int) -> RequestStream:
        stream = self._streams.pop(tag)
        self._request_ids.discard(stream.request_id)
        return stream

    def _send(self, message: ToEngine) -> None:
        # The send queue has no limit, so this never waits; awaiting it would only make aborts interruptible.
        self._socket.send(self._encoder.encode(message))

    async def _read(self) -> None:
        try:
            while True:
                self._handle(self._decoder.decode(await self._socket.recv()))
        except (zmq.ZMQError, msgspec.DecodeError) as error:
            logger.exception("the connection to the engine broke")
            self.mark_dead(f"the connection to the engine broke ({type(error).__name__})")

    async def _watch(self) -> None:
        await self._monitor.recv_multipart()
        if self.state is not EngineState.STARTING:
            # What the engine said before it ended is still to be read.
            await asyncio.sleep(0.1)
        self.mark_dead("the engine's process ended")

    def _handle(self, message: FromEngine) -> None:
        match message:
            case StepUpdates(tags, updates):
                for tag, update in zip(tags, updates, strict=True):
                    self._update(tag, update)
            case QueueFull(tag, limit, retry_after):
                self._refuse(tag, QueueFullError(limit, retry_after))
            case Duplicate(tag, text):
                self._refuse(tag, DuplicateRequestError(text))
            case Rejected(tag, field, description):
                self._refuse(tag, InvalidRequestError(field, description))
            case Stats(tag, stats):
                waiter = self._stats_waiters.get(tag)
                if waiter is not None and not waiter.done():
                    waiter.set_result(stats)
            case EngineReady(info):
                self.info = info
                self._set_state(EngineState.READY)
            case EngineFailed(text):
                self.mark_dead(text)

    def _update(self, tag: int, update: RequestUpdate) -> None:
        stream = self._streams.get(tag)
        if stream is None:
            return
        if update.finish_reason is not None:
            self._forget(tag)
        if update.finish_reason is FinishReason.ERROR:
            stream.fail(EngineDeadError("the engine failed while it ran this request"))
        else:
            stream.push(update)

    def _refuse(self, tag: int, error: Exception) -> None:
        if tag in self._streams:
            self._forget(tag).fail(error)
