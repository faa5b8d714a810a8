"""Cancellation, deadlines, health, drain, engine failure: what a call meets when things end early."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from jaxserve.client.errors import RpcError, from_rpc_error
from jaxserve.config import ConfigError, ServerConfig
from jaxserve.engine.client import EngineClient
from jaxserve.server.app import InferenceServer
from jaxserve.v1 import generate_pb2 as pb
from jaxserve.v1 import inference_pb2 as info_pb
from jaxserve.v1 import options_pb2
from tests.support.ascii_tokenizer import BOS, VOCAB_SIZE
from tests.support.live_server import LiveServer, live_server
from tests.support.simulated_engine import SCHEDULER_CONFIG, GatedRunner, simulated_core
from tests.support.simulated_runner import SimulatedRunner, expected_tokens
from tests.support.waiting import until

SERVICE = "jaxserve.v1.InferenceService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ENDLESS = options_pb2.StoppingOptions(ignore_eos=True)
GREEDY = options_pb2.SamplingOptions(temperature=0)


def gated() -> GatedRunner:
    config = SCHEDULER_CONFIG
    return GatedRunner(SimulatedRunner(config.num_pages, config.page_size, config.max_num_seqs, VOCAB_SIZE))


async def health(server: LiveServer, service: str = "") -> int:
    stub: Any = health_pb2_grpc.HealthStub(server.channel)
    status: int = (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status
    return status


async def failure(call: Any) -> RpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def assert_pages_free_within_two_steps(server: LiveServer, runner: GatedRunner) -> None:
    """The device is held inside a step; let it go on until the request's pages are free, and count."""
    await until(lambda: server.engine.num_requests == 0)
    # The abort is on its way through the socket, while the engine waits for the device.
    await asyncio.sleep(0.2)
    before = len(server.core.used_pages)
    assert server.core.used_pages[-1] > 0
    runner.open()
    await until(lambda: server.core.used_pages[-1] == 0)
    assert len(server.core.used_pages) - before <= 2
    stats = await server.engine.stats()
    assert stats.num_used_pages == stats.num_running == stats.num_waiting == 0


@pytest.mark.parametrize("how", ["cancel the stream", "cancel the unary call", "stream deadline", "unary deadline"])
async def test_pages_are_free_two_steps_after_the_client_left(tokenizer_dir: Path, how: str) -> None:
    runner = gated()
    async with live_server(tokenizer_dir, core=simulated_core(runner=runner)) as server:
        timeout = 0.5 if "deadline" in how else None
        if "stream" in how:
            call = server.stub.GenerateStream(
                pb.GenerateStreamRequest(text="a" * 30, stopping=ENDLESS, sampling=GREEDY), timeout=timeout
            )
        else:
            call = server.stub.Generate(
                pb.GenerateRequest(text="a" * 30, stopping=ENDLESS, sampling=GREEDY), timeout=timeout
            )
        runner.allow(4)
        await until(lambda: len(server.core.used_pages) >= 4 and runner.num_collecting >= 5)
        if timeout is None:
            call.cancel()
        else:
            await until(call.done)
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await assert_pages_free_within_two_steps(server, runner)


async def test_a_waiting_request_whose_deadline_passes_never_runs(tokenizer_dir: Path) -> None:
    runner = gated()
    async with live_server(tokenizer_dir, core=simulated_core(runner=runner)) as server:
        places = SCHEDULER_CONFIG.max_num_seqs
        running = [
            server.stub.GenerateStream(pb.GenerateStreamRequest(text=f"{i}", stopping=ENDLESS)) for i in range(places)
        ]
        runner.allow(4)
        await until(lambda: server.engine.num_requests == places)
        error = await failure(server.stub.Generate(pb.GenerateRequest(text="late"), timeout=0.2))
        assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        for call in running:
            call.cancel()
        await until(lambda: server.engine.num_requests == 0)
        runner.open()
        stats = await server.engine.stats()
        assert stats.num_running == stats.num_waiting == stats.num_used_pages == 0


