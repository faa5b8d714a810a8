"""StepPlan: all that the scheduler says to the runner about one step of the model.

Columns instead of objects: entry i of each per-sequence list belongs to the i-th scheduled sequence, so the runner
turns each into an array in one call. Pure Python; no jax, no numpy.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

from jaxserve.request import SamplingParams


@dataclass(slots=True)
class SlotAssignment:
    """A request that enters the batch: the runner keeps its sampling parameters under its slot.

    Attributes:
        slot: row of the device state (last token, page table), from 0 to max_num_seqs - 1.
        seed: the seed to sample with: the request's own, or one drawn for it.
        suppressed_token_ids: ids that cannot be sampled while `StepPlan.suppress_stops` is set for the sequence.
    """

    slot: int
    params: SamplingParams
    seed: int
    suppressed_token_ids: tuple[int, ...] = ()


@dataclass(slots=True)
class StepPlan:
    """What one step computes.

    Attributes:
        step_id: counts up from 0.
        request_ids: the scheduled sequences, S of them.
        slots: each sequence's row of the device state.
        query_lens: tokens each sequence computes this step; their sum is within the token budget.
        start_positions: position of the first of them, i.e. how many tokens of the sequence have keys and values.
        samples: whether the token after the last computed one is sampled (False inside a chunked prompt).
        feeds_back: whether the one token computed is the slot's last sampled token, which only the device knows yet.
        token_ids: the other tokens to compute, all sequences one after the other, those that feed back left out.
        suppress_stops: whether end and stop tokens are held back (min_tokens not reached).
        page_table_updates: (slot, index in the slot's page list, page) of each page that joined a sequence.
        page_copies: (from, to) pages to copy before the step (copy on write).
        new_slots: requests that enter the batch with this step, resumed ones included.
    """

    step_id: int
    request_ids: list[str] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    query_lens: list[int] = field(default_factory=list)
    start_positions: list[int] = field(default_factory=list)
    samples: list[bool] = field(default_factory=list)
    feeds_back: list[bool] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    suppress_stops: list[bool] = field(default_factory=list)
    page_table_updates: list[tuple[int, int, int]] = field(default_factory=list)
    page_copies: list[tuple[int, int]] = field(default_factory=list)
    new_slots: list[SlotAssignment] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step."""
        return sum(self.query_lens)


# A step in flight on the device; only the runner that made it looks inside.
type StepHandle = Any


class Runner(Protocol):
    """What the engine needs of a runner. The real one is `jaxserve.runner.ModelRunner`; tests use arithmetic."""

    def dispatch(self, plan: StepPlan) -> StepHandle:
        """Start a step and return at once. Steps run in the order of their dispatch."""
        ...

    def collect(self, handle: StepHandle) -> list[int]:
        """Wait for a step; the sampled token of each of its S sequences (of no meaning where it did not sample)."""
        ...

    def close(self) -> bool:
        """Stop whatever the runner does besides steps; False if it cannot be stopped now."""
        ...
