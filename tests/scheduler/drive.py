"""Runs a scheduler against the simulated device, checking every invariant after every call."""

from collections import deque
from collections.abc import Sequence
from typing import Any

from jaxserve.config import SchedulerConfig
from jaxserve.request import FinishReason, Request, RequestUpdate, SamplingParams
from jaxserve.scheduler.scheduler import Scheduler
from jaxserve.step import StepPlan
from tests.support.simulated_runner import SimulatedHandle, SimulatedRunner, expected_tokens

VOCAB_SIZE = 50
EOS = 1


def make_config(**settings: Any) -> SchedulerConfig:
    """A small pool: 4-token pages, contexts of 64 tokens."""
    defaults = {"num_pages": 65, "page_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 64}
    return SchedulerConfig(**(defaults | settings))


class Drive:
    """A scheduler, its device and what came out for each request.

    Args:
        depth: steps that may be in flight; 1 is synchronous, 2 is what the engine does.
        settings: of SchedulerConfig, beside those of make_config.
    """

    def __init__(self, depth: int = 2, vocab_size: int = VOCAB_SIZE, **settings: Any) -> None:
        self.config = make_config(**settings)
        self.scheduler = Scheduler(self.config, (EOS,))
        self.runner = SimulatedRunner(
            self.config.num_pages, self.config.page_size, self.config.max_num_seqs, vocab_size
        )
        self.vocab_size = vocab_size
        self.depth = depth
        self.now = 0.0
        self.requests: dict[str, Request] = {}
        self.outputs: dict[str, list[int]] = {}
        self.final: dict[str, RequestUpdate] = {}
        self.plans: list[StepPlan] = []
        self.in_flight: deque[tuple[StepPlan, SimulatedHandle]] = deque()

    def add(
        self,
        prompt: Sequence[int],
        request_id: str | None = None,
        *,
        priority: int = 0,
        timeout: float | None = None,
        **params: Any,
    ) -> str:
        """Submit a request; it goes on to max_tokens, whatever it samples, unless told otherwise."""
        request_id = request_id or f"r{len(self.requests)}"
        request = Request(
            request_id=request_id,
            prompt_token_ids=list(prompt),
            params=SamplingParams(**({"max_tokens": 8, "ignore_eos": True} | params)),
            priority=priority,
            timeout=timeout,
        )
        self.scheduler.add_request(request, now=self.now)
        self.scheduler.check_integrity()
        self.requests[request_id] = request
        self.outputs[request_id] = []
        return request_id

    def abort(self, *request_ids: str) -> None:
        """Abort, and check that the pages are accounted for at once."""
        self.scheduler.abort_requests(request_ids)
        self.scheduler.check_integrity()

    def plan(self) -> StepPlan | None:
        """Plan a step and start it."""
        plan = self.scheduler.schedule()
        self.scheduler.check_integrity()
        if plan is not None:
            assert plan.num_tokens <= self.config.max_num_batched_tokens
            assert len(plan.slots) <= self.config.max_num_seqs
            self.plans.append(plan)
            self.in_flight.append((plan, self.runner.dispatch(plan)))
        return plan

    def collect(self) -> list[RequestUpdate]:
        """Take in the oldest step in flight."""
        plan, handle = self.in_flight.popleft()
        updates = self.scheduler.update(plan, self.runner.collect(handle))
        self.scheduler.check_integrity()
        self.record(updates)
        return updates

    def record(self, updates: list[RequestUpdate]) -> None:
        """Note what the updates brought; nothing may come after the last one of a request."""
        for update in updates:
            assert update.request_id not in self.final, "an update after the final one"
            self.outputs[update.request_id] += update.token_ids
            if update.finish_reason is not None:
                self.final[update.request_id] = update

    def expire(self, now: float) -> list[RequestUpdate]:
        """Let the clock stand at `now`."""
        self.now = now
        updates = self.scheduler.expire(now)
        self.scheduler.check_integrity()
        self.record(updates)
        return updates

    def step(self) -> list[RequestUpdate]:
        """As EngineCore.step."""
        plan = self.plan()
        if self.in_flight and (plan is None or len(self.in_flight) >= self.depth):
            return self.collect()
        return []

    def run(self, max_steps: int = 5000) -> None:
        """Step until nothing is left; a scheduler that makes no progress fails here."""
        for _ in range(max_steps):
            if not (self.in_flight or self.scheduler.has_unfinished):
                break
            self.step()
        else:
            raise AssertionError(f"requests are unfinished after {max_steps} steps")
        stats = self.scheduler.stats()
        assert stats.num_used_pages == 0 and stats.num_running == 0 and stats.num_waiting == 0

    def expected(self, request_id: str) -> list[int]:
        """The whole output that the request must get if nothing cuts it short."""
        request = self.requests[request_id]
        params = request.params
        room = self.config.max_model_len - len(request.prompt_token_ids)
        stops = set(params.stop_token_ids or ()) | (set() if params.ignore_eos else {EOS})
        return expected_tokens(
            request.prompt_token_ids,
            room if params.max_tokens is None else min(room, params.max_tokens),
            self.vocab_size,
            stop_token_ids=stops,
            min_tokens=params.min_tokens,
        )

    def check_outputs(self) -> None:
        """Every request got exactly its tokens, or the beginning of them if it was ended from outside."""
        for request_id, output in self.outputs.items():
            expected = self.expected(request_id)
            final = self.final.get(request_id)
            if final is None or final.finish_reason in (FinishReason.ABORT, FinishReason.DEADLINE):
                assert output == expected[: len(output)], request_id
            else:
                assert output == expected, request_id
                is_stop = final.finish_reason is FinishReason.STOP
                assert final.stop_token_id == (output[-1] if is_stop else None)
