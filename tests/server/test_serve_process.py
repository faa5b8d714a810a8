"""The server as a process with its engine as another: ready line, signals, exit codes, orphans."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jaxserve.client import Client, Delta, UnavailableError
from tests.support.ascii_tokenizer import BOS, VOCAB_SIZE
from tests.support.server_process import ONCE, engine_pid, is_running, server_process, until
from tests.support.simulated_runner import expected_tokens


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_call_in_flight_finish_and_exits_with_0(tokenizer_dir: Path, number: int) -> None:
    with server_process(tokenizer_dir, "slow") as (process, target), Client(target, retry=ONCE) as client:
        engine = engine_pid(process)
        stream = client.generate_stream("a", max_tokens=30, temperature=0, ignore_eos=True)
        first: Delta = next(stream)
        os.kill(process.pid, number)
        rest = [token for delta in stream for token in delta.token_ids]
        assert [*first.token_ids, *rest] == expected_tokens([BOS, 97], 30, VOCAB_SIZE)
        assert process.wait(20) == 0
        assert not is_running(engine)
        assert process.stderr is not None and "Traceback" not in process.stderr.read()


def test_a_second_signal_ends_the_call_in_flight_at_once(tokenizer_dir: Path) -> None:
    with server_process(tokenizer_dir, "slow") as (process, target), Client(target, retry=ONCE) as client:
        stream = client.generate_stream("a", max_tokens=None, temperature=0, ignore_eos=True)
        next(stream)
        os.kill(process.pid, signal.SIGINT)
        until(lambda: client.server_info().state == 3)
        os.kill(process.pid, signal.SIGINT)
        with pytest.raises(UnavailableError) as caught:
            stream.read()
        assert caught.value.reason == "SERVER_STOPPED"
        assert process.wait(20) == 0


def test_an_engine_that_cannot_load_shows_one_line_and_exits_non_zero(tokenizer_dir: Path) -> None:
    with server_process(tokenizer_dir, "broken") as (process, target):
        assert target == ""
        assert process.wait(20) == 1
        assert process.stderr is not None
        assert process.stderr.read().strip() == f"jaxserve: error: {tokenizer_dir}/config.json: no such file"


def test_a_failing_engine_ends_the_calls_and_the_server_with_non_zero(tokenizer_dir: Path) -> None:
    with server_process(tokenizer_dir, "failing") as (process, target), Client(target, retry=ONCE) as client:
        with pytest.raises(UnavailableError) as caught:
            client.generate("a", max_tokens=50, ignore_eos=True)
        assert (caught.value.reason, caught.value.retry_safe) == ("ENGINE_FAILED", True)
        assert process.wait(20) == 1


def test_a_step_that_hangs_ends_the_calls_and_the_server_with_non_zero(tokenizer_dir: Path) -> None:
    with server_process(tokenizer_dir, "hanging") as (process, target), Client(target, retry=ONCE) as client:
        stream = client.generate_stream("a", max_tokens=50, ignore_eos=True)
        next(stream)
        with pytest.raises(UnavailableError) as caught:
            stream.read()
        assert caught.value.reason == "ENGINE_FAILED"
        assert process.wait(20) == 1
        assert process.stderr is not None
        assert "a step has not ended within 0.5 s (step_timeout_s)" in process.stderr.read()


def test_a_killed_engine_ends_the_calls_and_the_server_with_non_zero(tokenizer_dir: Path) -> None:
    with server_process(tokenizer_dir, "slow") as (process, target), Client(target, retry=ONCE) as client:
        streams = [client.generate_stream(f"{i}", max_tokens=None, ignore_eos=True) for i in range(3)]
        for stream in streams:
            next(stream)
        os.kill(engine_pid(process), signal.SIGKILL)
        for stream in streams:
            with pytest.raises(UnavailableError) as caught:
                stream.read()
            assert (caught.value.reason, caught.value.retry_safe) == ("ENGINE_FAILED", False)
        assert process.wait(20) == 1


def test_the_engine_does_not_outlive_a_killed_server(tokenizer_dir: Path) -> None:
    with server_process(tokenizer_dir, "slow") as (process, target), Client(target, retry=ONCE) as client:
        engine = engine_pid(process)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(client.generate, "a", max_tokens=None, ignore_eos=True)
            until(lambda: client.server_info().load.num_running_requests == 1)
            process.kill()
            assert isinstance(answer.exception(20), UnavailableError)
        until(lambda: not is_running(engine))
