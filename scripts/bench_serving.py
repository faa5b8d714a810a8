"""The same requests through the engine alone and through the server, on one machine, in one command.

    python scripts/bench_serving.py --num-front-ends 4 --output docs/benchmarks/serving-h200   # a GPU, 4 minutes
    python scripts/bench_serving.py --num-front-ends 4 --compile-all --time-limit 400   # nothing is compiled meanwhile
    python scripts/bench_serving.py --model demo --scale 0.1 --streams 8 --trace-requests 16 --rates 4 --rate-seconds 5
    python scripts/bench_serving.py --target HOST:PORT                                            # a running server

Cases: `streams` requests of equal lengths at once, for each number of streams; the trace's requests at once; the
trace's requests at Poisson arrival rates, over gRPC only. The first two run offline (EngineCore, in a process that
frees the device when it ends) and over gRPC (`jaxserve serve`, load from several processes). Prompts are random tokens,
answers are greedy and of exact lengths. Every flag of `jaxserve serve` is passed on, to the offline engine too.

Latencies over gRPC are from delta to delta, as a client sees them. The shares say where the 99th percentile comes from.
"""

import argparse
import asyncio
import json
import platform
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
from rich.console import Console
from rich.table import Table

import jaxserve
from jaxserve.bench.figures import ServiceLevel
from jaxserve.bench.offline import OfflineJob
from jaxserve.bench.server_process import serve_command, server_process
from jaxserve.bench.serving import Case, LatencyShares, Measured, ServerLoad, latency_shares, measure_offline
from jaxserve.bench.workload import RequestPlan, poisson_arrivals, read_trace
from jaxserve.cli.flags import add_config_flags, config_from_flags, given_flags
from jaxserve.client import AsyncClient
from jaxserve.config import EngineConfig, ServerConfig
from jaxserve.errors import JaxserveError
from jaxserve.progress import progress_bars

ROOT = Path(__file__).resolve().parent.parent
# What the flags of the engine are unless given: random weights, no tokenizer, nothing computed once for two requests.
ENGINE_DEFAULTS = {"load_format": "dummy", "skip_tokenizer_init": True, "enable_prefix_caching": False}


