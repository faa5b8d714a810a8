"""`jaxserve bench`: throughput offline, latency and throughput over gRPC, on prompts of random tokens."""

import argparse
import asyncio
import math
import time

import msgspec
from rich.console import Console

from jaxserve.bench.figures import RequestTimes, ServiceLevel, ServingFigures
from jaxserve.bench.load import run_load
from jaxserve.bench.load_client import LoadJob
from jaxserve.bench.serving import duration_of
from jaxserve.bench.workload import RequestPlan, exact_length, poisson_arrivals, random_prompts
from jaxserve.cli.flags import config_from_flags
from jaxserve.client import AsyncClient
from jaxserve.config import EngineConfig
from jaxserve.errors import ConfigError, JaxserveError
from jaxserve.progress import progress_bars


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    for name in ("num_prompts", "input_len", "output_len", "concurrency", "num_clients"):
        if getattr(args, name, 1) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1")
    if getattr(args, "request_rate", None) is not None and args.request_rate <= 0:
        raise ConfigError("--request-rate must be above 0")
    figures = _throughput(args) if args.kind == "throughput" else asyncio.run(_serve(args))
    if args.json:
        print(msgspec.json.encode(figures).decode())
    else:
        Console().print(figures.table())
    return 0


def _throughput(args: argparse.Namespace) -> ServingFigures:
    from jaxserve.engine.llm import LLM

    llm = LLM.from_config(config_from_flags(EngineConfig, args, model=args.model))
    plan = RequestPlan(args.input_len, args.output_len)
    prompts = random_prompts([plan] * args.num_prompts, llm.info.limits.vocab_size, seed=0)
    times = [RequestTimes(num_prompt_tokens=len(prompt)) for prompt in prompts]
    started = time.monotonic()
    outputs = llm.generate(prompts, exact_length(plan))
    duration = time.monotonic() - started
    for entry, output in zip(times, outputs, strict=True):
        entry.num_output_tokens = len(output.outputs[0].token_ids)
    return ServingFigures.of(times, duration)


async def _serve(args: argparse.Namespace) -> ServingFigures:
    async with AsyncClient(args.target) as client:
        vocab_size = (await client.model_info()).vocab_size
    plans = [RequestPlan(args.input_len, args.output_len)] * args.num_prompts
    if args.request_rate is not None:
        plans = poisson_arrivals(plans, args.request_rate, math.inf, seed=0)
    concurrency = None if args.request_rate is not None else args.concurrency
    job = LoadJob(target=args.target, plans=plans, vocab_size=vocab_size, concurrency=concurrency)
    with progress_bars() as report:
        results = await run_load(job, args.num_clients, report)
    failures = [failure for result in results for failure in result.failures]
    if failures:
        raise JaxserveError(f"{len(failures)} of {len(plans)} requests failed; the first: {failures[0]}")
    times = [entry for result in results for entry in result.times]
    slo = ServiceLevel(ttft_ms=args.slo_ttft_ms, itl_ms=args.slo_itl_ms)
    return ServingFigures.of(times, duration_of(times), slo if str(slo) else None)
