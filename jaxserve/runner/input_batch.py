"""InputBatch: what the host keeps for each slot, and the packing of a StepPlan into one array."""

import numpy as np

from jaxserve.request import MAX_STOP_TOKEN_IDS
from jaxserve.runner.buckets import Bucket, SamplerKind
from jaxserve.runner.packing import packed_layout
from jaxserve.step import SlotAssignment, StepPlan

# Past every vocabulary: the device drops it.
_NO_TOKEN = np.iinfo(np.int32).max


class InputBatch:
    """Sampling parameters by slot, as columns, so that a step gathers them with one index.

    Args:
        max_num_seqs: number of slots.
    """

    def __init__(self, max_num_seqs: int) -> None:
        self._num_slots = max_num_seqs
        self._floats = {name: np.zeros(max_num_seqs, np.float32) for name in ("temperature", "top_p", "min_p")}
        self._ints = {name: np.zeros(max_num_seqs, np.int32) for name in ("top_k", "seed_high", "seed_low")}
        self._suppressed_ids = np.full((max_num_seqs, MAX_STOP_TOKEN_IDS), _NO_TOKEN, np.int32)
        self._samples = np.zeros(max_num_seqs, np.bool_)

    def assign(self, slots: list[SlotAssignment]) -> None:
        """Remember the parameters of requests that enter the batch."""
        for entry in slots:
            slot, params = entry.slot, entry.params
            self._floats["temperature"][slot] = params.temperature
            self._floats["top_p"][slot] = params.top_p
            self._floats["min_p"][slot] = params.min_p
            # 0 and -1 keep all tokens, as does any k past the vocabulary.
            self._ints["top_k"][slot] = min(params.top_k, _NO_TOKEN) if params.top_k > 0 else _NO_TOKEN
            seed = entry.seed & (2**64 - 1)
            halves = np.array([seed >> 32, seed & (2**32 - 1)], np.uint32).view(np.int32)
            self._ints["seed_high"][slot], self._ints["seed_low"][slot] = halves
            self._suppressed_ids[slot] = _NO_TOKEN
            self._suppressed_ids[slot, : len(entry.suppressed_token_ids)] = entry.suppressed_token_ids
            self._samples[slot] = not params.greedy

    def sampler_kind(self, plan: StepPlan) -> SamplerKind:
        """The least sampler that serves every sequence of the step."""
        if any(plan.suppress_stops) or self._samples[plan.slots].any():
            return SamplerKind.FULL
        return SamplerKind.GREEDY

    def pack(self, plan: StepPlan, bucket: Bucket) -> np.ndarray:
        """The packed array [layout.size] int32 of a step whose page-table updates fit the bucket."""
        layout = packed_layout(bucket)
        packed = np.zeros(layout.size, np.int32)
        fields = layout.views(packed)
        num_seqs = len(plan.slots)
        query_lens = np.array(plan.query_lens, np.int32)
        slots = np.array(plan.slots, np.int32)

        starts = np.zeros(bucket.num_seqs + 1, np.int32) if bucket.decode_only else fields["query_start_loc"]
        np.cumsum(query_lens, out=starts[1 : num_seqs + 1])
        num_tokens = starts[num_seqs]
        starts[num_seqs + 1 :] = num_tokens
        self._pack_token_ids(plan, fields["token_ids"], starts, slots, int(num_tokens))
        fields["seq_lens"][:num_seqs] = query_lens + np.array(plan.start_positions, np.int32)
        fields["slots"][:num_seqs] = slots
        fields["slots"][num_seqs:] = self._num_slots

        num_updates = len(plan.page_table_updates)
        fields["page_updates"][num_updates:, 0] = self._num_slots
        if num_updates:
            fields["page_updates"][:num_updates] = plan.page_table_updates
        if bucket.sampler is SamplerKind.FULL:
            self._pack_sampling(plan, fields, slots)
        return packed

    def _pack_token_ids(
        self, plan: StepPlan, out: np.ndarray, starts: np.ndarray, slots: np.ndarray, num_tokens: int
    ) -> None:
        feeds_back = np.array(plan.feeds_back, np.bool_)
        rows = starts[: len(slots)][feeds_back]
        if plan.token_ids:
            known = np.ones(num_tokens, np.bool_)
            known[rows] = False
            out[:num_tokens][known] = plan.token_ids
        out[rows] = ~slots[feeds_back]

    def _pack_sampling(self, plan: StepPlan, fields: dict[str, np.ndarray], slots: np.ndarray) -> None:
        num_seqs = len(slots)
        for name, column in (self._floats | self._ints).items():
            fields[name][:num_seqs] = column[slots]
        fields["suppress"][:num_seqs] = plan.suppress_stops
        fields["suppressed_ids"][:num_seqs] = self._suppressed_ids[slots]
