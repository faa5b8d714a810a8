"""The engine's own step against its floor: random weights of a real model's shape, the scheduler and all around it.

    python scripts/bench_step.py --json                       # Llama-3.1-8B's shape, on a GPU
    python scripts/bench_step.py --model benchmarks/models/baichuan2-13b --cases decode,prefill
    python scripts/bench_step.py --tp 2                       # over two GPUs
    python scripts/bench_step.py --tp 4 --model benchmarks/models/llama-3.1-70b --cases decode --batches 1 64
    python scripts/bench_step.py --model demo --scale 0.01    # a smoke test on a CPU

Cases: `decode` steps at fixed batch sizes, `prefill` of long prompts, `trace` of requests that all arrive at once.
A decode step's time is the interval between collected steps in which every request gained a token, as a user of the
engine sees it: scheduling, packing, dispatch and collection included. Beside it stands what packing and dispatch alone
keep the host busy, which the device must not have to wait for. The floor of a step is the bytes of weights and
of keys and values over the memory bandwidth. Of routed experts it counts those that a batch is expected to choose, if
all are as likely. Batches that the pool cannot hold are left out.
"""

import argparse
import json
import logging
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from jaxserve.config import EngineConfig
from jaxserve.engine.llm import LLM
from jaxserve.layers import norm
from jaxserve.model_directory import resolve_model
from jaxserve.models.config import ModelConfig
from jaxserve.models.registry import load_config
from jaxserve.progress import progress_bars
from jaxserve.request import Request, SamplingParams
from jaxserve.runner.buckets import Bucket
from jaxserve.runner.model_runner import DispatchedStep
from jaxserve.step import StepPlan

ROOT = Path(__file__).resolve().parent.parent
TRACE = ROOT / "benchmarks" / "trace_sharegpt_like.json"
DECODE_BATCHES = (1, 8, 32, 128, 256)
# (prompt tokens, generated tokens)
DECODE_ALONE = (128, 512)
DECODE_TOGETHER = (512, 256)
PREFILL_CASE = (8, 4096)

Figures = dict[str, float | int | str]