async def test_health_follows_the_engine_from_loading_to_failure(tokenizer_dir: Path) -> None:
    core = simulated_core(fail_at_step=3)
    async with live_server(tokenizer_dir, core=core, open_now=False) as server:
        watch_stub: Any = health_pb2_grpc.HealthStub(server.channel)
        watch = watch_stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watch.read()).status == NOT_SERVING
        assert await health(server) == await health(server, SERVICE) == NOT_SERVING
        error = await failure(server.stub.Generate(pb.GenerateRequest(text="a")))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STARTING")
        assert error.retry_after and error.retry_safe
        info = await server.stub.GetServerInfo(info_pb.GetServerInfoRequest())
        assert info.state == info_pb.SERVER_STATE_STARTING and not info.HasField("load")
        await server.server.open()
        assert (await watch.read()).status == SERVING
        assert await health(server) == await health(server, SERVICE) == SERVING
        error = await failure(server.stub.Generate(pb.GenerateRequest(text="a", stopping=ENDLESS)))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_FAILED")
        assert (await watch.read()).status == NOT_SERVING
        assert await health(server) == NOT_SERVING
        info = await server.stub.GetServerInfo(info_pb.GetServerInfoRequest())
        assert info.state == info_pb.SERVER_STATE_FAILED
        watch.cancel()


async def test_health_of_an_unknown_service_is_not_found_and_service_unknown(tokenizer_dir: Path) -> None:
    async with live_server(tokenizer_dir) as server:
        stub: Any = health_pb2_grpc.HealthStub(server.channel)
        request = health_pb2.HealthCheckRequest(service="jaxserve.v1.Nothing")
        assert (await failure(stub.Check(request))).code is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(request)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()


async def test_an_engine_that_fails_ends_streams_and_says_whether_a_retry_is_safe(tokenizer_dir: Path) -> None:
    runner = GatedRunner(SimulatedRunner(65, 4, 4, VOCAB_SIZE, fail_at_step=6))
    async with live_server(tokenizer_dir, core=simulated_core(runner=runner)) as server:
        begun = server.stub.GenerateStream(pb.GenerateStreamRequest(text="a", stopping=ENDLESS))
        runner.allow(3)
        assert (await begun.read()).HasField("prompt_info")
        queued = server.stub.GenerateStream(pb.GenerateStreamRequest(text="b" * 100, stopping=ENDLESS))
        await until(lambda: server.engine.num_requests == 2)
        runner.open()
        errors = [await failure(_read_all(call)) for call in (begun, queued)]
    assert [error.code for error in errors] == [grpc.StatusCode.UNAVAILABLE] * 2
    assert [error.reason for error in errors] == ["ENGINE_FAILED"] * 2
    assert [error.retry_safe for error in errors] == [False, True]


async def _read_all(call: Any) -> int:
    count = 0
    while await call.read() is not grpc.aio.EOF:
        count += 1
    return count


async def test_a_drain_refuses_new_calls_and_lets_those_in_flight_finish(tokenizer_dir: Path) -> None:
    core = simulated_core(step_delay=0.02)
    async with live_server(tokenizer_dir, core=core) as server:
        stopping = options_pb2.StoppingOptions(max_tokens=40, ignore_eos=True)
        call = server.stub.Generate(pb.GenerateRequest(text="a", stopping=stopping, sampling=GREEDY))
        await until(lambda: server.engine.num_requests == 1)
        drain = asyncio.create_task(server.server.drain(30))
        await until(lambda: server.server.lifecycle.state == info_pb.SERVER_STATE_DRAINING)
        assert await health(server) == NOT_SERVING
        error = await failure(server.stub.Generate(pb.GenerateRequest(text="b")))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING")
        assert error.retry_after and error.retry_safe
        assert (await call).completions[0].token_ids == expected_tokens([BOS, 97], 40, VOCAB_SIZE)
        await drain
        assert server.engine.num_requests == 0


