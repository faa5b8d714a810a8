"""Load from several processes on the server with the simulated engine, and what is made of it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxserve.bench.figures import RequestTimes, ServingFigures, Spread
from jaxserve.bench.load import run_load
from jaxserve.bench.load_client import LoadJob
from jaxserve.bench.serving import Measured, latency_shares
from jaxserve.bench.workload import RequestPlan
from jaxserve.cli import main
from tests.support.ascii_tokenizer import VOCAB_SIZE, write_tokenizer
from tests.support.server_process import server_process

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server_process(write_tokenizer(tmp_path_factory.mktemp("tokenizer")), "none", 2) as (_, target):
        yield target


async def test_load_of_several_processes_is_answered_whole(target: str) -> None:
    plans = [RequestPlan(5 + i, 3 + i) for i in range(7)]
    seen: list[int] = []
    job = LoadJob(target=target, plans=plans, vocab_size=VOCAB_SIZE, concurrency=4, num_channels=2)
    results = await run_load(job, 2, lambda what, done, total: seen.append(done))
    times = [entry for result in results for entry in result.times]
    assert len(results) == 2 and not any(result.failures for result in results)
    assert sorted((t.num_prompt_tokens, t.num_output_tokens) for t in times) == [(5 + i, 3 + i) for i in range(7)]
    assert all(t.started <= t.arrivals[0] <= t.arrivals[-1] for t in times)
    assert seen[0] == 0 and max(seen) == 7


async def test_requests_are_sent_at_their_times_and_failures_are_told(target: str) -> None:
    plans = [RequestPlan(5, 2, 0.0), RequestPlan(500, 2, 0.2), RequestPlan(5, 2, 0.4)]
    (result,) = await run_load(LoadJob(target=target, plans=plans, vocab_size=VOCAB_SIZE), 1)
    first, last = sorted(result.times, key=lambda t: t.started)
    assert last.started - first.started >= 0.35
    assert len(result.failures) == 1 and "128" in result.failures[0]


async def test_a_load_that_takes_too_long_is_given_up(target: str) -> None:
    plans = [RequestPlan(5, 2, 0.0), RequestPlan(5, 2, 60.0)]
    job = LoadJob(target=target, plans=plans, vocab_size=VOCAB_SIZE, time_limit=1.0)
    (result,) = await run_load(job, 1)
    assert len(result.times) == 1 and result.failures == ["not finished after 1 s"]


def test_bench_serve_prints_figures_and_goodput(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--num-prompts", "6", "--input-len", "4", "--output-len", "5", "--num-clients", "2", "--json"]
    assert main(["bench", "serve", target, *words, "--slo-ttft-ms", "1e9"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["num_requests"], figures["input_tokens"], figures["output_tokens"]) == (6, 24, 30)
    assert figures["goodput"] == pytest.approx(6 / figures["duration"])
    assert main(["bench", "serve", target, *words, "--request-rate", "200"]) == 0
    assert json.loads(capsys.readouterr().out)["num_requests"] == 6


def test_the_script_measures_a_running_server(target: str, tmp_path: Path) -> None:
    command = [sys.executable, "scripts/bench_serving.py", "--target", target, "--clients", "2", "--channels", "1"]
    command += ["--streams", "2,4", "--input-len", "6", "--output-len", "9", "--scale", "0.1", "--trace-requests", "3"]
    command += ["--rates", "20", "--rate-seconds", "0.5", "--output", str(tmp_path / "serving"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record == json.loads((tmp_path / "serving.json").read_text())
    cases = {each["case"]: each for each in record["results"]}
    assert list(cases)[2:] == ["trace of 3", "trace at 20/s"]
    assert [each["figures"]["num_requests"] for each in record["results"]][:3] == [2, 4, 3]
    assert cases["trace at 20/s"]["rate"] == 20
    assert (tmp_path / "serving.png").read_bytes().startswith(b"\x89PNG")


def spread(p50: float, p99: float) -> Spread:
    return Spread(mean=p50, p50=p50, p90=p50, p99=p99)


def measured(steady: Spread | None, every: float, lag: float | None, over_grpc: bool) -> Measured:
    figures = ServingFigures.of([RequestTimes(1, 0.0, [0.0, every / 1000], 2)], 1.0)
    return Measured(
        case="a",
        over_grpc=over_grpc,
        figures=figures,
        steady_itl=steady,
        client_lag=None if lag is None else spread(0, lag),
    )


def test_the_shares_of_the_latency_add_up_to_it() -> None:
    offline = measured(spread(10, 11), 30, None, over_grpc=False)
    shares = latency_shares(offline, measured(spread(10.2, 14), 40, 0.5, over_grpc=True))
    assert shares is not None
    assert (shares.step, shares.step_variation, shares.server, shares.client) == (10, 1, 2.5, 0.5)
    assert (shares.prompts, shares.total) == pytest.approx((26, 40))
    assert shares.ratio == pytest.approx(1.4)
    parts = (shares.step, shares.step_variation, shares.server, shares.client, shares.prompts)
    assert sum(parts) == pytest.approx(shares.total)
    # A client that was later than all that was added has no more than that to answer for.
    late = latency_shares(offline, measured(spread(10, 12), 40, 9.0, over_grpc=True))
    assert late is not None and (late.server, late.client) == (0, 1)
    assert latency_shares(offline, measured(None, 40, 0.5, over_grpc=True)) is None
