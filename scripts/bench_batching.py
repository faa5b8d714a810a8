"""What continuous batching and paging each buy: one trace, one engine, three ways of scheduling.

    python scripts/bench_batching.py                                  # CPU, minutes: a part of the trace, scaled down
    python scripts/bench_batching.py --scale 1 --num-requests 1000 --pool-contexts 16 --max-num-seqs 256   # GPU

1. static: a batch is formed, each request gets pages for its whole context, and the batch runs until its last request
   has ended (request-level scheduling).
2. continuous, whole context reserved: requests join and leave at every step (Orca, Yu et al. 2022), still with pages
   for their whole context.
3. continuous, paged: pages are given out as tokens come (PagedAttention, Kwon et al. 2023).

All three run the same kernels in the same pool on the same requests: random prompts of the trace's lengths, greedy,
exact output lengths, prefix caching off.
"""

import argparse
import dataclasses
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from jaxserve.config import EngineConfig, SchedulerConfig
from jaxserve.engine.build import build_core
from jaxserve.engine.core import EngineCore
from jaxserve.progress import ProgressCallback, progress_bars
from jaxserve.request import Request, SamplingParams
from jaxserve.scheduler.scheduler import Scheduler
from jaxserve.step import Runner

ROOT = Path(__file__).resolve().parent.parent
TRACE = ROOT / "benchmarks" / "trace_sharegpt_like.json"


@dataclass(frozen=True)
class Policy:
    """One way of scheduling, as settings of the scheduler."""

    name: str
    settings: dict[str, object]


POLICIES = (
    Policy("static", {"batching": "static", "reserve_whole_context": True}),
    Policy("continuous, whole context", {"batching": "continuous", "reserve_whole_context": True}),
    Policy("continuous, paged", {"batching": "continuous", "reserve_whole_context": False}),
)


@dataclass
class PolicyResult:
    """What one policy did with the trace.

    Attributes:
        policy: its name.
        duration: seconds for all requests.
        output_throughput: generated tokens a second.
        num_steps: steps of the model.
        mean_running: requests in the batch, averaged over steps.
        kv_waste: part of the allocated slots that held no token, averaged over steps.
        num_preemptions: requests that had to give up their pages.
        running_over_time: (seconds, requests in the batch) at each step.
    """

    policy: str
    duration: float
    output_throughput: float
    num_steps: int
    mean_running: float
    kv_waste: float
    num_preemptions: int
    running_over_time: list[tuple[float, int]]


def read_requests(path: Path, num_requests: int, scale: float, vocab_size: int) -> list[Request]:
    """Requests of the trace's lengths times `scale`, with random prompts."""
    rng = random.Random(0)
    requests = []
    for i, (num_in, num_out) in enumerate(json.loads(path.read_text())["requests"][:num_requests]):
        prompt = [rng.randrange(vocab_size) for _ in range(max(1, round(num_in * scale)))]
        params = SamplingParams(max_tokens=max(1, round(num_out * scale)), temperature=0.0, ignore_eos=True)
        requests.append(Request(request_id=str(i), prompt_token_ids=prompt, params=params))
    return requests


def run_policy(
    policy: Policy, base: SchedulerConfig, runner: Runner, requests: list[Request], report: ProgressCallback
) -> PolicyResult:
    """All requests at once through one policy."""
    config = dataclasses.replace(base, enable_prefix_caching=False, **policy.settings)  # type: ignore[arg-type]
    core = EngineCore(Scheduler(config, ()), runner)
    num_outputs = done = 0
    waste: list[float] = []
    running: list[tuple[float, int]] = []
    report(policy.name, 0, len(requests))
    started = time.perf_counter()
    for request in requests:
        core.add_request(request)
    while core.has_work:
        for update in core.step():
            num_outputs += len(update.token_ids)
            done += update.finish_reason is not None
        stats = core.stats()
        running.append((time.perf_counter() - started, stats.num_running))
        if stats.num_kv_slots:
            waste.append(1 - stats.num_kv_tokens / stats.num_kv_slots)
        report(policy.name, done, len(requests))
    duration = time.perf_counter() - started
    return PolicyResult(
        policy=policy.name,
        duration=duration,
        output_throughput=num_outputs / duration,
        num_steps=core.stats().num_steps,
        mean_running=sum(n for _, n in running) / len(running),
        kv_waste=sum(waste) / len(waste),
        num_preemptions=core.stats().num_preemptions,
        running_over_time=running,
    )


