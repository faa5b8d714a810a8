"""The gRPC server: bind, load, serve, drain; and `serve`, which runs it with its engine until told to stop."""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from jaxserve.config import EngineConfig, ServerConfig
from jaxserve.engine.client import EngineClient, EngineState
from jaxserve.engine.launch import ENGINE_COMMAND, EngineProcess
from jaxserve.errors import ConfigError, EngineDeadError, JaxserveError
from jaxserve.server.guard import CallGuard
from jaxserve.server.health import INFERENCE_SERVICE, HealthServicer
from jaxserve.server.lifecycle import Lifecycle
from jaxserve.server.servicer import InferenceServicer, ServedModel
from jaxserve.server.status import UnavailableError
from jaxserve.tokenizer import Tokenizer
from jaxserve.v1 import inference_pb2 as pb
from jaxserve.v1 import inference_pb2_grpc

logger = logging.getLogger(__name__)

# gRPC itself cuts off messages above its cap with a bare RESOURCE_EXHAUSTED. The headroom lets those a little above
# max_message_bytes through to the guard, which names the field.
TRANSPORT_HEADROOM = 2
KEEPALIVE_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 20_000
# Calls already given a status need this long at most to send it.
STATUS_GRACE_S = 2.0


def channel_options(config: ServerConfig) -> list[tuple[str, int]]:
    """gRPC's settings. Clients may ping as they like: an answer can take long to begin, and a strike would cut it."""
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes * TRANSPORT_HEADROOM),
        ("grpc.max_send_message_length", config.max_message_bytes * TRANSPORT_HEADROOM),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.max_ping_strikes", 0),
        # Without it a second server on the same port would take half of the first one's connections.
        ("grpc.so_reuseport", 0),
    ]


class InferenceServer:
    """One gRPC front end. Belongs to one event loop.

    Args:
        engine: connected or not; only `open` needs its answer.
        config: address, limits and the like.
    """

    def __init__(self, engine: EngineClient, config: ServerConfig) -> None:
        self._engine = engine
        self._config = config
        self.lifecycle = Lifecycle()
        self._guard = CallGuard(self.lifecycle, config.max_message_bytes)
        self._servicer = InferenceServicer(engine, self.lifecycle, config)
        self._grpc = grpc.aio.server(interceptors=[self._guard], options=channel_options(config))
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self._servicer, self._grpc)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(self.lifecycle), self._grpc)
        if config.reflection:
            health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
            reflection.enable_server_reflection((INFERENCE_SERVICE, health, reflection.SERVICE_NAME), self._grpc)
        engine.on_state_change(self._on_engine_state)

    async def start(self) -> int:
        """Listen, answering NOT_SERVING for now.

        Returns:
            The port.

        Raises:
            ConfigError: the address cannot be bound.
        """
        address = f"{self._config.host}:{self._config.port}"
        try:
            port = self._grpc.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {address}; is the port in use? ({error})") from error
        await self._grpc.start()
        return port

    async def open(self) -> None:
        """Wait for the engine, load the tokenizer, and serve.

        Raises:
            EngineDeadError: the engine failed to load.
            CheckpointError: the tokenizer cannot be loaded.
        """
        info = await self._engine.wait_until_ready()
        tokenizer = None
        if info.tokenizer_dir is not None:
            tokenizer = await asyncio.to_thread(Tokenizer.load, Path(info.tokenizer_dir))
        self._servicer.served = ServedModel(info, tokenizer)
        self.lifecycle.advance(pb.SERVER_STATE_READY)

    async def drain(self, timeout: float) -> None:
        """Refuse new calls, let those in flight finish for `timeout` seconds, then end the rest with UNAVAILABLE."""
        self.lifecycle.advance(pb.SERVER_STATE_DRAINING)
        try:
            await asyncio.wait_for(self._guard.idle.wait(), timeout)
        except TimeoutError:
            logger.warning("ending %d requests that did not finish in %.0f s", self._engine.num_requests, timeout)

    async def stop(self) -> None:
        """End what is still in flight with UNAVAILABLE, and stop listening."""
        self.lifecycle.advance(pb.SERVER_STATE_DRAINING)
        self._engine.fail_all(UnavailableError("SERVER_STOPPED", "the server stopped", retry_after=1.0))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._guard.idle.wait(), STATUS_GRACE_S)
        await self._grpc.stop(STATUS_GRACE_S)

    def _on_engine_state(self, state: EngineState) -> None:
        if state is EngineState.DEAD:
            self.lifecycle.advance(pb.SERVER_STATE_FAILED, "the engine has failed")


async def serve(
    engine_config: EngineConfig,
    server_config: ServerConfig,
    on_ready: Callable[[str, int], None] | None = None,
    *,
    engine_command: Sequence[str] = ENGINE_COMMAND,
) -> int:
    """Serve until SIGTERM or SIGINT (drain, then stop; a second signal stops at once) or until the engine fails.

    Args:
        engine_config: what to serve.
        server_config: where and how.
        on_ready: called with host and port once requests are served.
        engine_command: starts the engine's process; see EngineProcess.

    Returns:
        The exit code: 0 after a signal, 1 if the engine or the tokenizer failed. The cause is on standard error.

    Raises:
        ConfigError: the address cannot be bound.
    """
    process = EngineProcess(engine_config, engine_command)
    engine = EngineClient(process.endpoint)
    server = InferenceServer(engine, server_config)
    port = await server.start()
    signals = _Signals()
    async with process:
        engine.connect()
        try:
            return await _run(server, engine, process, signals, server_config, on_ready, port)
        finally:
            await server.stop()
            await engine.close()


class _Signals:
    """Counts SIGTERM and SIGINT: the first asks for a drain, the second for an end."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


async def _run(
    server: InferenceServer,
    engine: EngineClient,
    process: EngineProcess,
    signals: _Signals,
    config: ServerConfig,
    on_ready: Callable[[str, int], None] | None,
    port: int,
) -> int:
    async def die() -> None:
        code = await process.wait()
        engine.mark_dead(f"the engine's process ended with exit code {code}")

    dead = asyncio.create_task(die())
    stop = asyncio.create_task(signals.first.wait())
    opened = asyncio.create_task(server.open())
    tasks: set[asyncio.Task[object]] = {dead, stop, opened}
    try:
        await asyncio.wait({opened, stop}, return_when=asyncio.FIRST_COMPLETED)
        if opened.done():
            opened.result()
            if on_ready is not None:
                on_ready(config.host, port)
            await asyncio.wait({dead, stop}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.done():
            logger.critical("the engine has failed; the server exits")
            return 1
        again = asyncio.create_task(signals.second.wait())
        drained = asyncio.create_task(server.drain(config.drain_timeout))
        tasks |= {again, drained}
        await asyncio.wait({again, drained, dead}, return_when=asyncio.FIRST_COMPLETED)
        return 1 if dead.done() else 0
    except EngineDeadError:
        return 1
    except JaxserveError as error:
        print(f"jaxserve: error: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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
