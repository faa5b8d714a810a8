"""The scheduler: which requests run, and what each step computes for them. Pure Python, never imports jax."""

import random
from collections.abc import Iterable

import msgspec

from jaxserve.config import SchedulerConfig
from jaxserve.errors import DuplicateRequestError, InvalidRequestError, QueueFullError
from jaxserve.request import FinishReason, Request, RequestUpdate
from jaxserve.scheduler.batch import Batch
from jaxserve.scheduler.integrity import check_scheduler
from jaxserve.scheduler.plan_builder import PlanBuilder
from jaxserve.scheduler.sequence import Sequence, SequenceState
from jaxserve.scheduler.waiting_queue import AdmissionRate, DeadlineHeap, WaitingQueue
from jaxserve.step import StepPlan


class SchedulerStats(msgspec.Struct, kw_only=True):
    """Counts at one moment, for GetServerInfo, metrics and tests.

    Attributes:
        num_waiting: requests queued, preempted ones included.
        num_running: requests in the batch.
        num_finished: requests ended since the start, aborted ones included.
        num_preemptions: times a running request had to give up its pages.
        num_steps: steps planned.
        num_pages: pages that can be handed out; the next three add up to it.
        num_free_pages: pages without contents.
        num_cached_pages: pages nobody holds, kept for prefix hits and evicted when needed.
        num_used_pages: pages held by running requests.
        num_kv_slots: token slots in the pages of the running requests, a shared page counted for each of them.
        num_kv_tokens: tokens that fill those slots.
        num_prefix_queried_tokens: prompt tokens looked up in the prefix cache at first admission.
        num_prefix_hit_tokens: how many of them were found there.
    """

    num_waiting: int
    num_running: int
    num_finished: int
    num_preemptions: int
    num_steps: int
    num_pages: int
    num_free_pages: int
    num_cached_pages: int
    num_used_pages: int
    num_kv_slots: int
    num_kv_tokens: int
    num_prefix_queried_tokens: int
    num_prefix_hit_tokens: int