def print_table(results: list[PolicyResult]) -> None:
    """The results for a person."""
    table = Table(title="One trace, three ways of batching")
    for column in ("policy", "seconds", "output tok/s", "× static", "steps", "mean batch", "KV waste", "preemptions"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for r in results:
        table.add_row(
            r.policy,
            f"{r.duration:.1f}",
            f"{r.output_throughput:.0f}",
            f"{r.output_throughput / results[0].output_throughput:.2f}",
            str(r.num_steps),
            f"{r.mean_running:.1f}",
            f"{r.kv_waste:.1%}",
            str(r.num_preemptions),
        )
    Console().print(table)


def plot(results: list[PolicyResult], path: Path) -> None:
    """Throughput of each policy, and how many requests it ran at a time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (bars, lines) = plt.subplots(1, 2, figsize=(11, 4))
    names = [r.policy.replace(", ", ",\n") for r in results]
    drawn = bars.bar(names, [r.output_throughput for r in results], color=["C7", "C0", "C2"])
    ratios = [f"{r.output_throughput / results[0].output_throughput:.1f}×" for r in results]
    bars.bar_label(drawn, labels=ratios)
    bars.set_ylabel("output tokens a second")
    for result, color in zip(results, ("C7", "C0", "C2"), strict=True):
        seconds, counts = zip(*result.running_over_time, strict=True)
        lines.plot(seconds, counts, label=result.policy, color=color)
    lines.set_xlabel("seconds")
    lines.set_ylabel("requests in the batch")
    lines.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Read the command line, measure, and write table, JSON and PNG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="model directory (default: the bundled model)")
    parser.add_argument("--trace", type=Path, default=TRACE, help="pairs of input and output lengths")
    parser.add_argument("--num-requests", type=int, default=128, help="first requests of the trace (default: 128)")
    parser.add_argument("--scale", type=float, default=0.25, help="factor on the trace's lengths (default: 0.25)")
    parser.add_argument("--pool-contexts", type=int, default=6, help="whole contexts that fit the pool (default: 6)")
    parser.add_argument("--max-num-seqs", type=int, default=32, help="most requests in the batch (default: 32)")
    parser.add_argument("--max-num-batched-tokens", type=int, default=512, help="token budget a step (default: 512)")
    parser.add_argument("--output", type=Path, help="path without suffix (default: docs/benchmarks/batching-PLATFORM)")
    parser.add_argument("--no-plot", action="store_true", help="leave out the PNG, which needs matplotlib")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()

    output = args.output or ROOT / f"docs/benchmarks/batching-{jax.default_backend()}"
    page_size = 16
    max_model_len = round(2048 * args.scale)
    pages = args.pool_contexts * -(-max_model_len // page_size)
    with progress_bars() as report:
        core, info = build_core(
            EngineConfig(
                model=args.model,
                max_model_len=max_model_len,
                num_pages=1 + pages,
                page_size=page_size,
                max_num_seqs=args.max_num_seqs,
                max_num_batched_tokens=args.max_num_batched_tokens,
                max_num_queued_requests=args.num_requests,
            ),
            report,
        )
        requests = read_requests(args.trace, args.num_requests, args.scale, info.limits.vocab_size)
        results = [run_policy(p, core.scheduler.config, core.runner, requests, report) for p in POLICIES]
    record = {
        "command": {k: v for k, v in vars(args).items() if k not in ("output", "trace", "json", "no_plot")},
        "trace": args.trace.name,
        "device": info.device_kind,
        "jax": jax.__version__,
        "pool_tokens": pages * page_size,
        "results": [{k: v for k, v in dataclasses.asdict(r).items() if k != "running_over_time"} for r in results],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    if not args.no_plot:
        plot(results, output.with_suffix(".png"))
    if args.json:
        print(json.dumps(record))
    else:
        print_table(results)


if __name__ == "__main__":
    main()
