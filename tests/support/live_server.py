"""A real gRPC server on a free port, in front of a simulated engine, in the event loop of the test."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from jaxserve.config import SchedulerConfig, ServerConfig
from jaxserve.engine.client import EngineClient
from jaxserve.server.app import InferenceServer
from jaxserve.v1 import inference_pb2_grpc
from tests.support.simulated_engine import SCHEDULER_CONFIG, ObservedCore, engine_info, engine_thread, simulated_core


@dataclass
class LiveServer:
    """What a test may look at.

    Attributes:
        target: for a client.
        stub: of a channel to it.
        channel: likewise.
        core: the engine's; only to be read, and only while it is idle.
    """

    target: str
    stub: Any
    channel: grpc.aio.Channel
    core: ObservedCore
    engine: EngineClient
    server: InferenceServer


@contextlib.asynccontextmanager
async def live_server(
    tokenizer_dir: Path | None = None,
    *,
    core: ObservedCore | None = None,
    scheduler: SchedulerConfig = SCHEDULER_CONFIG,
    chat_template: str | None = None,
    open_now: bool = True,
    **server_settings: Any,
) -> AsyncIterator[LiveServer]:
    """Start server and engine, wait until requests are served (unless told not to), and stop both at the end."""
    core = core or simulated_core(scheduler)
    config = ServerConfig(port=0, **server_settings)
    with engine_thread(core, engine_info(scheduler, tokenizer_dir, chat_template)) as endpoint:
        engine = EngineClient(endpoint)
        server = InferenceServer(engine, config)
        port = await server.start()
        engine.connect()
        if open_now:
            await server.open()
        target = f"127.0.0.1:{port}"
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            try:
                yield LiveServer(target, stub, channel, core, engine, server)
            finally:
                await server.stop()
                await engine.close()
