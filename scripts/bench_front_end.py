"""How many tokens a second the front ends pass on: a real server on an engine whose device only counts.

    python scripts/bench_front_end.py                            # 256 streams, a step each 13 ms
    python scripts/bench_front_end.py --step-ms 1 --json         # more than one front end can pass on
    python scripts/bench_front_end.py --num-front-ends 4

The engine's process, its loop, the scheduler, the transport, the gRPC server, the detokenizer and the clients are the
real ones; a step takes the time asked for and gives each sequence a token of the bundled model's vocabulary. A front
end's CPU time a token is what tells how many one process can pass on with a core of its own. Where tokens come faster
than that, several are sent in one message.
"""

import argparse
import asyncio
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc
import msgspec
from rich.console import Console
from rich.table import Table

from jaxserve.bench.figures import ServingFigures, Spread, steady_itl
from jaxserve.bench.load import run_load
from jaxserve.bench.load_client import LoadJob
from jaxserve.bench.server_process import server_process
from jaxserve.bench.workload import RequestPlan
from jaxserve.config import EngineConfig, SchedulerConfig, ServerConfig
from jaxserve.engine.core import EngineCore
from jaxserve.engine.messages import EngineInfo
from jaxserve.engine.process import main as engine_main
from jaxserve.model_directory import resolve_model
from jaxserve.progress import progress_bars
from jaxserve.request import ModelLimits
from jaxserve.scheduler.scheduler import Scheduler
from jaxserve.server.serve import announce, run
from jaxserve.step import StepPlan
from jaxserve.tokenizer import Tokenizer


