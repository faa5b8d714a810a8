"""Several front ends on one port: each serves, all drain, and none is lost in silence."""

import os
import signal
import socket
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from jaxserve.client import AlreadyExistsError, Client, Health, UnavailableError
from jaxserve.config import ServerConfig
from jaxserve.engine.client import EngineClient
from jaxserve.errors import ConfigError
from jaxserve.server.app import InferenceServer
from jaxserve.server.serve import check_port_is_free
from jaxserve.v1 import inference_pb2 as pb
from tests.support.ascii_tokenizer import BOS, VOCAB_SIZE
from tests.support.server_process import (
    ONCE,
    client_of_each,
    engine_pid,
    front_end_pids,
    is_running,
    server_process,
    until,
)
from tests.support.simulated_runner import expected_tokens


def test_each_front_end_serves_and_the_server_is_ready_once(tokenizer_dir: Path) -> None:
    with server_process(tokenizer_dir, "none", 3) as (process, target):
        assert len(front_end_pids(process)) == 3
        with client_of_each(process, target) as clients:
            for client in clients:
                answer = client.generate("a", max_tokens=12, temperature=0, ignore_eos=True)
                assert answer.outputs[0].token_ids == expected_tokens([BOS, 97], 12, VOCAB_SIZE)
                assert client.health() is Health.SERVING
                info = client.server_info()
                assert info.state == pb.SERVER_STATE_READY and info.load.num_pages == 64
        process.terminate()
        assert process.wait(20) == 0
        assert process.stdout is not None and process.stdout.read() == ""


def test_each_front_end_answers_reflection(tokenizer_dir: Path) -> None:
    with server_process(tokenizer_dir, "none", 2) as (_, target):
        for _ in range(12):  # with two front ends, all on one of them once in 2,048 runs
            with grpc.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
                stub = reflection_pb2_grpc.ServerReflectionStub(channel)
                request = reflection_pb2.ServerReflectionRequest(list_services="")
                (response,) = stub.ServerReflectionInfo(iter([request]))
                names = {service.name for service in response.list_services_response.service}
                assert "jaxserve.v1.InferenceService" in names


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_calls_of_every_front_end_finish(tokenizer_dir: Path, number: int) -> None:
    with (
        server_process(tokenizer_dir, "slow", 2) as (process, target),
        client_of_each(process, target) as clients,
    ):
        others = [*front_end_pids(process)[1:], engine_pid(process)]
        streams = [client.generate_stream("a", max_tokens=30, temperature=0, ignore_eos=True) for client in clients]
        first = [next(stream).token_ids for stream in streams]
        os.kill(process.pid, number)
        for client in clients:
            until(lambda client=client: client.health() is Health.NOT_SERVING)  # type: ignore[misc]
            with pytest.raises(UnavailableError) as caught:
                client.generate("b")
            assert caught.value.reason == "SERVER_DRAINING"
        for begun, stream in zip(first, streams, strict=True):
            rest = [token for delta in stream for token in delta.token_ids]
            assert [*begun, *rest] == expected_tokens([BOS, 97], 30, VOCAB_SIZE)
        assert process.wait(20) == 0
        assert not any(map(is_running, others))
        assert process.stderr is not None and "Traceback" not in process.stderr.read()


def test_a_second_signal_ends_the_calls_of_every_front_end(tokenizer_dir: Path) -> None:
    with (
        server_process(tokenizer_dir, "slow", 2) as (process, target),
        client_of_each(process, target) as clients,
    ):
        streams = [client.generate_stream("a", max_tokens=None, temperature=0, ignore_eos=True) for client in clients]
        for stream in streams:
            next(stream)
        process.terminate()
        for client in clients:
            until(lambda client=client: client.server_info().state == pb.SERVER_STATE_DRAINING)  # type: ignore[misc]
        process.terminate()
        for stream in streams:
            with pytest.raises(UnavailableError) as caught:
                stream.read()
            assert caught.value.reason == "SERVER_STOPPED"
        assert process.wait(20) == 0


