"""Requests whose time has run out end with what they have, and free their pages at once."""

import pytest

from jaxserve.request import FinishReason
from tests.scheduler.drive import Drive


@pytest.mark.parametrize(
    ("time_limit", "timeout", "reason"),
    [(5.0, None, FinishReason.DEADLINE), (None, 5.0, FinishReason.ABORT)],
)
def test_a_running_request_ends_with_the_tokens_it_has(
    time_limit: float | None, timeout: float | None, reason: FinishReason
) -> None:
    drive = Drive(depth=2)
    drive.now = 100.0
    drive.add([2, 3, 4], "a", max_tokens=50, time_limit=time_limit, timeout=timeout)
    drive.add([5, 6], "b", max_tokens=50)
    for _ in range(4):
        drive.step()
    assert drive.expire(104.9) == []
    (update,) = drive.expire(105.0)
    assert (update.request_id, update.token_ids, update.finish_reason) == ("a", [], reason)
    assert len(drive.outputs["a"]) == 3
    assert drive.scheduler.stats().num_running == 1
    drive.run()
    drive.check_outputs()
    assert len(drive.outputs["a"]) == 3, "the token in flight is dropped"


def test_a_waiting_request_ends_too() -> None:
    drive = Drive(max_num_seqs=1)
    drive.add([2], "a")
    drive.add([3], "b", time_limit=1.0)
    drive.step()
    (update,) = drive.expire(2.0)
    assert (update.request_id, update.finish_reason) == ("b", FinishReason.DEADLINE)
    assert drive.scheduler.stats().num_waiting == 0
    drive.run()
    assert drive.outputs["b"] == []


def test_a_request_that_ended_in_time_does_not_expire() -> None:
    drive = Drive()
    drive.add([2], "a", time_limit=1.0)
    drive.run()
    drive.add([3], "a", time_limit=10.0)
    assert drive.expire(5.0) == []
