"""The waiting queue, the deadlines and the estimate of when to come back."""

import pytest

from jaxserve.request import FinishReason, Request, SamplingParams
from jaxserve.scheduler.sequence import Sequence, SequenceState
from jaxserve.scheduler.waiting_queue import AdmissionRate, DeadlineHeap, WaitingQueue


def make_sequence(priority: int, arrival: int, time_limit: float | None = None) -> Sequence:
    request = Request(
        request_id=f"{priority}-{arrival}", prompt_token_ids=[1], params=SamplingParams(time_limit=time_limit)
    )
    return Sequence(request, order=(priority, arrival), seed=0, eos_token_ids=(), max_model_len=64)


def test_the_queue_goes_by_priority_then_arrival() -> None:
    queue = WaitingQueue()
    for order in [(1, 0), (0, 2), (1, 3), (0, 1)]:
        queue.push(make_sequence(*order))
    popped = []
    while (sequence := queue.peek()) is not None:
        popped.append(sequence.order)
        queue.pop()
    assert popped == [(0, 1), (0, 2), (1, 0), (1, 3)]


def test_finished_sequences_are_passed_over_and_do_not_accumulate() -> None:
    queue = WaitingQueue()
    first = make_sequence(0, 0)
    queue.push(first)
    for arrival in range(1, 1000):
        sequence = make_sequence(0, arrival)
        queue.push(sequence)
        sequence.state = SequenceState.FINISHED
        queue.count_out()
    assert len(queue) == 1 and list(queue) == [first] and queue.peek() is first
    assert len(queue._heap) < 100


@pytest.mark.parametrize(
    ("time_limit", "timeout", "expected"),
    [
        (2.0, None, (12.0, FinishReason.DEADLINE)),
        (None, 2.0, (12.0, FinishReason.ABORT)),
        (3.0, 2.0, (12.0, FinishReason.ABORT)),
        (2.0, 3.0, (12.0, FinishReason.DEADLINE)),
        (2.0, 2.0, (12.0, FinishReason.DEADLINE)),
    ],
)
def test_the_earlier_of_time_limit_and_timeout_ends_a_sequence(
    time_limit: float | None, timeout: float | None, expected: tuple[float, FinishReason]
) -> None:
    deadlines = DeadlineHeap()
    sequence = make_sequence(0, 0, time_limit)
    deadlines.push(sequence, now=10.0, timeout=timeout, num_live=1)
    at, reason = expected
    assert deadlines.pop_expired(at - 0.01) == []
    assert deadlines.pop_expired(at) == [(sequence, reason)]
    assert deadlines.pop_expired(at + 100) == []


def test_deadlines_of_finished_sequences_are_dropped_and_do_not_accumulate() -> None:
    deadlines = DeadlineHeap()
    for arrival in range(1000):
        sequence = make_sequence(0, arrival, time_limit=1.0)
        deadlines.push(sequence, now=0.0, timeout=None, num_live=1)
        sequence.state = SequenceState.FINISHED
    assert len(deadlines._heap) < 100
    assert deadlines.pop_expired(10.0) == []


def test_retry_after_is_longer_the_slower_the_queue_moves() -> None:
    estimates = []
    for admitted in (1000, 10, 0):
        rate = AdmissionRate()
        rate.tick(0.0)
        for _ in range(admitted):
            rate.count()
        estimates.append(rate.retry_after(100, now=10.0))
    assert estimates == [0.1, 10.0, 60.0]
