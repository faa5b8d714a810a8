"""Collects the sequences of one step and writes them out as the columns of a StepPlan."""

from jaxserve.scheduler.sequence import Sequence
from jaxserve.step import SlotAssignment, StepPlan


class PlanBuilder:
    """What one step computes, as it is decided.

    Most sequences decode: they only stand in `scheduled`, and their columns are written for all of them at once.
    What differs from that (chunks of prompts, stops held back) is noted by index.

    Attributes:
        scheduled: the sequences of the step, `num_computed` advanced already. A decoding one is just appended.
        page_table_updates: as in StepPlan.
        page_copies: as in StepPlan.
        new_slots: as in StepPlan.
    """

    __slots__ = (
        "_chunks",
        "_extra_tokens",
        "_suppressed",
        "_token_ids",
        "new_slots",
        "page_copies",
        "page_table_updates",
        "scheduled",
    )

    def __init__(self) -> None:
        self.scheduled: list[Sequence] = []
        self.page_table_updates: list[tuple[int, int, int]] = []
        self.page_copies: list[tuple[int, int]] = []
        self.new_slots: list[SlotAssignment] = []
        self._chunks: list[tuple[int, int, int, bool]] = []
        self._suppressed: list[int] = []
        self._token_ids: list[int] = []
        self._extra_tokens = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of the step so far."""
        return len(self.scheduled) + self._extra_tokens

    def suppress_next(self) -> None:
        """Hold back the stops of the sequence that is appended next."""
        self._suppressed.append(len(self.scheduled))

    def add_chunk(self, sequence: Sequence, start: int, stop: int) -> bool:
        """Schedule the known tokens from position `start` to `stop`; returns whether the step samples after them."""
        samples = stop == len(sequence.token_ids)
        index = len(self.scheduled)
        self._chunks.append((index, start, stop - start, samples))
        if samples and stop - 1 < sequence.suppress_until:
            self.suppress_next()
        self._token_ids.extend(sequence.token_ids[start:stop])
        self._extra_tokens += stop - start - 1
        self.scheduled.append(sequence)
        return samples

    def build(self, step_id: int) -> StepPlan:
        """The plan of all that was added."""
        scheduled = self.scheduled
        size = len(scheduled)
        query_lens = [1] * size
        start_positions = [seq.num_computed - 1 for seq in scheduled]
        samples = [True] * size
        feeds_back = [True] * size
        suppress_stops = [False] * size
        for index, start, length, is_last in self._chunks:
            query_lens[index] = length
            start_positions[index] = start
            samples[index] = is_last
            feeds_back[index] = False
        for index in self._suppressed:
            suppress_stops[index] = True
        return StepPlan(
            step_id,
            [seq.request_id for seq in scheduled],
            [seq.slot for seq in scheduled],
            query_lens,
            start_positions,
            samples,
            feeds_back,
            self._token_ids,
            suppress_stops,
            self.page_table_updates,
            self.page_copies,
            self.new_slots,
        )

    def sampling_sequences(self) -> list[Sequence | None]:
        """The sequence of each entry that samples, None where it does not."""
        entries: list[Sequence | None] = list(self.scheduled)
        for index, _, _, samples in self._chunks:
            if not samples:
                entries[index] = None
        return entries