def test_when_a_front_end_is_lost_the_others_drain_and_the_server_exits_non_zero(tokenizer_dir: Path) -> None:
    with (
        server_process(tokenizer_dir, "slow", 2) as (process, target),
        client_of_each(process, target) as (client, other),
    ):
        kept = client.generate_stream("a", max_tokens=30, temperature=0, ignore_eos=True)
        lost = other.generate_stream("b", max_tokens=None, ignore_eos=True)
        first = next(kept).token_ids
        next(lost)
        os.kill(front_end_pids(process)[1], signal.SIGKILL)
        with pytest.raises(UnavailableError):
            lost.read()
        until(lambda: client.health() is Health.NOT_SERVING)
        rest = [token for delta in kept for token in delta.token_ids]
        assert [*first, *rest] == expected_tokens([BOS, 97], 30, VOCAB_SIZE)
        assert process.wait(20) == 1
        assert process.stderr is not None
        assert "front end 1 ended with exit code -9; the server drains and exits" in process.stderr.read()


def test_a_killed_engine_ends_the_calls_of_every_front_end(tokenizer_dir: Path) -> None:
    with (
        server_process(tokenizer_dir, "slow", 2) as (process, target),
        client_of_each(process, target) as clients,
    ):
        others = front_end_pids(process)[1:]
        streams = [client.generate_stream("a", max_tokens=None, ignore_eos=True) for client in clients]
        for stream in streams:
            next(stream)
        os.kill(engine_pid(process), signal.SIGKILL)
        for stream in streams:
            with pytest.raises(UnavailableError) as caught:
                stream.read()
            assert (caught.value.reason, caught.value.retry_safe) == ("ENGINE_FAILED", False)
        assert process.wait(20) == 1
        assert not any(map(is_running, others))


def test_an_engine_that_cannot_load_shows_one_line_however_many_front_ends_wait(tokenizer_dir: Path) -> None:
    with server_process(tokenizer_dir, "broken", 3) as (process, target):
        assert target == ""
        assert process.wait(20) == 1
        assert process.stderr is not None
        errors = [line for line in process.stderr.read().splitlines() if "CRITICAL" not in line]
        assert errors == [f"jaxserve: error: {tokenizer_dir}/config.json: no such file"]


def test_no_process_outlives_a_killed_server(tokenizer_dir: Path) -> None:
    with (
        server_process(tokenizer_dir, "slow", 2) as (process, target),
        client_of_each(process, target) as (_, other),
    ):
        others = [*front_end_pids(process)[1:], engine_pid(process)]
        stream = other.generate_stream("a", max_tokens=None, ignore_eos=True)
        next(stream)
        process.kill()
        with pytest.raises(UnavailableError):
            stream.read()
        until(lambda: not any(map(is_running, others)))


def test_an_id_in_flight_on_one_front_end_is_refused_by_another(tokenizer_dir: Path) -> None:
    with (
        server_process(tokenizer_dir, "slow", 2) as (process, target),
        client_of_each(process, target) as (one, two),
    ):
        stream = one.generate_stream("a", max_tokens=None, ignore_eos=True, request_id="same")
        next(stream)
        with pytest.raises(AlreadyExistsError):
            two.generate("b", request_id="same")
        stream.cancel()
        until(lambda: two.server_info().load.num_running_requests == 0)
        assert len(two.generate("b", max_tokens=3, ignore_eos=True, request_id="same").outputs[0].token_ids) == 3


def test_a_signal_to_one_of_the_other_front_ends_changes_nothing(tokenizer_dir: Path) -> None:
    with server_process(tokenizer_dir, "none", 2) as (process, target), Client(target, retry=ONCE) as client:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(front_end_pids(process)[1], number)
        with client_of_each(process, target) as clients:
            for each in clients:
                assert each.health() is Health.SERVING
        assert client.health() is Health.SERVING and process.poll() is None


async def test_a_port_that_front_ends_share_is_refused_to_another_server() -> None:
    engine = EngineClient("ipc:///nowhere")
    server = InferenceServer(engine, ServerConfig(port=0, num_front_ends=2))
    port = await server.start()
    try:
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}; is the port in use"):
            check_port_is_free("127.0.0.1", port)
        alone = InferenceServer(EngineClient("ipc:///nowhere"), ServerConfig(port=port))
        with pytest.raises(ConfigError, match=str(port)):
            await alone.start()
    finally:
        await server.stop()
        await engine.close()
    check_port_is_free("127.0.0.1", port)


def test_a_port_without_a_listener_is_free_for_several_front_ends() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.listen()
        with pytest.raises(ConfigError):
            check_port_is_free("localhost", port)
    check_port_is_free("127.0.0.1", port)
