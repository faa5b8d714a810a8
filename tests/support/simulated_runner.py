"""A runner without a model, whose every token can be computed by hand.

It keeps what a device keeps (KV pages, a page table and the last token by slot) and reads each context back through
them. A defect in paging, sharing, copying, slots or preemption therefore changes the tokens or raises.

    next token = (31 * sum((i + 1) * context[i]) + len(context)) % vocab_size

where context is prompt and output so far, `i` from 0. While a sequence's stops are held back, the token is moved up by
one (modulo vocab_size) until it is none of its suppressed ids.
"""

import threading
import time
from collections.abc import Collection, Sequence
from typing import Literal

from jaxserve.step import StepPlan


def next_token(context: Sequence[int], vocab_size: int, suppressed: Collection[int] = ()) -> int:
    """The token after a context; see the module's formula."""
    token = (31 * sum((i + 1) * t for i, t in enumerate(context)) + len(context)) % vocab_size
    while token in suppressed:
        token = (token + 1) % vocab_size
    return token


def expected_tokens(
    prompt_token_ids: Sequence[int],
    n: int,
    vocab_size: int,
    *,
    stop_token_ids: Collection[int] = (),
    min_tokens: int = 0,
) -> list[int]:
    """The output that a request must get.

    Args:
        prompt_token_ids: its prompt.
        n: most tokens: max_tokens, or fewer if the context is full before.
        vocab_size: that of the runner.
        stop_token_ids: ids that end it, the model's own included unless ignored; the last token may be one.
        min_tokens: number of tokens before which none of them can be sampled.
    """
    context = list(prompt_token_ids)
    output: list[int] = []
    while len(output) < n:
        suppressed = stop_token_ids if len(output) < min_tokens else ()
        token = next_token(context, vocab_size, suppressed)
        context.append(token)
        output.append(token)
        if token in stop_token_ids and len(output) > min_tokens:
            break
    return output


class SimulatedDeviceError(RuntimeError):
    """The failure that a test asked for."""


class SimulatedHandle:
    """A step in flight: its tokens and the time at which they may be seen."""

    def __init__(self, step_id: int, token_ids: list[int], ready_at: float) -> None:
        self.step_id = step_id
        self.token_ids = token_ids
        self.ready_at = ready_at


class SimulatedRunner:
    """Implements `jaxserve.step.Runner`.

    Args:
        num_pages: pages of the pool, page 0 included.
        page_size: tokens a page.
        max_num_seqs: number of slots.
        vocab_size: sampled ids are below it.
        step_delay: seconds that the device takes for a step; steps queue up behind each other.
        fail_at_step: step_id that raises SimulatedDeviceError. None never fails.
        fail_in: the call that raises it.
        hang_at_step: step_id that is never over. None lets all end.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        max_num_seqs: int,
        vocab_size: int,
        *,
        step_delay: float = 0.0,
        fail_at_step: int | None = None,
        fail_in: Literal["dispatch", "collect"] = "collect",
        hang_at_step: int | None = None,
    ) -> None:
        self.vocab_size = vocab_size
        self.page_size = page_size
        self.num_pages = num_pages
        self.step_delay = step_delay
        self.fail_at_step = fail_at_step
        self.fail_in = fail_in
        self.hang_at_step = hang_at_step
        # Each slot of a page holds (position, token), so that a page read at the wrong place is noticed.
        self.kv: list[list[tuple[int, int] | None]] = [[None] * page_size for _ in range(num_pages)]
        self.page_table: list[dict[int, int]] = [{} for _ in range(max_num_seqs)]
        self.last_token: list[int | None] = [None] * max_num_seqs
        self.suppressed: list[tuple[int, ...]] = [()] * max_num_seqs
        self.num_steps = 0
        self._busy_until = 0.0

    def dispatch(self, plan: StepPlan) -> SimulatedHandle:
        """Run a step in full, in the device's order: copies, then all writes, then all reads."""
        self._check(plan)
        if plan.step_id == self.fail_at_step and self.fail_in == "dispatch":
            raise SimulatedDeviceError(f"step {plan.step_id} was made to fail")
        contents = [(target, list(self.kv[source])) for source, target in plan.page_copies]
        for target, content in contents:
            self.kv[target] = content
        for assignment in plan.new_slots:
            self.suppressed[assignment.slot] = assignment.suppressed_token_ids
            self.last_token[assignment.slot] = None
            self.page_table[assignment.slot].clear()
        for slot, index, page in plan.page_table_updates:
            assert 0 < page < self.num_pages, f"page {page} is not the scheduler's to hand out"
            self.page_table[slot][index] = page
        self._write(plan)
        token_ids = [self._sample(plan, i) for i in range(len(plan.slots))]
        for slot, samples, token in zip(plan.slots, plan.samples, token_ids, strict=True):
            if samples:
                self.last_token[slot] = token
        self.num_steps += 1
        self._busy_until = max(time.monotonic(), self._busy_until) + self.step_delay
        return SimulatedHandle(plan.step_id, token_ids, self._busy_until)

    def collect(self, handle: SimulatedHandle) -> list[int]:
        """Wait until the step is over; 0 stands where nothing was sampled."""
        if handle.step_id == self.hang_at_step:
            threading.Event().wait()
        if self.step_delay and (wait := handle.ready_at - time.monotonic()) > 0:
            time.sleep(wait)
        if handle.step_id == self.fail_at_step and self.fail_in == "collect":
            raise SimulatedDeviceError(f"step {handle.step_id} was made to fail")
        return handle.token_ids

    def close(self) -> bool:
        """There is nothing to stop."""
        return True

    def _check(self, plan: StepPlan) -> None:
        size = len(plan.slots)
        columns = (plan.request_ids, plan.query_lens, plan.start_positions, plan.samples, plan.feeds_back)
        assert size > 0 and all(len(column) == size for column in (*columns, plan.suppress_stops)), "ragged plan"
        assert len(set(plan.slots)) == size, "a slot stands twice in one step"
        given = sum(n for n, back in zip(plan.query_lens, plan.feeds_back, strict=True) if not back)
        assert given == len(plan.token_ids), "token_ids do not match query_lens"
        assert min(plan.query_lens) >= 1, "a sequence without tokens"

    def _write(self, plan: StepPlan) -> None:
        offset = 0
        for slot, length, start, feeds_back in zip(
            plan.slots, plan.query_lens, plan.start_positions, plan.feeds_back, strict=True
        ):
            if feeds_back:
                last = self.last_token[slot]
                assert length == 1 and last is not None, "feeds back a token that was never sampled"
                tokens = [last]
            else:
                tokens = plan.token_ids[offset : offset + length]
                offset += length
            for position, token in enumerate(tokens, start):
                index, row = divmod(position, self.page_size)
                self.kv[self.page_table[slot][index]][row] = (position, token)

    def _sample(self, plan: StepPlan, i: int) -> int:
        if not plan.samples[i]:
            return 0
        slot = plan.slots[i]
        context: list[int] = []
        for position in range(plan.start_positions[i] + plan.query_lens[i]):
            index, row = divmod(position, self.page_size)
            entry = self.kv[self.page_table[slot][index]][row]
            assert entry is not None and entry[0] == position, f"slot {slot} reads position {position}, finds {entry}"
            context.append(entry[1])
        return next_token(context, self.vocab_size, self.suppressed[slot] if plan.suppress_stops[i] else ())
