"""`jaxserve serve`: the engine, the first front end and the others, until told to stop or until one of them fails."""

import asyncio
import contextlib
import dataclasses
import logging
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import uvloop

from jaxserve.config import EngineConfig, ServerConfig
from jaxserve.engine.client import EngineClient, EngineState
from jaxserve.engine.launch import ENGINE_COMMAND, EngineProcess
from jaxserve.errors import ConfigError, EngineDeadError, JaxserveError
from jaxserve.server.app import STATUS_GRACE_S, InferenceServer, settle_memory
from jaxserve.server.front_end_process import FrontEndProcesses

logger = logging.getLogger(__name__)

# All front ends learn of the engine's end within this time of each other.
ENGINE_NOTICE_S = 1.0


async def serve(
    engine_config: EngineConfig,
    server_config: ServerConfig,
    on_ready: Callable[[str, int], None] | None = None,
    *,
    engine_command: Sequence[str] = ENGINE_COMMAND,
) -> int:
    """Serve until SIGTERM or SIGINT (drain, then stop; a second signal stops at once) or until a process fails.

    This process is the first front end. The others listen on the same port in processes of their own
    (docs/decisions/0008-front-ends.md).

    Args:
        engine_config: what to serve.
        server_config: where and how.
        on_ready: called with host and port once every front end serves.
        engine_command: starts the engine's process; see EngineProcess.

    Returns:
        The exit code: 0 after a signal, 1 if the engine, a front end or the tokenizer failed. The cause is on standard
        error.

    Raises:
        ConfigError: the address cannot be bound.
    """
    if server_config.num_front_ends > 1 and server_config.port != 0:
        check_port_is_free(server_config.host, server_config.port)
    process = EngineProcess(engine_config, engine_command)
    engine = EngineClient(process.endpoint)
    server = InferenceServer(engine, server_config)
    port = await server.start()
    bound = dataclasses.replace(server_config, port=port)
    run = _Run(server, engine, process, FrontEndProcesses(bound, process.endpoint))
    async with process:
        engine.connect()
        try:
            return await run.until_stopped(on_ready, bound)
        finally:
            await asyncio.gather(server.stop(), run.others.stop())
            await engine.close()


def check_port_is_free(host: str, port: int) -> None:
    """Refuse a port that another server has: sockets that share ports would let two servers share this one.

    Raises:
        ConfigError: something listens there.
    """
    with contextlib.suppress(socket.gaierror):  # gRPC has its own words for a host that does not exist
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(address)
                except OSError as error:
                    raise ConfigError(f"cannot listen on {host}:{port}; is the port in use? ({error})") from error


class _Signals:
    """Counts SIGTERM and SIGINT: the first asks for a drain, the second for an end."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


class _Run:
    """One life of a server: what its processes tell, and what follows from it."""

    def __init__(
        self, server: InferenceServer, engine: EngineClient, process: EngineProcess, others: FrontEndProcesses
    ) -> None:
        self._server = server
        self._engine = engine
        self._process = process
        self.others = others
        self._signals = _Signals()

    async def until_stopped(self, on_ready: Callable[[str, int], None] | None, config: ServerConfig) -> int:
        """Start the other front ends, serve, drain; the exit code."""
        self.others.start()
        async with contextlib.AsyncExitStack() as stack:

            def task[T](work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
                started = asyncio.create_task(work)
                stack.push_async_callback(_end, started)
                return started

            dead, lost = task(self._engine_death()), task(self.others.first_end())
            stop, opened = task(self._signals.first.wait()), task(self._open())
            try:
                await asyncio.wait({opened, stop, lost}, return_when=asyncio.FIRST_COMPLETED)
                if opened.done() and not lost.done():
                    opened.result()
                    settle_memory()
                    if on_ready is not None:
                        on_ready(config.host, config.port)
                    await asyncio.wait({dead, stop, lost}, return_when=asyncio.FIRST_COMPLETED)
            except EngineDeadError:
                return 1
            except JaxserveError as error:
                print(f"jaxserve: error: {error}", file=sys.stderr, flush=True)
                return 1
            if lost.done() and not dead.done():
                await asyncio.wait({dead}, timeout=ENGINE_NOTICE_S)
            if self._engine.state is EngineState.DEAD:
                logger.critical("the engine has failed; the server exits")
                await self.others.all_end(ENGINE_NOTICE_S + STATUS_GRACE_S)
                return 1
            if lost.done():
                logger.critical("%s; the server drains and exits", lost.result())
            again, drained = task(self._signals.second.wait()), task(self._drain(config.drain_timeout))
            await asyncio.wait({again, drained, dead}, return_when=asyncio.FIRST_COMPLETED)
            return 1 if dead.done() or lost.done() else 0

    async def _open(self) -> None:
        await asyncio.gather(self._server.open(), self.others.ready())

    async def _drain(self, timeout: float) -> None:
        await asyncio.gather(self._server.drain(timeout), self.others.drain())

    async def _engine_death(self) -> None:
        code = await self._process.wait()
        self._engine.mark_dead(f"the engine's process ended with exit code {code}")


async def _end(task: asyncio.Task[object]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def announce(host: str, port: int) -> None:
    """Print the line by which a program that started the server learns its port."""
    print(f"jaxserve ready on {host}:{port}", flush=True)


def run(
    engine_config: EngineConfig,
    server_config: ServerConfig,
    on_ready: Callable[[str, int], None] | None = announce,
    *,
    engine_command: Sequence[str] = ENGINE_COMMAND,
) -> int:
    """`serve` in an event loop of its own (uvloop); returns the exit code."""
    return uvloop.run(serve(engine_config, server_config, on_ready, engine_command=engine_command))
