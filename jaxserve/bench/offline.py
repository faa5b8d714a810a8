"""Requests straight through the engine, without a server: as a function, and as a process that frees the device.

`python -m jaxserve.bench.offline` reads one line of JSON (OfflineJob) from standard input and writes one
(OfflineResult) to standard output.
"""

import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec

from jaxserve.bench.figures import RequestTimes
from jaxserve.bench.load_client import write_line
from jaxserve.bench.workload import RequestPlan, exact_length, random_prompts
from jaxserve.config import EngineConfig
from jaxserve.progress import ProgressCallback, no_progress, progress_bars
from jaxserve.request import Request

if TYPE_CHECKING:
    from jaxserve.engine.llm import LLM

WARM_UP_TOKENS = 8
MAX_RUNS = 4


class OfflineJob(msgspec.Struct):
    """Which engine, and which requests are sent all at once, by the name of the case."""

    config: EngineConfig
    cases: dict[str, list[RequestPlan]]


class OfflineResult(msgspec.Struct):
    """Seconds until the engine was loaded, the device, and when each request's tokens came, by case."""

    start_seconds: float
    device: str
    times: dict[str, list[RequestTimes]]


def run_offline(
    llm: "LLM", plans: list[RequestPlan], report: ProgressCallback = no_progress, what: str = "Offline", seed: int = 0
) -> list[RequestTimes]:
    """All requests at once; when the engine gave each of its tokens."""
    core = llm.core
    prompts = random_prompts(plans, llm.info.limits.vocab_size, seed)
    times: dict[str, RequestTimes] = {}
    for i, (plan, prompt) in enumerate(zip(plans, prompts, strict=True)):
        request = Request(request_id=f"{what}-{seed}-{i}", prompt_token_ids=prompt, params=exact_length(plan))
        times[request.request_id] = RequestTimes(num_prompt_tokens=plan.input_len)
        core.add_request(request)
    num_done = 0
    report(what, 0, len(plans))
    while core.has_work:
        for update in core.step():
            if update.token_ids:
                times[update.request_id].add(len(update.token_ids))
            num_done += update.finish_reason is not None
        report(what, num_done, len(plans))
    return list(times.values())


def run_settled(
    llm: "LLM", plans: list[RequestPlan], report: ProgressCallback = no_progress, what: str = "Offline"
) -> list[RequestTimes]:
    """As `run_offline`, after as many runs of the same as it takes until no step asks for a shape not yet compiled."""
    runner: Any = llm.core.runner
    for attempt in range(MAX_RUNS):
        times = run_offline(llm, plans, report, f"{what}, run {attempt + 1}", seed=attempt)
        if not runner.finish_compiling(wanted_only=True):
            break
    return times


def main() -> None:
    """Read the job, run it, print the result."""
    job = msgspec.json.decode(sys.stdin.readline(), type=OfflineJob)
    started = time.monotonic()
    from jaxserve.engine.llm import LLM

    llm = LLM.from_config(job.config)
    seconds = time.monotonic() - started
    times = {}
    with progress_bars() as report:
        for name, plans in job.cases.items():
            run_offline(llm, warm_up(plans), what=f"warm-up {name}", seed=MAX_RUNS)
            times[name] = run_settled(llm, plans, report, f"Offline: {name}")
    write_line(OfflineResult(seconds, llm.info.device_kind, times))


def warm_up(plans: list[RequestPlan]) -> list[RequestPlan]:
    """The same requests, cut short, at most as many as a batch holds."""
    return [RequestPlan(plan.input_len, min(plan.output_len, WARM_UP_TOKENS)) for plan in plans[:256]]


if __name__ == "__main__":
    main()
