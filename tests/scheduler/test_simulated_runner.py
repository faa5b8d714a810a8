"""The arithmetic device itself, by hand."""

import pytest

from jaxserve.request import SamplingParams
from jaxserve.step import SlotAssignment, StepPlan
from tests.support.simulated_runner import SimulatedDeviceError, SimulatedRunner, expected_tokens


def first_plan() -> StepPlan:
    return StepPlan(
        0,
        request_ids=["a"],
        slots=[1],
        query_lens=[3],
        start_positions=[0],
        samples=[True],
        feeds_back=[False],
        token_ids=[4, 5, 6],
        suppress_stops=[False],
        page_table_updates=[(1, 0, 2), (1, 1, 1)],
        new_slots=[SlotAssignment(1, SamplingParams(), seed=0, suppressed_token_ids=(35,))],
    )


def decode_plan(suppress: bool) -> StepPlan:
    return StepPlan(1, ["a"], [1], [1], [3], [True], [True], [], [suppress])


def test_the_next_token_is_the_documented_sum() -> None:
    runner = SimulatedRunner(3, 2, 2, vocab_size=100)
    # 31 * (1 * 4 + 2 * 5 + 3 * 6) + 3 = 995; then 31 * (32 + 4 * 95) + 4 = 12776
    assert runner.collect(runner.dispatch(first_plan())) == [95]
    assert runner.collect(runner.dispatch(decode_plan(False))) == [76]
    assert expected_tokens([4, 5, 6], 2, 100) == [95, 76]


def test_held_back_tokens_are_stepped_over() -> None:
    assert expected_tokens([4, 5, 6], 2, 100, stop_token_ids={95, 96}, min_tokens=1)[0] == 97
    assert expected_tokens([4, 5, 6], 9, 100, stop_token_ids={95}) == [95]


def test_reading_a_page_at_the_wrong_place_raises() -> None:
    runner = SimulatedRunner(3, 2, 2, vocab_size=100)
    runner.dispatch(first_plan())
    runner.page_table[1] = {0: 1, 1: 2}
    with pytest.raises(AssertionError, match="reads position"):
        runner.dispatch(decode_plan(False))


@pytest.mark.parametrize("where", ["dispatch", "collect"])
def test_a_failure_comes_where_it_was_asked_for(where: str) -> None:
    runner = SimulatedRunner(3, 2, 2, vocab_size=100, fail_at_step=0, fail_in="dispatch")
    if where == "dispatch":
        with pytest.raises(SimulatedDeviceError):
            runner.dispatch(first_plan())
        return
    runner = SimulatedRunner(3, 2, 2, vocab_size=100, fail_at_step=0)
    handle = runner.dispatch(first_plan())
    with pytest.raises(SimulatedDeviceError):
        runner.collect(handle)
