"""The arithmetic of the figures."""

import io

import pytest
from rich.console import Console

from jaxserve.bench.figures import RequestTimes, ServiceLevel, ServingFigures, Spread, steady_itl


def times(prompt: int, started: float, arrivals: list[float], outputs: int) -> RequestTimes:
    return RequestTimes(num_prompt_tokens=prompt, started=started, arrivals=arrivals, num_output_tokens=outputs)


def test_throughput_counts_all_tokens_over_the_duration() -> None:
    figures = ServingFigures.of([times(10, 0.0, [], 4), times(6, 0.0, [], 8)], 2.0)
    assert (figures.num_requests, figures.input_tokens, figures.output_tokens) == (2, 16, 12)
    assert (figures.output_throughput, figures.total_throughput) == (6.0, 14.0)
    assert figures.ttft is None and figures.itl is None


def test_latencies_are_from_sending_to_the_first_delta_and_between_deltas() -> None:
    figures = ServingFigures.of([times(1, 10.0, [10.5, 10.6, 10.8], 3), times(1, 20.0, [20.1], 1)], 1.0)
    assert figures.ttft is not None and figures.itl is not None
    assert figures.ttft.mean == pytest.approx(300)
    assert figures.ttft.p50 == pytest.approx(300)
    assert figures.itl.mean == pytest.approx(150)
    assert figures.itl.p99 == pytest.approx(100 + 0.99 * 100)


def test_a_request_without_an_answer_has_no_latency() -> None:
    figures = ServingFigures.of([times(1, 0.0, [], 0), times(1, 0.0, [0.25], 1)], 1.0)
    assert figures.ttft is not None and figures.ttft.mean == pytest.approx(250)
    assert figures.itl is None


def test_percentiles_are_in_milliseconds() -> None:
    spread = Spread.of([i / 1000 for i in range(101)])
    assert spread is not None
    assert (spread.mean, spread.p50, spread.p90, spread.p99) == pytest.approx((50, 50, 90, 99))
    assert Spread.of([]) is None


def test_deltas_add_up() -> None:
    entry = RequestTimes(num_prompt_tokens=3)
    entry.add(2)
    entry.add(5)
    assert entry.num_output_tokens == 7
    assert entry.started <= entry.arrivals[0] <= entry.arrivals[1]


def test_the_table_shows_latencies_only_where_answers_were_streamed() -> None:
    def shown(entries: list[RequestTimes]) -> str:
        out = io.StringIO()
        Console(file=out, width=100).print(ServingFigures.of(entries, 2.0).table())
        return out.getvalue()

    whole = shown([times(10, 0.0, [], 4)])
    assert "1 in 2.00 s" in whole and "10 in, 4 out" in whole and "2.0 tokens/s" in whole and "7.0 tokens/s" in whole
    assert "first token" not in whole
    streamed = shown([times(10, 0.0, [0.1, 0.2], 4)])
    assert "p50 100.0 ms" in streamed and "inter-token latency" in streamed


def test_goodput_counts_only_requests_that_got_all_that_was_promised() -> None:
    entries = [
        times(1, 0.0, [0.1, 0.2, 0.3], 3),  # 100 ms, then 100 ms a token
        times(1, 0.0, [0.1, 0.5], 5),  # four tokens in one delta: 100 ms a token on average
        times(1, 0.0, [0.3, 0.4], 2),  # too late
        times(1, 0.0, [0.1, 0.4], 2),  # too slow
        times(1, 0.0, [], 0),  # no answer
        times(1, 0.0, [0.05], 1),  # one token has no time to the next
    ]
    slo = ServiceLevel(ttft_ms=200, itl_ms=150)
    assert [slo.is_met_by(entry) for entry in entries] == [True, True, False, False, False, True]
    figures = ServingFigures.of(entries, 2.0, slo)
    assert figures.goodput == pytest.approx(3 / 2.0)
    assert ServingFigures.of(entries, 2.0, ServiceLevel(ttft_ms=200)).goodput == pytest.approx(4 / 2.0)
    assert ServingFigures.of(entries, 2.0).goodput is None


def test_tokens_that_piled_up_show_in_the_tokens_of_a_delta() -> None:
    assert ServingFigures.of([times(1, 0.0, [0.1, 0.2], 6)], 1.0).tokens_per_delta == 3
    assert ServingFigures.of([times(1, 0.0, [], 6)], 1.0).tokens_per_delta is None


def test_the_steady_latency_leaves_out_what_came_while_others_still_waited_or_had_ended() -> None:
    entries = [
        times(1, 0.0, [1.0, 2.5, 3.0, 3.1, 3.2], 5),
        times(1, 0.0, [3.0, 3.1, 3.2, 4.9], 4),
    ]
    steady = steady_itl(entries)
    assert steady is not None
    assert (steady.mean, steady.p99) == pytest.approx((100, 100))
    assert steady_itl([times(1, 0.0, [1.0, 1.1], 2), times(1, 0.0, [2.0, 2.1], 2)]) is None
    assert steady_itl([times(1, 0.0, [1.0, 1.1], 2), times(1, 0.0, [], 0)]) is None
    assert steady_itl([]) is None
