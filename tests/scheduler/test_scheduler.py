"""What each step holds, and how requests start and end."""

import pytest

from jaxserve.errors import DuplicateRequestError, InvalidRequestError, QueueFullError
from jaxserve.request import FinishReason
from jaxserve.step import StepPlan
from tests.scheduler.drive import EOS, Drive
from tests.support.simulated_runner import next_token

DEPTHS = pytest.mark.parametrize("depth", [1, 2])


def planned(drive: Drive) -> StepPlan:
    plan = drive.plan()
    assert plan is not None
    return plan


@DEPTHS
def test_requests_of_all_lengths_get_their_tokens(depth: int) -> None:
    drive = Drive(depth, max_num_batched_tokens=16)
    for length in (1, 3, 4, 5, 8, 17, 40, 63):
        drive.add(range(2, 2 + length), max_tokens=length % 7 + 1)
    drive.run()
    drive.check_outputs()
    assert {update.finish_reason for update in drive.final.values()} == {FinishReason.LENGTH}


def test_a_long_prompt_is_computed_in_chunks_beside_the_decodes_and_samples_only_after_the_last() -> None:
    drive = Drive(depth=1, max_num_batched_tokens=8)
    drive.add([5, 6, 7], "short", max_tokens=20)
    drive.step()
    drive.add(range(20), "long")
    chunks = []
    while not drive.outputs["long"]:
        drive.step()
        plan = drive.plans[-1]
        assert plan.request_ids == ["short", "long"] and plan.query_lens[0] == 1 and plan.samples[0]
        chunks.append((plan.start_positions[1], plan.query_lens[1], plan.samples[1]))
    assert chunks == [(0, 7, False), (7, 7, False), (14, 6, True)]


def test_every_running_sequence_has_a_token_of_the_budget_before_any_prompt_takes_more() -> None:
    drive = Drive(depth=1, max_num_seqs=3, max_num_batched_tokens=6, scheduling_policy="priority")
    drive.add([5, 6, 7], "a", max_tokens=20, priority=1)
    drive.step()
    drive.add(range(30), "first", priority=0)
    drive.step()
    drive.step()
    assert drive.plans[-1].request_ids == ["first", "a"]
    assert drive.plans[-1].query_lens == [5, 1]


def test_a_decode_planned_ahead_feeds_back_and_carries_no_token() -> None:
    drive = Drive(depth=2)
    drive.add([5, 6, 7], max_tokens=3)
    first, second = planned(drive), planned(drive)
    assert (first.feeds_back, first.token_ids, first.start_positions) == ([False], [5, 6, 7], [0])
    assert (second.feeds_back, second.token_ids, second.start_positions) == ([True], [], [3])


def test_a_request_whose_tokens_in_flight_fill_its_length_is_not_scheduled_again() -> None:
    drive = Drive(depth=2)
    drive.add([5, 6, 7], max_tokens=2)
    planned(drive)
    planned(drive)
    assert drive.plan() is None
    assert drive.scheduler.has_unfinished
    drive.collect()
    assert [update.finish_reason for update in drive.collect()] == [FinishReason.LENGTH]
    assert not drive.scheduler.has_unfinished


def test_a_full_context_ends_a_request_without_max_tokens() -> None:
    drive = Drive(max_model_len=16)
    drive.add(range(10), max_tokens=None)
    drive.run()
    assert len(drive.outputs["r0"]) == 6
    assert drive.final["r0"].finish_reason is FinishReason.LENGTH


@DEPTHS
def test_a_stop_token_ends_a_request_and_its_surplus_step_is_dropped(depth: int) -> None:
    prompt = [5, 6, 7]
    first = next_token(prompt, 50)
    second = next_token([*prompt, first], 50)
    assert first != second
    drive = Drive(depth)
    drive.add(prompt, stop_token_ids=[second])
    drive.run()
    assert drive.outputs["r0"] == [first, second]
    final = drive.final["r0"]
    assert (final.finish_reason, final.stop_token_id) == (FinishReason.STOP, second)
    assert len(drive.plans) == 1 + depth


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_the_models_own_end_token_stops_unless_ignored(ignore_eos: bool) -> None:
    prompt = next([a, b] for a in range(50) for b in range(50) if next_token([a, b], 50) == EOS)
    drive = Drive()
    drive.add(prompt, ignore_eos=ignore_eos)
    drive.run()
    assert drive.outputs["r0"][0] == EOS
    assert len(drive.outputs["r0"]) == (8 if ignore_eos else 1)
    assert drive.final["r0"].stop_token_id == (None if ignore_eos else EOS)


@DEPTHS
def test_stops_are_held_back_until_min_tokens(depth: int) -> None:
    drive = Drive(depth, vocab_size=3)
    drive.add([2], ignore_eos=False, stop_token_ids=[0], min_tokens=5, max_tokens=20)
    drive.run()
    drive.check_outputs()
    assert [plan.suppress_stops for plan in drive.plans[:6]] == [[True]] * 5 + [[False]]
    assert set(drive.outputs["r0"][:5]) == {2}
    assert drive.plans[0].new_slots[0].suppressed_token_ids == (EOS, 0)


