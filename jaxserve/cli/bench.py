"""`jaxserve bench`: throughput offline, latency and throughput over gRPC, on prompts of random tokens."""

import argparse
import asyncio
import random
import time

import msgspec
from rich.console import Console

from jaxserve.bench.figures import RequestTimes, ServingFigures
from jaxserve.cli.flags import config_from_flags
from jaxserve.client import AsyncClient
from jaxserve.config import EngineConfig
from jaxserve.errors import ConfigError
from jaxserve.progress import ProgressCallback, progress_bars
from jaxserve.request import SamplingParams


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    for name in ("num_prompts", "input_len", "output_len", "concurrency"):
        if getattr(args, name, 1) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1")
    figures = _throughput(args) if args.kind == "throughput" else asyncio.run(_serve(args))
    if args.json:
        print(msgspec.json.encode(figures).decode())
    else:
        Console().print(figures.table())
    return 0


def _random_prompts(args: argparse.Namespace, vocab_size: int) -> list[list[int]]:
    """Prompts that share no prefix; ids from the upper half of the vocabulary, away from special tokens."""
    rng = random.Random(0)
    return [
        [rng.randrange(vocab_size // 2, vocab_size) for _ in range(args.input_len)] for _ in range(args.num_prompts)
    ]


def _params(args: argparse.Namespace) -> SamplingParams:
    return SamplingParams(max_tokens=args.output_len, temperature=0.0, ignore_eos=True, detokenize=False)


def _throughput(args: argparse.Namespace) -> ServingFigures:
    from jaxserve.engine.llm import LLM

    llm = LLM.from_config(config_from_flags(EngineConfig, args, model=args.model))
    prompts = _random_prompts(args, llm.info.limits.vocab_size)
    times = [RequestTimes(num_prompt_tokens=len(prompt)) for prompt in prompts]
    started = time.monotonic()
    outputs = llm.generate(prompts, _params(args))
    duration = time.monotonic() - started
    for entry, output in zip(times, outputs, strict=True):
        entry.num_output_tokens = len(output.outputs[0].token_ids)
    return ServingFigures.of(times, duration)


async def _serve(args: argparse.Namespace) -> ServingFigures:
    async with AsyncClient(args.target) as client:
        info = await client.model_info()
        prompts = iter(_random_prompts(args, info.vocab_size))
        params = _params(args)
        times: list[RequestTimes] = []

        async def worker(report: ProgressCallback) -> None:
            for prompt in prompts:
                entry = RequestTimes(num_prompt_tokens=len(prompt))
                async for delta in client.generate_stream(prompt, params):
                    entry.add(len(delta.token_ids))
                times.append(entry)
                report("Requests", len(times), args.num_prompts)

        started = time.monotonic()
        with progress_bars() as report:
            report("Requests", 0, args.num_prompts)
            await asyncio.gather(*(worker(report) for _ in range(args.concurrency)))
        return ServingFigures.of(times, time.monotonic() - started)
