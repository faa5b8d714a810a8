"""Prompts with a common beginning share pages, and never write to a page that another reads."""

import pytest

from tests.scheduler.drive import Drive

DEPTHS = pytest.mark.parametrize("depth", [1, 2])
PROMPT = list(range(2, 14))  # three pages


@DEPTHS
def test_a_common_prefix_is_computed_once(depth: int) -> None:
    drive = Drive(depth)
    drive.add([*PROMPT, 20, 21], "a")
    drive.run()
    drive.add([*PROMPT, 30], "b")
    drive.step()
    plan = drive.plans[-1]
    assert (plan.start_positions, plan.token_ids) == ([12], [30])
    shared = {(index, page) for _, index, page in plan.page_table_updates if index < 3}
    assert shared == {(index, page) for _, index, page in drive.plans[0].page_table_updates if index < 3}
    drive.run()
    drive.check_outputs()
    assert drive.final["a"].num_cached_tokens == 0 and drive.final["b"].num_cached_tokens == 12
    stats = drive.scheduler.stats()
    assert (stats.num_prefix_queried_tokens, stats.num_prefix_hit_tokens) == (27, 12)


def test_a_prefix_computed_in_this_very_step_is_shared() -> None:
    drive = Drive()
    drive.add([*PROMPT, 20], "a")
    drive.add([*PROMPT, 30], "b")
    drive.step()
    assert drive.plans[0].query_lens == [13, 1]
    assert drive.scheduler.stats().num_used_pages == 5
    drive.run()
    drive.check_outputs()


@DEPTHS
def test_a_prompt_cached_whole_computes_its_last_token_in_a_copy_of_the_page(depth: int) -> None:
    drive = Drive(depth)
    drive.add(PROMPT, "a", max_tokens=20)
    drive.step()
    drive.add(PROMPT, "b", max_tokens=20)
    drive.step()
    plan = drive.plans[1]
    pages = {index: page for _, index, page in drive.plans[0].page_table_updates}
    updates = {index: page for slot, index, page in plan.page_table_updates if slot == plan.new_slots[0].slot}
    assert (plan.start_positions[1], plan.query_lens[1], plan.token_ids) == (11, 1, PROMPT[-1:])
    assert plan.page_copies == [(pages[2], updates[2])]
    assert [updates[0], updates[1]] == [pages[0], pages[1]] and updates[2] != pages[2]
    drive.run()
    drive.check_outputs()
    assert drive.final["b"].num_cached_tokens == 11


def test_a_page_written_in_this_step_is_not_copied_since_copies_run_before_it() -> None:
    drive = Drive()
    drive.add(PROMPT, "a")
    drive.add(PROMPT, "b")
    drive.step()
    assert drive.plans[0].page_copies == []
    assert drive.plans[0].query_lens == [12, 4]
    drive.run()
    drive.check_outputs()


def test_the_source_of_a_copy_is_neither_evicted_nor_written_in_the_plan_that_copies_it() -> None:
    drive = Drive(depth=1, num_pages=17)
    drive.add(PROMPT, "a", max_tokens=1)
    drive.run()
    drive.add(PROMPT, "b", max_tokens=4)
    # Takes 13 pages. Beside b's three and the source there are 12.
    drive.add(range(20, 20 + 49), "c", max_tokens=4)
    plan = drive.plan()
    assert plan is not None and plan.request_ids == ["b"]
    ((source, _),) = plan.page_copies
    assert source not in {page for _, _, page in plan.page_table_updates}
    drive.run()
    drive.check_outputs()


def test_where_the_pool_has_no_page_for_a_copy_the_last_page_is_computed_again() -> None:
    drive = Drive(depth=1, num_pages=17, reserve_whole_context=True)
    drive.add(PROMPT, "a", max_tokens=1)
    drive.run()
    drive.add(PROMPT, "b")
    drive.run()
    drive.check_outputs()
    assert drive.final["b"].num_cached_tokens == 8
    assert all(plan.page_copies == [] for plan in drive.plans)


@DEPTHS
def test_generated_tokens_are_cached_too(depth: int) -> None:
    drive = Drive(depth)
    drive.add(PROMPT, "a", max_tokens=9)
    drive.run()
    drive.add(PROMPT + drive.outputs["a"], "b")
    drive.run()
    drive.check_outputs()
    assert drive.final["b"].num_cached_tokens == 20


def test_every_update_of_a_request_says_how_much_was_cached() -> None:
    drive = Drive(depth=1)
    drive.add(PROMPT, "a", max_tokens=1)
    drive.run()
    drive.add([*PROMPT, 40], "b", max_tokens=3)
    assert [[update.num_cached_tokens for update in drive.step()] for _ in range(3)] == [[12]] * 3


def test_what_a_request_finds_cached_of_itself_after_a_preemption_is_not_reported() -> None:
    drive = Drive(depth=1, num_pages=17)
    drive.add([2] * 20, "a", max_tokens=40)
    drive.add([3] * 20, "b", max_tokens=40)
    drive.run()
    drive.check_outputs()
    resumed = [plan for plan in drive.plans if plan.new_slots][-1]
    assert resumed.request_ids[-1] == "b" and resumed.start_positions[-1] > 0
    assert drive.final["b"].num_cached_tokens == 0


def test_cached_pages_give_way_when_pages_run_out_the_oldest_end_first() -> None:
    drive = Drive(depth=1, num_pages=17)
    drive.add(range(2, 42), "a", max_tokens=1)
    drive.run()
    assert drive.scheduler.stats().num_cached_pages == 10
    drive.add([45] * 28, "b", max_tokens=1)
    drive.run()
    drive.add(range(2, 42), "c", max_tokens=1)
    drive.run()
    drive.check_outputs()
    assert drive.final["c"].num_cached_tokens == 36


def test_without_prefix_caching_nothing_is_shared_or_kept() -> None:
    drive = Drive(enable_prefix_caching=False)
    drive.add(PROMPT, "a")
    drive.run()
    drive.add(PROMPT, "b")
    drive.run()
    drive.check_outputs()
    stats = drive.scheduler.stats()
    assert drive.final["b"].num_cached_tokens == 0
    assert stats.num_free_pages == stats.num_pages and stats.num_prefix_queried_tokens == 0