def test_a_stop_token_does_not_end_a_request_before_min_tokens_even_if_it_is_sampled() -> None:
    drive = Drive(depth=1)
    drive.add([2], ignore_eos=False, min_tokens=2)
    reasons = []
    while drive.scheduler.has_unfinished:
        (update,) = drive.scheduler.update(planned(drive), [EOS])
        reasons.append(update.finish_reason)
    assert reasons == [None, None, FinishReason.STOP]


def test_an_ignored_end_token_is_not_held_back() -> None:
    drive = Drive()
    drive.add([2], ignore_eos=True, stop_token_ids=[7], min_tokens=2)
    drive.step()
    assert drive.plans[0].new_slots[0].suppressed_token_ids == (7,)


def test_a_result_for_a_slots_old_owner_is_not_credited_to_the_new_one() -> None:
    drive = Drive(depth=2, max_num_seqs=1)
    drive.add([5, 6, 7], "old")
    planned(drive)
    planned(drive)
    drive.abort("old")
    drive.add([8, 9], "new")
    assert planned(drive).request_ids == ["new"]
    assert drive.collect() == [] and drive.collect() == []
    drive.run()
    drive.check_outputs()
    assert drive.outputs["old"] == []


def test_an_id_may_be_used_again_once_free_though_a_step_of_its_first_owner_is_in_flight() -> None:
    drive = Drive(depth=2)
    drive.add([5, 6, 7], "x")
    planned(drive)
    with pytest.raises(DuplicateRequestError):
        drive.add([8], "x")
    drive.abort("x")
    drive.add([8], "x")
    drive.run()
    drive.check_outputs()


def test_aborting_frees_the_pages_at_once_and_brings_no_update() -> None:
    drive = Drive(depth=2)
    drive.add(range(30), "a")
    drive.add(range(30, 40), "b")
    planned(drive)
    assert drive.scheduler.stats().num_used_pages == 11
    drive.abort("a", "b", "unknown")
    assert drive.scheduler.stats().num_used_pages == 0
    assert drive.collect() == []
    assert drive.scheduler.schedule() is None


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    drive = Drive(max_num_queued_requests=2)
    drive.add([1])
    drive.add([1])
    with pytest.raises(QueueFullError) as error:
        drive.add([1])
    assert error.value.limit == 2 and 0 < error.value.retry_after <= 60
    drive.step()
    drive.add([1])


@pytest.mark.parametrize("length", [0, 64])
def test_a_prompt_that_leaves_no_room_for_a_token_is_refused(length: int) -> None:
    with pytest.raises(InvalidRequestError, match="prompt"):
        Drive().add([1] * length)


def test_requests_are_admitted_in_order_of_priority_then_arrival_only_if_the_policy_says_so() -> None:
    for policy, expected in (("fcfs", ["a", "b", "c"]), ("priority", ["b", "c", "a"])):
        drive = Drive(depth=1, max_num_seqs=1, scheduling_policy=policy)
        for request_id, priority in (("a", 5), ("b", 1), ("c", 1)):
            drive.add([2, 3], request_id, priority=priority)
        drive.run()
        assert list(drive.final) == expected


def test_seeds_are_the_requests_own_or_drawn_anew_for_each_from_the_configs() -> None:
    seeds = []
    for config_seed in (0, 0, 1):
        drive = Drive(seed=config_seed)
        for seed in (None, 42, None):
            drive.add([2], seed=seed)
        drive.step()
        seeds.append([assignment.seed for assignment in drive.plans[0].new_slots])
    assert seeds[0] == seeds[1] != seeds[2]
    assert seeds[0][1] == 42 and seeds[0][0] != seeds[0][2]


def test_static_batching_admits_only_after_the_whole_batch_has_ended() -> None:
    drive = Drive(depth=1, max_num_seqs=2, max_num_batched_tokens=8, batching="static")
    for i, max_tokens in enumerate((2, 6, 2)):
        drive.add(range(i, i + 6), max_tokens=max_tokens)
    drive.run()
    drive.check_outputs()
    batches = {tuple(plan.request_ids) for plan in drive.plans}
    assert ("r0", "r1") in batches and ("r2",) in batches
    assert not any("r2" in batch and len(batch) > 1 for batch in batches)


def test_reserving_the_whole_context_admits_only_as_many_as_fit_and_allocates_no_page_later() -> None:
    drive = Drive(num_pages=33, reserve_whole_context=True)
    for i in range(4):
        drive.add(range(i, i + 6))
    drive.step()
    assert drive.plans[0].request_ids == ["r0", "r1"]
    assert drive.scheduler.stats().num_used_pages == 32
    assert drive.scheduler.stats().num_kv_slots == 128 and drive.scheduler.stats().num_kv_tokens == 12
    drive.run()
    drive.check_outputs()


def test_a_runner_that_returns_too_few_tokens_is_an_error() -> None:
    drive = Drive()
    drive.add([1, 2])
    with pytest.raises(ValueError, match="shorter"):
        drive.scheduler.update(planned(drive), [])


def test_nothing_to_do_is_no_plan() -> None:
    drive = Drive()
    assert drive.plan() is None and not drive.scheduler.has_unfinished
    assert drive.scheduler.stats().num_steps == 0
