"""EngineLoop: takes requests from front ends over ZeroMQ, steps the core, and sends each what its requests gained."""

import logging
import os
import threading
from typing import NamedTuple

import msgspec
import zmq

from jaxserve.engine.core import EngineCore
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
from jaxserve.errors import DuplicateRequestError, InvalidRequestError, QueueFullError
from jaxserve.request import RequestUpdate

logger = logging.getLogger(__name__)

# How long an idle engine waits for a message before it looks at its stop event again.
IDLE_POLL_MS = 100
# A front end that leaves this many messages unread is taken for dead: its requests are aborted.
MAX_UNREAD_MESSAGES = 100_000
# How long messages still on their way may take when the engine ends.
LINGER_MS = 1000


class _Owner(NamedTuple):
    """Whose request it is: a front end, and the number it gave the submission."""

    front_end: bytes
    tag: int


def listen(endpoint: str) -> "zmq.Socket[bytes]":
    """Bind the engine's socket. Front ends that connect before the loop runs wait in its queue.

    Args:
        endpoint: such as `ipc:///run/user/1000/jaxserve/engine`; its directory must be private to the user, since
            whoever can connect can send requests.
    """
    socket: zmq.Socket[bytes] = zmq.Context().socket(zmq.ROUTER)
    # Without it, messages to a front end that is gone would vanish and its requests would run on.
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.SNDHWM, MAX_UNREAD_MESSAGES)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.bind(endpoint)
    if endpoint.startswith("ipc://"):
        os.chmod(endpoint.removeprefix("ipc://"), 0o600)
    return socket


class EngineLoop:
    """Serves one core to any number of front ends. The thread that calls `run` is the only one to touch the core.

    Args:
        core: what does the work.
        socket: from `listen`; closed, with its context, when `run` returns.
        info: sent to each front end that says hello.
    """

    def __init__(self, core: EngineCore, socket: "zmq.Socket[bytes]", info: EngineInfo) -> None:
        self._core = core
        self._socket = socket
        self._info = info
        self._front_ends: set[bytes] = set()
        self._owners: dict[str, _Owner] = {}
        self._request_ids: dict[_Owner, str] = {}
        self._decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
        self._encoder = msgspec.msgpack.Encoder()

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set.

        Raises:
            Exception: whatever the core's step raised, after every front end was told that the engine failed.
        """
        try:
            while not stop.is_set():
                self._receive(0 if self._core.has_work else IDLE_POLL_MS)
                if self._core.has_work:
                    self._publish(self._core.step())
        except Exception as error:
            for front_end in tuple(self._front_ends):
                self._send(front_end, EngineFailed(f"the engine failed ({type(error).__name__})"))
            raise
        finally:
            context = self._socket.context
            self._socket.close()
            context.term()

    def _receive(self, timeout_ms: int) -> None:
        """Handle every message that is there, waiting at most `timeout_ms` for the first."""
        if not self._socket.poll(timeout_ms):
            return
        while True:
            try:
                front_end, payload = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = self._decoder.decode(payload)
            except msgspec.DecodeError as error:
                logger.error("a front end sent a message that cannot be decoded: %s", error)
                continue
            self._handle(front_end, message)

    def _handle(self, front_end: bytes, message: ToEngine) -> None:
        match message:
            case AddRequest():
                self._add(front_end, message)
            case AbortRequests(tags):
                self._abort([owner for tag in tags if (owner := _Owner(front_end, tag)) in self._request_ids])
            case GetStats(tag):
                self._send(front_end, Stats(tag, self._core.stats()))
            case Hello():
                self._front_ends.add(front_end)
                self._send(front_end, EngineReady(self._info))

    def _add(self, front_end: bytes, message: AddRequest) -> None:
        tag, request = message.tag, message.request
        try:
            self._core.add_request(request)
        except QueueFullError as error:
            self._send(front_end, QueueFull(tag, error.limit, error.retry_after))
        except DuplicateRequestError as error:
            self._send(front_end, Duplicate(tag, str(error)))
        except InvalidRequestError as error:
            self._send(front_end, Rejected(tag, error.field, error.description))
        else:
            owner = _Owner(front_end, tag)
            self._owners[request.request_id] = owner
            self._request_ids[owner] = request.request_id

    def _abort(self, owners: list[_Owner]) -> None:
        request_ids = [self._request_ids.pop(owner) for owner in owners]
        for request_id in request_ids:
            del self._owners[request_id]
        self._core.abort_requests(request_ids)

    def _publish(self, updates: list[RequestUpdate]) -> None:
        """Send each front end one message with all that its requests gained in a step."""
        by_front_end: dict[bytes, StepUpdates] = {}
        for update in updates:
            owner = self._owners.get(update.request_id)
            if owner is None:
                continue
            message = by_front_end.get(owner.front_end)
            if message is None:
                message = by_front_end[owner.front_end] = StepUpdates([], [])
            message.tags.append(owner.tag)
            message.updates.append(update)
            if update.finish_reason is not None:
                del self._owners[update.request_id]
                del self._request_ids[owner]
        for front_end, message in by_front_end.items():
            self._send(front_end, message)

    def _send(self, front_end: bytes, message: FromEngine) -> None:
        try:
            self._socket.send_multipart([front_end, self._encoder.encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self._drop(front_end)

    def _drop(self, front_end: bytes) -> None:
        """Forget a front end that is gone or reads no more, and abort its requests."""
        lost = [owner for owner in self._request_ids if owner.front_end == front_end]
        if front_end in self._front_ends:
            logger.warning("a front end is gone; aborting its %d requests", len(lost))
        self._front_ends.discard(front_end)
        self._abort(lost)
