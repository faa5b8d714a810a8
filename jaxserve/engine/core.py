"""EngineCore: schedule a step, start it, and collect the one before it."""

import time
from collections import deque
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from jaxserve.request import Request, RequestUpdate
from jaxserve.scheduler.scheduler import Scheduler, SchedulerStats
from jaxserve.step import Runner, StepHandle, StepPlan

# Steps started but not collected. With one in flight while the next is scheduled, the device never waits for Python.
PIPELINE_DEPTH = 2


class EngineCore:
    """Drives one scheduler and one runner. Not thread-safe: one thread calls everything.

    Args:
        scheduler: decides what each step computes.
        runner: computes it.
        step_timeout_s: seconds after which a step that has not ended is taken for hung, by whoever watches over this
            core (`jaxserve.engine.watchdog`); None if never.

    Attributes:
        while_waiting: entered while a step is waited for.
    """

    def __init__(self, scheduler: Scheduler, runner: Runner, step_timeout_s: float | None = None) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.step_timeout_s = step_timeout_s
        self.while_waiting: AbstractContextManager[object] = nullcontext()
        self._in_flight: deque[tuple[StepPlan, StepHandle]] = deque()

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._in_flight) or self.scheduler.has_unfinished

    def add_request(self, request: Request) -> None:
        """Queue a validated request.

        Raises:
            QueueFullError: the admission limit is reached.
            DuplicateRequestError: the id is in flight already.
        """
        self.scheduler.add_request(request, now=time.monotonic())

    def abort_requests(self, request_ids: Iterable[str]) -> None:
        """End requests at once and free their pages; unknown ids are passed over. They get no further update."""
        self.scheduler.abort_requests(request_ids)

    def step(self) -> list[RequestUpdate]:
        """Start the next step, then collect the oldest one if enough are in flight.

        Returns:
            What happened to each request that gained tokens or ended.
        """
        updates = self.scheduler.expire(time.monotonic())
        plan = self.scheduler.schedule()
        if plan is not None:
            self._in_flight.append((plan, self.runner.dispatch(plan)))
        if self._in_flight and (plan is None or len(self._in_flight) >= PIPELINE_DEPTH):
            done, handle = self._in_flight.popleft()
            with self.while_waiting:
                tokens = self.runner.collect(handle)
            updates += self.scheduler.update(done, tokens)
        return updates

    def close(self) -> bool:
        """Stop what the runner does besides steps; False if that goes on."""
        return self.runner.close()

    def stats(self) -> SchedulerStats:
        """Counts of requests and pages, for GetServerInfo and metrics."""
        return self.scheduler.stats()
