"""What is asked for: lengths, prompts and arrival times."""

import json
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from jaxserve.bench.load import split_job
from jaxserve.bench.load_client import LoadJob
from jaxserve.bench.workload import RequestPlan, exact_length, poisson_arrivals, random_prompts, read_trace

PLANS = [RequestPlan(i + 1, 2) for i in range(5000)]


def test_poisson_arrivals_have_exponential_gaps_of_the_rate() -> None:
    arrivals = [plan.arrival for plan in poisson_arrivals(PLANS, rate=20.0, seconds=1e9, seed=3)]
    gaps = [b - a for a, b in pairwise([0.0, *arrivals])]
    assert len(gaps) == 5000 and min(gaps) > 0
    # Mean and standard deviation of an exponential distribution are equal; 5000 draws tell them to 1.4 %.
    assert statistics.mean(gaps) == pytest.approx(1 / 20, rel=0.06)
    assert statistics.stdev(gaps) == pytest.approx(1 / 20, rel=0.1)
    assert sum(gap > 1 / 20 for gap in gaps) / 5000 == pytest.approx(0.368, abs=0.03)


def test_poisson_arrivals_end_in_time_keep_their_order_and_follow_the_seed() -> None:
    sent = poisson_arrivals(PLANS, rate=50.0, seconds=4.0, seed=0)
    assert 120 < len(sent) < 280 and sent[-1].arrival <= 4.0
    assert [plan.input_len for plan in sent] == [plan.input_len for plan in PLANS[: len(sent)]]
    assert poisson_arrivals(PLANS, 50.0, 4.0, seed=0) == sent != poisson_arrivals(PLANS, 50.0, 4.0, seed=1)


def test_prompts_are_random_of_their_lengths_and_away_from_special_tokens() -> None:
    one, two = random_prompts([RequestPlan(40, 1), RequestPlan(7, 1)], vocab_size=100, seed=5)
    assert (len(one), len(two)) == (40, 7)
    assert set(one + two) <= set(range(50, 100)) and len(set(one)) > 10
    assert random_prompts([RequestPlan(40, 1)], 100, seed=5) == [one] != random_prompts([RequestPlan(40, 1)], 100, 6)


def test_a_trace_is_read_in_order_and_scaled(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"requests": [[100, 7], [1, 1000]]}))
    assert read_trace(path) == [RequestPlan(100, 7), RequestPlan(1, 1000)]
    assert read_trace(path, 0.1) == [RequestPlan(10, 1), RequestPlan(1, 100)]


def test_answers_are_asked_for_at_their_exact_length() -> None:
    params = exact_length(RequestPlan(3, 9))
    assert (params.max_tokens, params.ignore_eos, params.temperature, params.detokenize) == (9, True, 0.0, False)


def test_a_job_is_split_without_losing_requests_or_concurrency() -> None:
    job = LoadJob(target="x", plans=PLANS[:10], vocab_size=9, concurrency=7, seed=2)
    parts = split_job(job, 3)
    assert {plan for part in parts for plan in part.plans} == set(PLANS[:10])
    assert sum(len(part.plans) for part in parts) == 10
    assert [part.concurrency for part in parts] == [3, 2, 2]
    assert len({part.seed for part in parts}) == 3
    assert [len(part.plans) for part in split_job(LoadJob(target="x", plans=PLANS[:2], vocab_size=9), 8)] == [1, 1]