class Scheduler:
    """Continuous batching over a paged KV pool. Not thread-safe.

    A step may be planned before the results of those before it are known: `schedule` then counts on the tokens in
    flight, whose values only the device has. What it cannot foresee, a stop token, shows in `update` one step late, and
    the surplus token is dropped.

    Args:
        config: sizes and policy.
        eos_token_ids: the model's own end-of-sequence ids.
    """

    def __init__(self, config: SchedulerConfig, eos_token_ids: tuple[int, ...]) -> None:
        self.config = config
        self._eos_token_ids = eos_token_ids
        self._batch = Batch(config)
        self._waiting = WaitingQueue()
        self._unfinished: dict[str, Sequence] = {}
        self._deadlines = DeadlineHeap()
        self._admissions = AdmissionRate()
        self._random = random.Random(config.seed)
        self._in_flight: dict[int, list[Sequence | None]] = {}
        self._num_arrived = 0
        self._num_finished = 0
        self._num_preemptions = 0
        self._queried_tokens = 0
        self._hit_tokens = 0
        # Static batching: how many more requests the batch that is being put together takes.
        self._static_places = 0

    @property
    def has_unfinished(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self._unfinished)

    def add_request(self, request: Request, *, now: float) -> None:
        """Queue a validated request.

        Args:
            request: what to generate from.
            now: a monotonic clock, in seconds; its time limits count from here.

        Raises:
            QueueFullError: the admission limit on waiting requests is reached.
            DuplicateRequestError: an unfinished request has the same id.
            InvalidRequestError: the prompt is empty or fills the context.
        """
        config = self.config
        if request.request_id in self._unfinished:
            raise DuplicateRequestError(f"request {request.request_id!r} is still in flight; choose another id")
        if not 0 < len(request.prompt_token_ids) < config.max_model_len:
            raise InvalidRequestError(
                "prompt", f"must have from 1 to {config.max_model_len - 1} tokens, got {len(request.prompt_token_ids)}"
            )
        self._admissions.tick(now)
        limit = config.max_num_queued_requests
        if limit is not None and len(self._waiting) >= limit:
            raise QueueFullError(limit, self._admissions.retry_after(len(self._waiting), now=now))
        seed = request.params.seed
        seq = Sequence(
            request,
            order=(request.priority if config.scheduling_policy == "priority" else 0, self._num_arrived),
            seed=self._random.getrandbits(63) if seed is None else seed,
            eos_token_ids=self._eos_token_ids,
            max_model_len=config.max_model_len,
        )
        self._num_arrived += 1
        self._unfinished[seq.request_id] = seq
        self._waiting.push(seq)
        self._deadlines.push(seq, now=now, timeout=request.timeout, num_live=len(self._unfinished))

    def abort_requests(self, request_ids: Iterable[str]) -> None:
        """End requests at once and free their pages. They get no update; unknown ids are passed over."""
        for request_id in request_ids:
            seq = self._unfinished.get(request_id)
            if seq is not None:
                self._finish(seq)
        self._batch.drop_finished()

    def expire(self, now: float) -> list[RequestUpdate]:
        """End the requests whose time has run out; their tokens in flight are dropped.

        Args:
            now: the clock of `add_request`, in seconds.

        Returns:
            One update each: `deadline` if their own time limit passed, `abort` if the client's timeout did.
        """
        self._admissions.tick(now)
        expired = self._deadlines.pop_expired(now)
        if not expired:
            return []
        for seq, _ in expired:
            self._finish(seq)
        self._batch.drop_finished()
        return [RequestUpdate(seq.request_id, [], reason, None, seq.num_cached_tokens) for seq, reason in expired]

    def schedule(self) -> StepPlan | None:
        """Plan the next step: every running sequence first, then waiting ones as budget, slots and pages allow.

        Returns:
            None if there is nothing to compute, which may be because all sequences await tokens in flight.
        """
        batch = self._batch
        batch.step_id += 1
        builder = PlanBuilder()
        preempted = batch.schedule_running(builder)
        if preempted:
            # Nobody is let in on the pages just taken from others.
            self._num_preemptions += len(preempted)
            for seq in preempted:
                self._waiting.push(seq)
        else:
            self._admit_waiting(builder)
        batch.end_plan()
        if not builder.scheduled:
            batch.step_id -= 1
            return None
        self._in_flight[batch.step_id] = builder.sampling_sequences()
        return builder.build(batch.step_id)

    def _admit_waiting(self, builder: PlanBuilder) -> None:
        """Admit in order until one does not fit; those behind it wait too, so that none is starved."""
        is_static = self.config.batching == "static"
        if is_static and not self._batch.running:
            self._static_places = self.config.max_num_seqs
        while (seq := self._waiting.peek()) is not None:
            if seq.num_awaited or (is_static and self._static_places == 0):
                return
            is_first = not seq.admitted
            if not self._batch.admit(seq, builder):
                break
            self._waiting.pop()
            self._admissions.count()
            self._static_places -= 1
            if is_first and self.config.enable_prefix_caching:
                self._queried_tokens += seq.prompt_len
                self._hit_tokens += seq.num_cached_tokens
        if is_static and builder.num_tokens < self.config.max_num_batched_tokens:
            self._static_places = 0  # closed for another reason than the budget of this step

    def update(self, plan: StepPlan, sampled_token_ids: list[int]) -> list[RequestUpdate]:
        """Take in the results of a step, in the order of `schedule`.

        Args:
            plan: what `schedule` returned.
            sampled_token_ids: one token for each sequence of the plan, of no meaning where it did not sample.

        Returns:
            What each sequence gained that is not finished already.
        """
        updates: list[RequestUpdate] = []
        append = updates.append
        running = SequenceState.RUNNING
        num_finished = self._num_finished
        for seq, token in zip(self._in_flight.pop(plan.step_id), sampled_token_ids, strict=True):
            if seq is None:
                continue
            if seq.state is not running:
                if seq.state is SequenceState.FINISHED:
                    continue
                seq.num_awaited -= 1
            token_ids = seq.token_ids
            token_ids.append(token)
            if token in seq.stop_token_ids or len(token_ids) >= seq.max_length:
                append(self._end_check(seq, token))
            else:
                append(RequestUpdate(seq.request_id, [token], None, None, seq.num_cached_tokens))
        if num_finished != self._num_finished:
            self._batch.drop_finished()
        return updates

    def _end_check(self, seq: Sequence, token: int) -> RequestUpdate:
        """The update of a sequence that may have ended with this token."""
        reason = stop_token_id = None
        num_outputs = len(seq.token_ids) - seq.prompt_len
        if token in seq.stop_token_ids and num_outputs > seq.params.min_tokens:
            reason, stop_token_id = FinishReason.STOP, token
        elif len(seq.token_ids) >= seq.max_length:
            reason = FinishReason.LENGTH
        if reason is not None:
            self._finish(seq)
        return RequestUpdate(seq.request_id, [token], reason, stop_token_id, seq.num_cached_tokens)

    def _finish(self, seq: Sequence) -> None:
        """End a sequence; a running one stays in the batch's list until `drop_finished`."""
        if seq.state is SequenceState.RUNNING:
            self._batch.release(seq, SequenceState.FINISHED)
        else:
            seq.state = SequenceState.FINISHED
            self._waiting.count_out()
        del self._unfinished[seq.request_id]
        self._num_finished += 1

    def stats(self) -> SchedulerStats:
        """Counts of requests, pages and tokens at this moment."""
        allocator = self._batch.allocator
        running = self._batch.running
        return SchedulerStats(
            num_waiting=len(self._waiting),
            num_running=len(running),
            num_finished=self._num_finished,
            num_preemptions=self._num_preemptions,
            num_steps=self._batch.step_id + 1,
            num_pages=allocator.num_pages,
            num_free_pages=allocator.num_free,
            num_cached_pages=allocator.num_cached,
            num_used_pages=allocator.num_used,
            num_kv_slots=sum(len(seq.pages) for seq in running) * self.config.page_size,
            num_kv_tokens=sum(seq.num_computed for seq in running),
            num_prefix_queried_tokens=self._queried_tokens,
            num_prefix_hit_tokens=self._hit_tokens,
        )

    def check_integrity(self) -> None:
        """Check every invariant of slots, pages, queue and prefix table; for tests, not for every step in service.

        Raises:
            IntegrityError: one is violated.
        """
        check_scheduler(self.config, self._batch, self._waiting, self._unfinished)