class StepBench:
    """Runs requests of given lengths through one engine and times its steps."""

    def __init__(self, llm: LLM, config: ModelConfig, bandwidth: float) -> None:
        self._llm = llm
        self._config = config
        self._bandwidth = bandwidth
        self._random = random.Random(1000)
        self._runs = 0
        self._dispatches: list[float] = []
        runner: Any = llm.core.runner
        runner.dispatch = self._timed(runner.dispatch)

    def _timed(self, dispatch: Callable[[StepPlan], Any]) -> Callable[[StepPlan], Any]:
        def timed(plan: StepPlan) -> Any:
            started = time.perf_counter()
            handle = dispatch(plan)
            self._dispatches.append(1000 * (time.perf_counter() - started))
            return handle

        return timed

    def run(self, lengths: list[tuple[int, int]]) -> list[tuple[float, int]]:
        """Requests of (prompt, generated) tokens at once: (seconds since the start, tokens gained) of each step."""
        core, vocab = self._llm.core, self._llm.info.limits.vocab_size
        self._runs += 1
        requests = [
            Request(
                request_id=f"{self._runs}-{i}",
                prompt_token_ids=self._random.choices(range(vocab), k=num_in),
                params=SamplingParams(temperature=0.0, max_tokens=num_out, ignore_eos=True, detokenize=False),
            )
            for i, (num_in, num_out) in enumerate(lengths)
        ]
        started = time.perf_counter()
        for request in requests:
            core.add_request(request)
        steps = []
        while core.has_work:
            gained = sum(len(update.token_ids) for update in core.step())
            steps.append((time.perf_counter() - started, gained))
        if sum(gained for _, gained in steps) != sum(num_out for _, num_out in lengths):
            raise RuntimeError("the engine generated another number of tokens than asked for")
        return steps

    def compile_for(self, cases: Iterable[list[tuple[int, int]]]) -> None:
        """Compile the shapes that the steps of such requests have, and no others: the requests are scheduled and no
        step of theirs runs."""
        runner: Any = self._llm.core.runner
        buckets: dict[Bucket, None] = {}

        def note(bucket: Bucket, plan: StepPlan) -> DispatchedStep:
            buckets[bucket] = None
            return DispatchedStep(None, None, len(plan.slots))  # type: ignore[arg-type]

        call, collect = runner._call, runner.collect
        runner._call, runner.collect = note, lambda handle: [0] * handle.num_seqs
        try:
            for lengths in cases:
                self.run(lengths)
        finally:
            runner._call, runner.collect = call, collect
        with progress_bars() as report:
            runner.compile_buckets(buckets, report)

    def settle(self, lengths: list[tuple[int, int]]) -> None:
        """Run requests like those that will be measured, and once more if steps asked for shapes that were not
        compiled, which are then."""
        runner: Any = self._llm.core.runner
        self.run(lengths)
        if runner.finish_compiling(wanted_only=True):
            self.run(lengths)
            runner.finish_compiling(wanted_only=True)

    def fits(self, batch: int, num_tokens: int) -> bool:
        """Whether the pool holds this many sequences of this many tokens, with the hundredth that stays spare."""
        info = self._llm.info
        pages = batch * -(-num_tokens // info.page_size)
        return num_tokens <= info.limits.max_model_len and pages <= 0.98 * info.num_pages

    def decode(self, batch: int, num_in: int, num_out: int) -> Figures:
        """The step at a fixed batch."""
        lengths = [(num_in, num_out)] * batch
        # None may end before the last prompt is computed, or steps of other shapes are met.
        self.settle([(num_in, min(num_out, 40))] * batch)
        self._dispatches.clear()
        steps = self.run(lengths)
        intervals = [1000 * (b[0] - a[0]) for a, b in zip(steps, steps[1:], strict=False) if a[1] == b[1] == batch]
        if not intervals:
            raise RuntimeError(f"no two steps in a row gave {batch} tokens; raise the generated tokens")
        floor = 1000 * self._step_bytes(batch, num_in + num_out / 2) / self._bandwidth
        median = statistics.median(intervals)
        return {
            "case": f"decode batch {batch}, {num_in} in, {num_out} out",
            "step_ms": median,
            "step_ms_p99": sorted(intervals)[int(0.99 * (len(intervals) - 1))],
            # Steps of prompts are few among them.
            "dispatch_ms": statistics.median(self._dispatches),
            "floor_ms": floor,
            "of_floor": floor / median,
            "output_tok_s": 1000 * batch / median,
        }

    def prefill(self, batch: int, num_in: int) -> Figures:
        """Prompts alone: one token is generated of each. The best of three runs."""
        self.settle([(num_in, 1)] * batch)
        seconds = min(self.run([(num_in, 1)] * batch)[-1][0] for _ in range(3))
        return {"case": f"prefill {batch} × {num_in}", "input_tok_s": batch * num_in / seconds, "seconds": seconds}

    def trace(self, lengths: list[tuple[int, int]]) -> Figures:
        """All requests of a trace at once."""
        self.settle(lengths)
        seconds = self.run(lengths)[-1][0]
        outputs = sum(num_out for _, num_out in lengths)
        return {"case": f"trace of {len(lengths)}", "output_tok_s": outputs / seconds, "seconds": seconds}

    def _step_bytes(self, batch: int, context: float) -> float:
        info = self._llm.info
        token_bytes: float = self._llm.core.runner.page_bytes / info.page_size  # type: ignore[attr-defined]
        idle = self._idle_expert_parameters(batch)
        weight_bytes = (info.num_parameters - idle) * jnp.dtype(info.dtype).itemsize
        return weight_bytes + batch * context * token_bytes

    def _idle_expert_parameters(self, batch: int) -> float:
        """Parameters of the experts that no token of a step is expected to choose."""
        config, experts = self._config, self._config.experts
        if experts is None:
            return 0.0
        unchosen = (1 - experts.num_experts_per_token / experts.num_experts) ** batch
        layers = sum(config.has_experts(layer) for layer in range(config.num_layers))
        return unchosen * layers * experts.num_experts * 3 * config.hidden_size * experts.intermediate_size


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "benchmarks/models/llama-3.1-8b"), help="its config is enough")
    parser.add_argument("--cases", default="decode,prefill,trace", help="comma-separated (default: all three)")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=DECODE_BATCHES, help="of decode steps (default: 1 8 32 128 256)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor on lengths and numbers, for a smoke test")
    parser.add_argument(
        "--bandwidth", type=float, default=4.3e12, help="bytes a second of each GPU (default: an H200's copy)"
    )
    parser.add_argument("--max-model-len", type=int, default=8192)
    parser.add_argument("--max-num-batched-tokens", type=int, help="of a step (default: the engine's)")
    parser.add_argument("--tp", type=int, default=1, help="GPUs that each hold a part of every layer (default: 1)")
    parser.add_argument("--num-pages", type=int, help="pages of the KV pool (default: what memory is left)")
    parser.add_argument(
        "--compile-as-met",
        action="store_true",
        help="compile only the shapes that the cases meet; give --num-pages too, so that XLA has memory to try kernels "
        "in",
    )
    parser.add_argument(
        "--split-stream-rows",
        type=int,
        help="rows from which the residual stream is split over the GPUs (default: never)",
    )
    parser.add_argument("--verbose", action="store_true", help="tell how long each shape took to compile")
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()

    def scaled(n: int) -> int:
        return max(2, round(n * args.scale)) if args.scale != 1 else n

    norm.SPLIT_STREAM_ROWS = args.split_stream_rows
    if args.verbose:
        logging.basicConfig(format="%(asctime)s %(message)s")
        logging.getLogger("jaxserve").setLevel(logging.DEBUG)
    started = time.perf_counter()
    config = load_config(resolve_model(args.model))
    llm = LLM.from_config(
        EngineConfig(
            model=args.model,
            load_format="dummy",
            skip_tokenizer_init=True,
            max_model_len=min(scaled(args.max_model_len), config.context_length),
            enable_prefix_caching=False,
            max_num_batched_tokens=args.max_num_batched_tokens,
            tensor_parallel_size=args.tp,
            num_pages=args.num_pages,
            compile_ahead=not args.compile_as_met,
        )
    )
    bench = StepBench(llm, config, args.bandwidth * args.tp)
    results: list[Figures] = []
    record = {
        "device": llm.info.device_kind,
        "jax": jax.__version__,
        "model": Path(args.model).name,
        "tensor_parallel_size": args.tp,
        "results": results,
    }

    def add(result: Figures) -> None:
        """Keep a result, and write all so far: a run that is cut short has not been for nothing."""
        results.append(result)
        print(json.dumps(result), file=sys.stderr, flush=True)
        if args.output:
            args.output.write_text(json.dumps(record, indent=2) + "\n")

    add({"case": "start", "seconds": time.perf_counter() - started})
    if not args.compile_as_met:
        bench.run([(16, 1)])
        add({"case": "start to first token", "seconds": time.perf_counter() - started})
    cases = args.cases.split(",")
    # The requests of each case, and what measures it.
    runs: list[tuple[list[tuple[int, int]], Callable[[], Figures]]] = []
    for batch in args.batches if "decode" in cases else ():
        num_in, num_out = DECODE_ALONE if batch == 1 else DECODE_TOGETHER
        num_in, num_out = scaled(num_in), max(8, scaled(num_out))
        if batch <= llm.info.max_num_seqs and bench.fits(batch, num_in + num_out):
            runs.append(([(num_in, num_out)] * batch, partial(bench.decode, batch, num_in, num_out)))
    if "prefill" in cases:
        batch, num_in = PREFILL_CASE
        num_in = min(scaled(num_in), llm.info.limits.max_model_len - 1)
        runs.append(([(num_in, 1)] * batch, partial(bench.prefill, batch, num_in)))
    if "trace" in cases:
        pairs = json.loads(TRACE.read_text())["requests"]
        lengths = [(scaled(a), scaled(b)) for a, b in pairs[: scaled(len(pairs))]]
        runs.append((lengths, partial(bench.trace, lengths)))
    if args.compile_as_met:
        bench.compile_for(lengths for lengths, _ in runs)
        add({"case": "compiled", "seconds": time.perf_counter() - started})
    for _, run in runs:
        add(run())
    if args.json:
        print(json.dumps(record))
        return
    table = Table(title=f"{record['model']} on {args.tp} × {llm.info.device_kind}")
    for column in ("case", "step ms", "p99", "dispatch ms", "floor ms", "of floor", "tok/s", "seconds"):
        table.add_column(column)
    for r in results:
        rate = r.get("output_tok_s", r.get("input_tok_s"))
        names = ("step_ms", "step_ms_p99", "dispatch_ms", "floor_ms", "of_floor")
        cells = [*(r.get(name) for name in names), rate, r.get("seconds")]
        table.add_row(str(r["case"]), *("" if c is None else f"{c:.2f}" for c in cells))
    Console().print(table)


if __name__ == "__main__":
    main()
