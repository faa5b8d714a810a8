#!/usr/bin/env python3
"""Where the time of a step goes on the GPU: its kernels by kind, and the gaps between them.

    python scripts/profile_step.py --batch 1 32 256                  # decode steps of Llama-3.1-8B's shape
    python scripts/profile_step.py --prefill 8192                    # steps of one prompt chunk
    python scripts/profile_step.py --batch 32 --hlo DIRECTORY        # the optimized HLO of the steps that ran, besides

The engine runs as it serves, with CUDA graphs, under JAX's profiler. Busy time is the union of all kernels; a gap is
the time from the end of one to the start of the next. CUDA graphs are counted on the host: a step launches its graph,
and should neither update nor record one. The profiler slows the host, so gaps here are upper bounds, and
scripts/bench_step.py is what measures the step itself. Run with this script's XLA_FLAGS (gpu_trace.py), it leaves the
compiled steps for this one.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from gpu_trace import KINDS, Kernel, record_kernels  # first: it sets what XLA reads when it starts

import jax  # isort: skip
from rich.console import Console
from rich.table import Table

from jaxserve.config import EngineConfig
from jaxserve.engine.llm import LLM
from jaxserve.request import Request, SamplingParams

ROOT = Path(__file__).resolve().parent.parent
LONG_GAP_US = 100.0
MAX_HOST_CALLS = 30
# A step's copies of its packed array follow each other, with at most so many kernels between them.
KERNELS_BETWEEN_COPIES = 8


def whole_steps(kernels: list[Kernel]) -> tuple[list[Kernel], int]:
    """The kernels of the whole steps in a record, and how many steps they are.

    Each step begins with copies of what is in its packed array. The first two, while the profiler starts, and the last,
    cut off, are left out.

    Raises:
        RuntimeError: no step is left.
    """
    copies = [i for i, kernel in enumerate(kernels) if kernel.name.startswith("Memcpy")]
    begins = copies[:1] + [b for a, b in pairwise(copies) if b - a > KERNELS_BETWEEN_COPIES]
    if len(begins) < 4:
        raise RuntimeError(f"{len(begins)} steps were recorded, and the first two and the last do not count")
    return kernels[begins[2] : begins[-1]], len(begins) - 3


def summarize(kernels: list[Kernel]) -> dict[str, Any]:
    """Busy time a step by kind and by kernel, and the gaps, in microseconds."""
    kernels, num_steps = whole_steps(kernels)
    families: dict[tuple[str, str], list[float]] = defaultdict(list)
    for kernel in kernels:
        families[kernel.kind, kernel.family].append(kernel.duration)
    rows = [
        {"kind": kind, "kernel": family, "calls": len(times) / num_steps, "us": sum(times) / num_steps}
        for (kind, family), times in families.items()
    ]
    gaps = list(_gaps(kernels))
    span = kernels[-1].end - kernels[0].start
    return {
        "steps": num_steps,
        "span_us": span / num_steps,
        "busy_us": (span - sum(gaps)) / num_steps,
        "kinds_us": {kind: sum(r["us"] for r in rows if r["kind"] == kind) for kind in (*KINDS, "rest")},
        "kernels_a_step": len(kernels) / num_steps,
        "longest_gap_us": max(gaps, default=0.0),
        "gaps_over_100_us": sum(gap > LONG_GAP_US for gap in gaps),
        "kernels": sorted(rows, key=lambda r: -r["us"]),
    }


def _gaps(kernels: list[Kernel]) -> Iterable[float]:
    end = kernels[0].end
    for kernel in kernels[1:]:
        if kernel.start > end:
            yield kernel.start - end
        end = max(end, kernel.end)


class StepProfiler:
    """Runs one engine and records some of its steps."""

    def __init__(self, llm: LLM, num_steps: int) -> None:
        self._core = llm.core
        self._num_steps = num_steps
        self._runs = 0

    def decode(self, batch: int, context: int) -> dict[str, Any]:
        """Steps in which each of `batch` sequences of about `context` tokens takes one token."""
        # Prompts may take several steps to compute; the first must not have ended when the last begins.
        self._add(batch, context, self._num_steps + 16 + batch * context // 4096)
        self._step_until(lambda gained: gained == batch)
        for _ in range(8):
            self._core.step()
        report = self._record(self._num_steps)
        self._drain()
        return {"case": f"decode batch {batch}, context {context}", **report}

    def prefill(self, num_tokens: int) -> dict[str, Any]:
        """Steps that each compute one prompt of num_tokens."""
        self._add(2, num_tokens, 1)
        self._drain()
        self._add(8, num_tokens, 1)
        report = self._record(8)
        self._drain()
        return {"case": f"prefill of {num_tokens}", **report}

    def _add(self, batch: int, num_in: int, num_out: int) -> None:
        self._runs += 1
        for i in range(batch):
            self._core.add_request(
                Request(
                    request_id=f"{self._runs}-{i}",
                    prompt_token_ids=[1 + (i * 7919 + j * 31 + self._runs) % 1000 for j in range(num_in)],
                    params=SamplingParams(temperature=0.0, max_tokens=num_out, ignore_eos=True, detokenize=False),
                )
            )

    def _step_until(self, done: Any) -> None:
        while not done(sum(len(update.token_ids) for update in self._core.step())):
            pass

    def _drain(self) -> None:
        while self._core.has_work:
            self._core.step()

    def _record(self, num_steps: int) -> dict[str, Any]:
        trace = record_kernels(lambda: [self._core.step() for _ in range(num_steps)])
        longest = sorted(trace.host_calls.items(), key=lambda item: -item[1]["us"])[:MAX_HOST_CALLS]
        return summarize(trace.kernels[0]) | {"graph_calls": trace.graph_calls, "host_calls": dict(longest)}


def write_hlo(llm: LLM, directory: Path) -> None:
    """The optimized HLO of every step shape compiled so far, a file each."""
    directory.mkdir(parents=True, exist_ok=True)
    for bucket, step in llm.core.runner.compiled_steps.items():  # type: ignore[attr-defined]
        name = f"{'decode' if bucket.decode_only else 'mixed'}-{bucket.num_tokens}-{bucket.sampler}.txt"
        (directory / name).write_text(step.step.hlo_text())


def print_report(report: dict[str, Any], console: Console) -> None:
    kinds = ", ".join(f"{kind} {us / 1e3:.2f}" for kind, us in report["kinds_us"].items())
    span, busy = report["span_us"] / 1e3, report["busy_us"] / 1e3
    table = Table(
        title=f"{report['case']}: {span:.2f} ms a step, busy {busy:.2f} ({kinds}); "
        f"{report['kernels_a_step']:.0f} kernels; longest gap {report['longest_gap_us']:.0f} µs"
    )
    for column in ("kind", "kernel", "calls a step", "µs a step", "µs a call"):
        table.add_column(column)
    for row in report["kernels"][:24]:
        table.add_row(
            row["kind"], row["kernel"], f"{row['calls']:.1f}", f"{row['us']:.1f}", f"{row['us'] / row['calls']:.2f}"
        )
    console.print(table)
    graphs = ", ".join(f"{call} {times['calls']}" for call, times in report["graph_calls"].items())
    host = Table(title=f"The host over all recorded steps, threads and calls within calls (CUDA graphs: {graphs})")
    for column in ("call", "calls", "µs", "µs a call"):
        host.add_column(column)
    for name, times in report["host_calls"].items():
        calls = times["calls"]
        host.add_row(name[:90], f"{calls}", f"{times['us']:.0f}", f"{times['us'] / max(1, calls):.1f}")
    console.print(host)


def main() -> None:
    """Read the command line, profile, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "benchmarks/models/llama-3.1-8b"), help="its config is enough")
    parser.add_argument("--batch", type=int, nargs="*", default=[], help="decode steps of so many sequences")
    parser.add_argument("--prefill", type=int, nargs="*", default=[], help="steps of one prompt of so many tokens")
    parser.add_argument("--context", type=int, default=640, help="tokens of each sequence while decoding")
    parser.add_argument("--steps", type=int, default=10, help="decode steps to record")
    parser.add_argument("--tp", type=int, default=1, help="GPUs that each hold a part of every layer (default: 1)")
    parser.add_argument("--num-pages", type=int, default=20_000, help="pages of the KV pool (default: 20000)")
    parser.add_argument("--hlo", type=Path, help="write the optimized HLO of the steps into this directory")
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args()
    if not args.batch and not args.prefill:
        parser.error("nothing to do: give --batch or --prefill")
    llm = LLM.from_config(
        EngineConfig(
            model=args.model,
            load_format="dummy",
            skip_tokenizer_init=True,
            max_model_len=8192,
            enable_prefix_caching=False,
            # Only the shapes that are asked for.
            compile_ahead=False,
            # The rest of the memory is left to the compiler, which tries kernels in it.
            num_pages=args.num_pages,
            tensor_parallel_size=args.tp,
        )
    )
    profiler = StepProfiler(llm, args.steps)
    reports: list[dict[str, Any]] = []
    record = {"device": llm.info.device_kind, "jax": jax.__version__, "model": Path(args.model).name, "cases": reports}

    def add(report: dict[str, Any]) -> None:
        """Keep a report, and write all so far: a run that is cut short has not been for nothing."""
        reports.append(report)
        if args.output:
            args.output.write_text(json.dumps(record, indent=1) + "\n")
        if not args.json:
            print_report(report, Console(width=180))

    for batch in args.batch:
        add(profiler.decode(batch, args.context))
    for num_tokens in args.prefill:
        add(profiler.prefill(num_tokens))
    if args.hlo:
        write_hlo(llm, args.hlo)
    if args.json:
        json.dump(record, sys.stdout)


if __name__ == "__main__":
    main()