def read_cases(args: argparse.Namespace) -> list[Case]:
    """What the command line asks for."""
    lengths = RequestPlan(max(1, round(args.input_len * args.scale)), max(2, round(args.output_len * args.scale)))
    cases = [
        Case(name=f"{n} × {lengths.input_len} in, {lengths.output_len} out", plans=[lengths] * n) for n in args.streams
    ]
    trace = read_trace(args.trace, args.scale)
    if args.trace_requests:
        cases.append(Case(name=f"trace of {args.trace_requests}", plans=trace[: args.trace_requests]))
    for rate in args.rates:
        plans = poisson_arrivals(
            trace * (1 + int(2 * rate * args.rate_seconds) // len(trace)), rate, args.rate_seconds, 0
        )
        cases.append(Case(name=f"trace at {rate:g}/s", plans=plans, rate=rate))
    return cases


@asynccontextmanager
async def loaded(args: argparse.Namespace, slo: ServiceLevel, record: dict[str, Any]) -> AsyncIterator[ServerLoad]:
    """The server that is measured: started here, or the target given."""
    load = {"num_clients": args.clients, "num_channels": args.channels, "time_limit": args.time_limit, "slo": slo}
    if args.target:
        yield ServerLoad(args.target, await describe(args.target, record), **load)
        return
    flags = [*given_flags(EngineConfig, args, skip=["model"]), *given_flags(ServerConfig, args)]
    started = time.monotonic()
    async with server_process(serve_command(args.model, *flags), timeout=args.time_limit) as server:
        record["server_start_seconds"] = time.monotonic() - started
        started = time.monotonic()
        with progress_bars() as report:
            await server.settled(args.settle_limit, report)
        record["server_settle_seconds"] = time.monotonic() - started
        yield ServerLoad(server.target, await describe(server.target, record), server=server, **load)


async def describe(target: str, record: dict[str, Any]) -> int:
    """Note what serves there; the size of its vocabulary."""
    async with AsyncClient(target) as client:
        model, server = await client.model_info(), await client.server_info()
    record |= {"served": model.name, "dtype": model.dtype, "device": server.device.kind, "version": server.version}
    return model.vocab_size


async def measure(args: argparse.Namespace, record: dict[str, Any], measured: list[Measured]) -> None:
    """Every case, offline first; what is measured is added as it comes."""
    task = asyncio.current_task()
    assert task is not None
    # A time limit around this script must not leave its server behind.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    cases = read_cases(args)
    slo = ServiceLevel(ttft_ms=args.slo_ttft_ms, itl_ms=args.slo_itl_ms)
    if not args.target:
        job = OfflineJob(
            config_from_flags(EngineConfig, args, model=args.model),
            {case.name: case.plans for case in cases if case.rate is None},
        )
        if job.cases:
            result, offline = await measure_offline(job, args.time_limit, slo)
            record["offline_start_seconds"] = result.start_seconds
            measured += offline
    async with loaded(args, slo, record) as load:
        with progress_bars() as report:
            for case in cases:
                if case.rate is None:
                    await load.warm_up(case, report)
                measured.append(await load.measure(case, report))


def pairs(measured: list[Measured]) -> list[tuple[Measured, Measured]]:
    """The cases that were measured both ways: (offline, over gRPC)."""
    offline = {m.case: m for m in measured if not m.over_grpc}
    return [(offline[m.case], m) for m in measured if m.over_grpc and m.case in offline]


def print_tables(measured: list[Measured], shares: list[LatencyShares]) -> None:
    """The results for a person."""
    table = Table(title="Serving (latencies in ms, goodput in requests a second)")
    for column in ("case", "", "out tok/s", "of offline", "TTFT p50", "p99", "ITL p50", "p90", "p99", "tok/delta"):
        table.add_column(column, justify="left" if column in ("case", "") else "right", no_wrap=True)
    table.add_column("goodput", justify="right")
    ratios = {b.case: b.figures.output_throughput / a.figures.output_throughput for a, b in pairs(measured)}
    for m in measured:
        f = m.figures
        latencies = [f.ttft and f.ttft.p50, f.ttft and f.ttft.p99, f.itl and f.itl.p50, f.itl and f.itl.p90]
        latencies += [f.itl and f.itl.p99]
        table.add_row(
            m.case,
            "gRPC" if m.over_grpc else "offline",
            f"{f.output_throughput:.0f}",
            f"{ratios[m.case]:.1%}" if m.over_grpc and m.case in ratios else "",
            *("" if value is None else f"{value:.1f}" for value in latencies),
            f"{f.tokens_per_delta:.2f}" if f.tokens_per_delta else "",
            f"{f.goodput:.2f}" if f.goodput is not None else "",
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(table)
    for m in measured:
        if m.over_grpc:
            used = [f"{name} {value:.0%}" for name, value in m.cpu_utilization.items()]
            used += [f"client {i} {value:.0%}" for i, value in enumerate(m.client_utilization)]
            console.print(f"{m.case}: CPU {', '.join(used)}", style="dim", highlight=False)
        for failure, count in m.failures.items():
            console.print(f"{m.case}: {count} requests failed: {failure}", style="red")
    for s in shares:
        console.print(
            f"{s.case}: p99 of the inter-token latency is {s.total:.2f} ms = step {s.step:.2f} + its variation "
            f"{s.step_variation:.2f} + front ends and transport {s.server:.2f} + clients {s.client:.2f} + prompts in "
            f"the same steps {s.prompts:.2f}. While all decode it is {s.ratio:.2f} × the step.",
            highlight=False,
        )


def plot(measured: list[Measured], shares: list[LatencyShares], path: Path) -> None:
    """Throughput both ways, shares of the latency, and what arrival rates do."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (bars, stacks, lines) = plt.subplots(1, 3, figsize=(15, 4.2))
    both = pairs(measured)
    for offset, color, label, side in ((-0.2, "C7", "offline", 0), (0.2, "C0", "over gRPC", 1)):
        heights = [pair[side].figures.output_throughput for pair in both]
        bars.bar([i + offset for i in range(len(both))], heights, 0.4, color=color, label=label)
    bars.set_xticks(range(len(both)), [b.case.replace(", ", ",\n") for _, b in both])
    bars.set_ylabel("output tokens a second")
    bars.margins(y=0.25)
    names = ("step", "step_variation", "server", "client", "prompts")
    below = [0.0] * len(shares)
    for name in names:
        heights = [max(0.0, getattr(s, name)) for s in shares]
        stacks.bar(
            [s.case.replace(", ", ",\n") for s in shares], heights, 0.5, bottom=below, label=name.replace("_", " ")
        )
        below = [a + b for a, b in zip(below, heights, strict=True)]
    stacks.margins(y=0.25)
    stacks.set_ylabel("p99 inter-token latency, ms")
    poisson = [m for m in measured if m.rate is not None]
    rates = [m.rate or 0.0 for m in poisson]
    lines.plot(rates, [m.figures.ttft.p99 if m.figures.ttft else 0 for m in poisson], "o-", label="TTFT p99, ms")
    lines.plot(rates, [m.figures.itl.p99 if m.figures.itl else 0 for m in poisson], "s-", label="ITL p99, ms")
    lines.set_xlabel("requests a second")
    lines.set_yscale("log")
    for axes in (bars, stacks, lines):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small", ncols=2)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def numbers[T: (int, float)](kind: type[T], text: str) -> list[T]:
    """Comma-separated numbers; none of an empty text."""
    return [kind(word) for word in text.split(",") if word]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "benchmarks/models/llama-3.1-8b"), help="its config is enough")
    parser.add_argument("--target", help="HOST:PORT of a running server to measure, over gRPC only")
    parser.add_argument(
        "--streams", type=lambda s: numbers(int, s), default=[256], help="comma-separated; may be empty (default: 256)"
    )
    parser.add_argument("--input-len", type=int, default=512, help="tokens of each prompt of these (default: 512)")
    parser.add_argument("--output-len", type=int, default=256, help="tokens of each answer of these (default: 256)")
    parser.add_argument("--trace", type=Path, default=ROOT / "benchmarks/trace_sharegpt_like.json")
    parser.add_argument("--trace-requests", type=int, default=1000, help="of the trace, at once (default: 1000)")
    parser.add_argument(
        "--rates", type=lambda s: numbers(float, s), default=[10.0, 30.0], help="requests a second (default: 10,30)"
    )
    parser.add_argument("--rate-seconds", type=float, default=15.0, help="how long they arrive (default: 15)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all lengths, for a smoke test")
    parser.add_argument("--slo-ttft-ms", type=float, default=1000.0, help="first token in time (default: 1000)")
    parser.add_argument("--slo-itl-ms", type=float, default=50.0, help="average from token to token (default: 50)")
    parser.add_argument("--clients", type=int, default=4, help="processes that send requests (default: 4)")
    parser.add_argument("--channels", type=int, default=8, help="connections of each (default: 8)")
    parser.add_argument("--time-limit", type=float, default=180.0, help="seconds for a start and for a case")
    parser.add_argument(
        "--settle-limit", type=float, default=90.0, help="seconds the server may go on compiling first (default: 90)"
    )
    parser.add_argument("--output", type=Path, help="path without suffix of the JSON and the PNG")
    parser.add_argument("--no-plot", action="store_true", help="leave out the PNG, which needs matplotlib")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    add_config_flags(parser, ServerConfig, skip=["host", "port"])
    add_config_flags(parser, EngineConfig, skip=["model"])
    parser.set_defaults(**ENGINE_DEFAULTS)
    return parser


def main() -> int:
    """Read the command line, measure, and write tables, JSON and PNG, of a run that was stopped too; 1 if it was, or if
    a request failed."""
    args = build_parser().parse_args()
    record: dict[str, Any] = {"command": " ".join(sys.argv), "jaxserve": jaxserve.__version__}
    record |= {"python": platform.python_version(), "grpcio": grpc.__version__}
    measured: list[Measured] = []
    stopped = ""
    try:
        asyncio.run(measure(args, record, measured))
    except JaxserveError as error:
        stopped = str(error)
    except asyncio.CancelledError:
        stopped = "stopped before it was over"
    if stopped:
        print(f"bench_serving: {stopped}", file=sys.stderr)
        record["stopped"] = stopped
    if not measured:
        return 1
    shares = [s for a, b in pairs(measured) if (s := latency_shares(a, b)) is not None]
    record["of_offline"] = {
        b.case: b.figures.output_throughput / a.figures.output_throughput for a, b in pairs(measured)
    }
    record |= {"shares": msgspec.to_builtins(shares), "results": msgspec.to_builtins(measured)}
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
        if not args.no_plot:
            plot(measured, shares, args.output.with_suffix(".png"))
    if args.json:
        print(json.dumps(record))
    else:
        print_tables(measured, shares)
    return 1 if stopped or any(m.failures for m in measured) else 0


if __name__ == "__main__":
    sys.exit(main())
