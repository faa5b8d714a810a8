"""The running sequences: their slots, their pages, and what each computes next."""

from bisect import insort
from itertools import count, repeat
from operator import attrgetter

from jaxserve.config import SchedulerConfig
from jaxserve.scheduler.page_allocator import PageAllocator
from jaxserve.scheduler.plan_builder import PlanBuilder
from jaxserve.scheduler.prefix_cache import PrefixCache
from jaxserve.scheduler.sequence import Sequence, SequenceState

_BY_ORDER = attrgetter("order")


class Batch:
    """The sequences that hold a slot and pages, the first in order first.

    Iteration-level scheduling (Orca, Yu et al. 2022) with chunked prefill (Sarathi-Serve, Agrawal et al. 2024): each
    step takes one token of every decoding sequence and fills the rest of its budget with chunks of prompts.

    Slots and pages can be given to another sequence while a step that uses them is in flight, since steps run in
    order: what the old owner still writes, the new one overwrites or never reads.

    Attributes:
        running: the sequences, sorted by `order`, so that the last one is the first to be preempted.
        free_slots: slots without owner, a stack.
        step_id: the step being planned, or planned last.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.running: list[Sequence] = []
        self.free_slots = list(range(config.max_num_seqs - 1, -1, -1))
        self.cache = PrefixCache(config.num_pages, config.page_size)
        self.step_id = -1
        self.allocator: PageAllocator = self.cache.allocator
        self._page_size = config.page_size
        self._budget = config.max_num_batched_tokens
        self._caching = config.enable_prefix_caching
        self._copy_sources: list[int] = []
        self._whole_context_pages = -(-config.max_model_len // config.page_size) if config.reserve_whole_context else 0
        # Room for running sequences to grow before an admission would force one of them out again.
        self._watermark = self.allocator.num_pages // 100

    def schedule_running(self, builder: PlanBuilder) -> list[Sequence]:
        """Plan the next tokens of every running sequence.

        Returns:
            The sequences preempted to make room, which have left the batch and wait now.
        """
        preempted: list[Sequence] = []
        running = self.running
        scheduled = builder.scheduled
        skipped = 0
        # Preemption takes sequences off the end, never one that was visited, so the iteration stays valid.
        for seq in running:
            position = seq.num_computed
            if position != seq.plain_until:
                seq.num_computed = position + 1
                scheduled.append(seq)
            elif seq.prefilling:
                # Every sequence after this one keeps a token of the budget: prompts never hold up decodes.
                behind = len(running) - len(scheduled) - skipped - 1
                self._schedule_chunk(seq, builder, self._budget - builder.num_tokens - behind, preempted)
            elif not self._schedule_decode(seq, builder, preempted):
                skipped += 1
        return preempted

    def _schedule_decode(self, seq: Sequence, builder: PlanBuilder, preempted: list[Sequence]) -> bool:
        """Plan one token of a sequence that needs a page, an end check or stops held back; False if it does not run."""
        position = seq.num_computed
        if position + 1 >= seq.max_length:
            return False  # the token that fills its length is in flight
        if position == len(seq.pages) * self._page_size:
            self.register_full_pages(seq)
            if not self.allocator.num_available and not self._make_room(seq, 1, preempted):
                return False
            page = self.allocator.allocate_one()
            builder.page_table_updates.append((seq.slot, len(seq.pages), page))
            seq.pages.append(page)
        if position < seq.suppress_until:
            builder.suppress_next()
        builder.scheduled.append(seq)
        seq.num_computed = position + 1
        self._set_plain_until(seq)
        return True

    def _schedule_chunk(self, seq: Sequence, builder: PlanBuilder, limit: int, preempted: list[Sequence]) -> bool:
        """Plan the next chunk of known tokens, at most `limit`; False if the sequence was preempted instead."""
        start = seq.num_computed
        stop = min(len(seq.token_ids), start + limit)
        num_new = -(-stop // self._page_size) - len(seq.pages)
        if num_new > 0:
            if not self._make_room(seq, num_new, preempted):
                return False
            self._add_pages(seq, num_new, builder)
        seq.num_computed = stop
        if builder.add_chunk(seq, start, stop):
            seq.prefilling = False
            self._set_plain_until(seq)
        else:
            seq.plain_until = stop
        # At once, so that sequences of this very step share them: each layer writes all keys before it reads any.
        self.register_full_pages(seq)
        return True

    def _set_plain_until(self, seq: Sequence) -> None:
        position = seq.num_computed
        if position < seq.suppress_until:
            seq.plain_until = position
        else:
            seq.plain_until = min(len(seq.pages) * self._page_size, seq.max_length - 1)

    def _add_pages(self, seq: Sequence, num_pages: int, builder: PlanBuilder) -> None:
        pages = self.allocator.allocate(num_pages)
        builder.page_table_updates.extend(zip(repeat(seq.slot), count(len(seq.pages)), pages))
        seq.pages.extend(pages)

    def _make_room(self, seq: Sequence, num_pages: int, preempted: list[Sequence]) -> bool:
        """Preempt from the end until `num_pages` can be had; False if the sequence itself had to go.

        The first sequence is never preempted for another, and the pool holds one of any length: it always advances.
        """
        while self.allocator.num_available < num_pages:
            victim = self.running.pop()
            self.release(victim, SequenceState.WAITING)
            preempted.append(victim)
            if victim is seq:
                return False
        return True

    def register_full_pages(self, seq: Sequence) -> None:
        """Offer the prefix cache the pages whose tokens are all known and computed."""
        if not self._caching:
            return
        full = min(seq.num_computed, len(seq.token_ids)) // self._page_size
        first = seq.num_registered
        if first + 1 == full == len(seq.digests) + 1:
            self.cache.insert_next(seq.pages[first], seq.digests, seq.token_ids, self.step_id)
            seq.num_registered = full
        elif first < full:
            self.cache.extend_digests(seq.digests, seq.token_ids, full)
            new = slice(first, full)
            self.cache.insert(seq.pages[new], seq.digests[new], self.step_id)
            seq.num_registered = full

    def admit(self, seq: Sequence, builder: PlanBuilder) -> bool:
        """Let a waiting sequence in with its first chunk, if a slot, the budget and the pages allow it.

        All its known tokens must fit, not only the chunk: half a prompt would sooner be thrown out than finished.
        """
        budget = self._budget - builder.num_tokens
        if budget < 1 or not self.free_slots:
            return False
        hits = self.cache.lookup(seq.digests, seq.token_ids) if self._caching else []
        length = len(seq.token_ids)
        # When all is cached, the last token is still computed, to have logits: in a copy of its page (copy on write).
        copies = bool(hits) and len(hits) * self._page_size == length
        if copies and not (self.cache.can_copy(hits[-1], self.step_id) and self._fits(seq, hits, copies=True)):
            hits.pop()
            copies = False
        if not copies and not self._fits(seq, hits, copies=False):
            return False
        self._enter(seq, hits, builder, copies=copies)
        self._schedule_chunk(seq, builder, budget, [])
        if not self.running or self.running[-1].order < seq.order:
            self.running.append(seq)
        else:
            insort(self.running, seq, key=_BY_ORDER)
        if copies:
            self._copy_sources.append(hits[-1])
        return True

    def end_plan(self) -> None:
        """Let go of the pages that the plan copies from: later plans run after the copies."""
        self.allocator.release(self._copy_sources)
        self._copy_sources.clear()

    def _fits(self, seq: Sequence, hits: list[int], *, copies: bool) -> bool:
        num_new = self._first_pages(seq) - len(hits) + copies
        # Sharing a page that nobody holds takes it from those that could be evicted.
        num_revived = sum(1 for page in hits if self.allocator.ref_count(page) == 0)
        watermark = self._watermark if self.running else 0
        return num_new + num_revived + watermark <= self.allocator.num_available

    def _first_pages(self, seq: Sequence) -> int:
        return self._whole_context_pages or -(-len(seq.token_ids) // self._page_size)

    def _enter(self, seq: Sequence, hits: list[int], builder: PlanBuilder, *, copies: bool) -> None:
        """Give a sequence its slot, the pages found for it and, where reserved ahead, all the others."""
        self.allocator.share(hits)
        num_shared = len(hits) - copies
        num_computed = len(seq.token_ids) - 1 if copies else len(hits) * self._page_size
        slot = self.free_slots.pop()
        pages = hits[:num_shared]
        builder.new_slots.append(seq.enter_batch(slot, pages, num_computed, num_shared))
        builder.page_table_updates.extend((slot, i, page) for i, page in enumerate(pages))
        if copies:
            self._add_pages(seq, 1, builder)
            builder.page_copies.append((hits[-1], seq.pages[-1]))
        if self._whole_context_pages:
            self._add_pages(seq, self._whole_context_pages - len(seq.pages), builder)

    def release(self, seq: Sequence, state: SequenceState) -> None:
        """Take slot and pages back from a sequence that has left `running`, or is about to be dropped from it."""
        self.register_full_pages(seq)
        # Last page first: of a cached chain the end is evicted before the beginning.
        self.allocator.release(reversed(seq.pages))
        self.free_slots.append(seq.slot)
        seq.leave_batch(state)

    def drop_finished(self) -> None:
        """Remove from `running` those that have ended."""
        self.running = [seq for seq in self.running if seq.state is SequenceState.RUNNING]
