"""Plans of steps written by hand, for tests of the runner without a scheduler."""

from dataclasses import dataclass

from jaxserve.request import SamplingParams
from jaxserve.step import SlotAssignment, StepPlan


@dataclass
class Entry:
    """One sequence of a plan. Without tokens it feeds back the slot's last one."""

    slot: int
    start: int
    tokens: list[int] | None = None
    new_pages: tuple[tuple[int, int], ...] = ()  # (index in the sequence, page)
    params: SamplingParams | None = None  # given when it enters the batch
    seed: int = 0


def plan(step_id: int, *entries: Entry, copies: list[tuple[int, int]] | None = None) -> StepPlan:
    """The plan of these sequences, all of which sample."""
    return StepPlan(
        step_id,
        request_ids=[str(e.slot) for e in entries],
        slots=[e.slot for e in entries],
        query_lens=[len(e.tokens or [0]) for e in entries],
        start_positions=[e.start for e in entries],
        samples=[True] * len(entries),
        feeds_back=[e.tokens is None for e in entries],
        token_ids=[token for e in entries for token in e.tokens or []],
        suppress_stops=[False] * len(entries),
        page_table_updates=[(e.slot, index, page) for e in entries for index, page in e.new_pages],
        page_copies=copies or [],
        new_slots=[SlotAssignment(e.slot, e.params, e.seed) for e in entries if e.params is not None],
    )