async def test_what_outlasts_the_drain_ends_with_a_status(tokenizer_dir: Path) -> None:
    runner = gated()
    async with live_server(tokenizer_dir, core=simulated_core(runner=runner)) as server:
        begun = server.stub.GenerateStream(pb.GenerateStreamRequest(text="a", stopping=ENDLESS))
        runner.allow(2)
        await begun.read()
        await server.server.drain(0.1)
        stopping = asyncio.create_task(server.server.stop())
        error = await failure(_read_all(begun))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPED")
        assert error.retry_safe is False
        await stopping
        runner.open()


async def test_the_request_id_is_in_initial_and_trailing_metadata(tokenizer_dir: Path) -> None:
    async with live_server(tokenizer_dir) as server:
        request = pb.GenerateStreamRequest(text="a", request_id="mine", stopping=ENDLESS)
        call = server.stub.GenerateStream(request)
        assert dict(await call.initial_metadata())["x-request-id"] == "mine"
        call.cancel()
        unary = server.stub.Generate(pb.GenerateRequest(text="a", stopping=options_pb2.StoppingOptions(max_tokens=1)))
        drawn = (await unary).prompt_info.request_id
        assert dict(await unary.initial_metadata())["x-request-id"] == drawn and len(drawn) >= 16
        error = await failure(server.stub.Generate(pb.GenerateRequest(text="a", request_id="bad", model="b")))
        assert error.request_id == "bad"


@pytest.mark.parametrize("enabled", [True, False])
async def test_reflection_lists_the_services_unless_turned_off(tokenizer_dir: Path, enabled: bool) -> None:
    async with live_server(tokenizer_dir, reflection=enabled) as server:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(server.channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        if not enabled:
            assert (await failure(_read_all(call))).code is grpc.StatusCode.UNIMPLEMENTED
            return
        names = {service.name for service in (await call.read()).list_services_response.service}
        assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_server_and_model_info_tell_what_is_served(tokenizer_dir: Path) -> None:
    async with live_server(tokenizer_dir, max_message_bytes=8192) as server:
        model = await server.stub.GetModelInfo(info_pb.GetModelInfoRequest(model="arithmetic"))
        assert (model.name, model.vocab_size, model.max_model_len) == ("arithmetic", VOCAB_SIZE, 128)
        assert model.has_tokenizer and model.has_chat_template and list(model.eos_token_ids) == [128]
        info = await server.stub.GetServerInfo(info_pb.GetServerInfoRequest())
    assert info.state == info_pb.SERVER_STATE_READY
    assert (info.limits.max_message_bytes, info.limits.max_num_seqs) == (8192, 4)
    assert info.limits.max_num_queued_requests == 16
    assert (info.load.num_pages, info.load.num_free_pages, info.load.page_size) == (64, 64, 4)


async def test_a_long_silent_call_survives_frequent_pings(tokenizer_dir: Path) -> None:
    runner = gated()
    async with live_server(tokenizer_dir, core=simulated_core(runner=runner)) as server:
        options = [("grpc.keepalive_time_ms", 200), ("grpc.http2.max_pings_without_data", 0)]
        async with grpc.aio.insecure_channel(server.target, options=options) as channel:
            call = channel.unary_unary(
                f"/{SERVICE}/Generate",
                request_serializer=pb.GenerateRequest.SerializeToString,
                response_deserializer=pb.GenerateResponse.FromString,
            )(pb.GenerateRequest(text="a", stopping=options_pb2.StoppingOptions(max_tokens=1)))
            await asyncio.sleep(5.5)
            assert not call.done()
            runner.open()
            assert (await call).usage.num_completion_tokens == 1


async def test_a_second_server_on_the_port_is_refused(tokenizer_dir: Path) -> None:
    async with live_server(tokenizer_dir) as server:
        port = int(server.target.rsplit(":", 1)[1])
        engine = EngineClient("ipc:///nowhere")
        second = InferenceServer(engine, ServerConfig(port=port))
        with pytest.raises(ConfigError, match=str(port)):
            await second.start()
        await engine.close()
