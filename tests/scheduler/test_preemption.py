"""When pages run out the last sequence gives way, loses nothing, and everybody ends."""

import pytest

from jaxserve.request import FinishReason
from tests.scheduler.drive import Drive

DEPTHS = pytest.mark.parametrize("depth", [1, 2, 3])


@DEPTHS
@pytest.mark.parametrize("enable_prefix_caching", [True, False])
def test_tokens_are_the_same_under_preemption(depth: int, enable_prefix_caching: bool) -> None:
    drive = Drive(depth, num_pages=17, enable_prefix_caching=enable_prefix_caching)
    for i in range(6):
        drive.add(range(i, i + 10 + i), max_tokens=None if i % 2 else 30)
    drive.run()
    drive.check_outputs()
    assert drive.scheduler.stats().num_preemptions > 0


def test_the_latest_arrival_gives_way_first() -> None:
    drive = Drive(depth=1, num_pages=17, enable_prefix_caching=False)
    for request_id in "abcd":
        drive.add([ord(request_id) % 50] * 15, request_id, max_tokens=30)
    drive.step()
    drive.step()
    drive.step()
    assert drive.scheduler.stats().num_preemptions == 1
    assert drive.plans[-1].request_ids == ["a", "b", "c"]


def test_the_lowest_priority_gives_way_first() -> None:
    drive = Drive(depth=1, num_pages=17, enable_prefix_caching=False, scheduling_policy="priority")
    for request_id, priority in (("a", 3), ("b", 2), ("c", 2), ("d", 1)):
        drive.add([ord(request_id) % 50] * 15, request_id, max_tokens=30, priority=priority)
    drive.step()
    drive.step()
    drive.step()
    assert drive.plans[-1].request_ids == ["d", "b", "c"]


def test_a_preempted_request_keeps_its_place_before_later_ones_and_its_seed() -> None:
    drive = Drive(depth=2, num_pages=17, max_num_seqs=2)
    drive.add([2] * 20, "a", max_tokens=40)
    drive.add([3] * 20, "b", max_tokens=40)
    drive.add([4] * 8, "c", max_tokens=2)
    drive.run()
    drive.check_outputs()
    assert drive.scheduler.stats().num_preemptions >= 1
    entered = [
        (plan.request_ids[plan.slots.index(new.slot)], new.seed) for plan in drive.plans for new in plan.new_slots
    ]
    assert [request_id for request_id, _ in entered] == ["a", "b", "b", "c"]
    assert entered[1] == entered[2]


def test_nobody_is_admitted_in_a_step_that_preempts() -> None:
    drive = Drive(depth=2, num_pages=17)
    for i in range(8):
        drive.add([i] * (6 + i), max_tokens=40)
    preemptions = 0
    while drive.scheduler.has_unfinished or drive.in_flight:
        num_plans = len(drive.plans)
        drive.step()
        now = drive.scheduler.stats().num_preemptions
        if now > preemptions and len(drive.plans) > num_plans:
            assert drive.plans[-1].new_slots == []
        preemptions = now
    assert preemptions > 0
    drive.check_outputs()


def test_a_request_preempted_with_a_token_in_flight_gets_it_and_resumes_only_then() -> None:
    drive = Drive(depth=1, num_pages=17, max_num_seqs=2, enable_prefix_caching=False)
    drive.add([2] * 31, "a", max_tokens=33)
    drive.add([3] * 32, "b", max_tokens=30)
    for _ in range(3):
        drive.plan()
        if drive.scheduler.stats().num_preemptions:
            break
    assert drive.scheduler.stats().num_preemptions == 1 and drive.scheduler.stats().num_waiting == 1
    drive.abort("a")
    while drive.in_flight:
        assert drive.plan() is None, "b waits for its token though all pages are free"
        drive.collect()
        if drive.outputs["b"]:
            break
    assert drive.plan() is not None
    assert drive.plans[-1].token_ids == [3] * 32 + drive.outputs["b"]
    drive.run()
    drive.check_outputs()


def test_a_request_may_end_while_it_waits_to_resume() -> None:
    drive = Drive(depth=1, num_pages=17, max_num_seqs=2, enable_prefix_caching=False)
    drive.add([2] * 31, "a", max_tokens=33)
    drive.add([3] * 32, "b", max_tokens=1)
    for _ in range(3):
        drive.plan()
    assert drive.scheduler.stats().num_preemptions == 1 and drive.scheduler.stats().num_waiting == 1
    drive.collect()
    assert drive.final["b"].finish_reason is FinishReason.LENGTH
    assert drive.scheduler.stats().num_waiting == 0
    drive.run()
    drive.check_outputs()


def test_a_long_prompt_waits_until_all_of_it_fits_not_only_its_first_chunk() -> None:
    drive = Drive(depth=1, num_pages=17, max_num_batched_tokens=8, enable_prefix_caching=False)
    drive.add(range(30), "a", max_tokens=4)
    while drive.scheduler.stats().num_used_pages < 8:
        drive.step()
    drive.add(range(40), "b", max_tokens=4)
    drive.run()
    drive.check_outputs()
    assert not any({"a", "b"} <= set(plan.request_ids) for plan in drive.plans)
    assert drive.scheduler.stats().num_preemptions == 0


def test_many_requests_in_the_smallest_pool_all_end() -> None:
    drive = Drive(depth=2, num_pages=17, max_num_seqs=4, max_num_batched_tokens=5)
    for i in range(20):
        drive.add(range(i, i + 1 + (7 * i) % 60), max_tokens=None)
    drive.run()
    drive.check_outputs()