class PacedRunner:
    """A device that takes a fixed time a step, and one token after the other from the vocabulary.

    Attributes:
        host_seconds: time from the end of one `collect` to the next call of it, and the number of sequences: what the
            engine's own loop needs for a step.
    """

    def __init__(self, step_s: float, vocab_size: int) -> None:
        self.host_seconds: list[tuple[float, int]] = []
        self._collected: float | None = None
        self._step_s = step_s
        self._ids = list(range(vocab_size // 2, vocab_size))
        self._next = 0
        self._busy_until = 0.0

    def dispatch(self, plan: StepPlan) -> tuple[float, list[int]]:
        """Start a step behind those before it."""
        size = len(plan.slots)
        self._next = (self._next + size) % (len(self._ids) - size)
        self._busy_until = max(time.monotonic(), self._busy_until) + self._step_s
        return self._busy_until, self._ids[self._next : self._next + size]

    def collect(self, handle: tuple[float, list[int]]) -> list[int]:
        """Wait for its time to pass."""
        now = time.monotonic()
        if self._collected is not None:
            self.host_seconds.append((now - self._collected, len(handle[1])))
        if (wait := handle[0] - now) > 0:
            time.sleep(wait)
        self._collected = time.monotonic()
        return handle[1]

    def close(self) -> bool:
        """There is nothing to stop."""
        return True

    def host_time(self) -> Spread | None:
        """The spread over the steps of the largest batch."""
        largest = max((size for _, size in self.host_seconds), default=0)
        return Spread.of([seconds for seconds, size in self.host_seconds if size == largest])


def run_engine(step_ms: float, report: Path) -> int:
    """The engine's process; writes the host time of its steps when it ends."""
    runners: list[PacedRunner] = []

    def build(config: EngineConfig) -> tuple[EngineCore, EngineInfo]:
        directory = resolve_model(config.model)
        vocab_size = Tokenizer.load(directory).vocab_size
        scheduler = SchedulerConfig(
            num_pages=1 + 512 * 128, max_num_seqs=512, max_model_len=2048, enable_prefix_caching=False
        )
        info = EngineInfo(
            model_name=config.model_name,
            architecture="none",
            dtype="none",
            limits=ModelLimits(vocab_size=vocab_size, max_model_len=2048),
            num_parameters=0,
            num_pages=scheduler.num_pages - 1,
            page_size=scheduler.page_size,
            max_num_seqs=scheduler.max_num_seqs,
            max_num_batched_tokens=scheduler.max_num_batched_tokens,
            tokenizer_dir=str(directory),
        )
        runners.append(PacedRunner(step_ms / 1000, vocab_size))
        return EngineCore(Scheduler(scheduler, ()), runners[0]), info

    code = engine_main(build)
    report.write_bytes(msgspec.json.encode(runners[0].host_time()))
    return code


def run_server(args: argparse.Namespace) -> int:
    """The server, on that engine."""
    command = (
        sys.executable,
        __file__,
        "--role",
        "engine",
        "--step-ms",
        str(args.step_ms),
        "--report",
        str(args.report),
    )
    config = ServerConfig(port=0, num_front_ends=args.num_front_ends)
    return run(EngineConfig(model="demo"), config, announce, engine_command=command)


async def measure(args: argparse.Namespace, report_path: Path) -> dict[str, Any]:
    """One run."""
    role = ["--role", "server", "--step-ms", str(args.step_ms), "--num-front-ends", str(args.num_front_ends)]
    role += ["--report", str(report_path)]
    async with server_process([sys.executable, __file__, *role], timeout=60) as server:
        job = LoadJob(
            target=server.target,
            plans=[RequestPlan(16, args.output_len)] * args.streams,
            vocab_size=2048,
            num_channels=args.channels,
            detokenize=args.text,
        )
        warm_up = msgspec.structs.replace(job, plans=[RequestPlan(16, 4)] * args.streams)
        await run_load(warm_up, args.clients)
        before = server.cpu_seconds()
        with progress_bars() as report:
            results = await run_load(job, args.clients, report)
        cpu = {name: used - before[name] for name, used in server.cpu_seconds().items()}
    failures = [failure for result in results for failure in result.failures]
    if failures:
        raise RuntimeError(f"{len(failures)} requests failed; the first: {failures[0]}")
    times = [entry for result in results for entry in result.times]
    duration = max(t.arrivals[-1] for t in times) - min(t.started for t in times)
    figures = ServingFigures.of(times, duration)
    front_ends = sum(used for name, used in cpu.items() if name.startswith("front end"))
    itl = steady_itl(times)
    return {
        "command": " ".join(sys.argv),
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "output_tok_s": figures.output_throughput,
        "offered_tok_s": 1000 * args.streams / args.step_ms,
        "tokens_per_delta": figures.tokens_per_delta,
        "itl_ms": None if itl is None else msgspec.to_builtins(itl),
        "cpu_seconds": cpu,
        "front_end_cpu_us_per_token": 1e6 * front_ends / figures.output_tokens,
        "front_end_cpu_us_per_message": 1e6 * front_ends / sum(len(t.arrivals) for t in times),
        "engine_host_ms_per_step": json.loads(report_path.read_text()),
        "client_cpu_us_per_message": 1e6 * sum(r.cpu_seconds for r in results) / sum(len(t.arrivals) for t in times),
    }


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--role", choices=("engine", "server"), help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--step-ms", type=float, default=13.0, help="time of a step (default: 13)")
    parser.add_argument("--streams", type=int, default=256, help="concurrent requests (default: 256)")
    parser.add_argument("--output-len", type=int, default=256, help="tokens of each answer (default: 256)")
    parser.add_argument("--num-front-ends", type=int, default=1, help="processes of the server (default: 1)")
    parser.add_argument("--clients", type=int, default=2, help="processes that send requests (default: 2)")
    parser.add_argument("--channels", type=int, default=4, help="connections of each client (default: 4)")
    parser.add_argument("--no-text", dest="text", action="store_false", help="ask for token ids only")
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    if args.role == "engine":
        sys.exit(run_engine(args.step_ms, args.report))
    if args.role == "server":
        sys.exit(run_server(args))
    with tempfile.TemporaryDirectory() as directory:
        record = asyncio.run(measure(args, Path(directory) / "engine.json"))
    if args.output:
        args.output.write_text(json.dumps(record, indent=2) + "\n")
    if args.json:
        print(json.dumps(record))
        return
    table = Table(title=f"{args.streams} streams, a step each {args.step_ms:g} ms", show_header=False)
    for name, value in record.items():
        table.add_row(name.replace("_", " "), f"{value:.1f}" if isinstance(value, float) else str(value))
    Console().print(table)


if __name__ == "__main__":
    main()
