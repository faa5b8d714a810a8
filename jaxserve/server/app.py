"""InferenceServer, one gRPC front end: bind, load, serve, drain."""

import asyncio
import contextlib
import gc
import logging
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from jaxserve.config import ServerConfig
from jaxserve.engine.client import EngineClient, EngineState
from jaxserve.errors import ConfigError
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
# New objects after which Python's garbage collector looks for cycles; its own 700 would have it do so at every step.
GC_THRESHOLD = 50_000


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
        # Only where several front ends share the port: otherwise a second server on it would take half of the
        # connections.
        ("grpc.so_reuseport", int(config.num_front_ends > 1)),
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
            tokenizer = await asyncio.to_thread(Tokenizer.load, Path(info.tokenizer_dir), info.chat_template)
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


def settle_memory() -> None:
    """For a process that has loaded all it needs: keep the garbage collector off that, and off most of the steps."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
