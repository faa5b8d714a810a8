#!/usr/bin/env python3
"""Times how the kernel of decoding attention may be cut, with its rotation and cache write, on a GPU.

    python scripts/bench_decode_kernels.py [--context 640] [--batch 1 8 32 128 256] [--json FILE]

Llama-3-8B's shapes, bfloat16. Each variant runs as a chain in one executable, one link a layer with a pool of its own,
so that nothing is found in the cache; a link depends on the last one through a small operation, whose own time is
measured and taken off. The floor is bytes over 4.3 TB/s, an H200's copy bandwidth. Results are written as they come.
Products are timed by `bench_products.py`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.cached_attention.triton import cached_attention_triton
from pallas_kernels.paged_attention.arg_specs import HEADS
from pallas_kernels.paged_attention.config import DecodeConfig

BYTES_PER_SECOND = 4.3e12
HEADS_SPEC = HEADS["llama-3-8b"]
PAGE_SIZE = 16
# Block of keys, warps, stages, programs an SM, keys that are not cut further: without cuts there is nothing to merge.
ATTENTION = [
    DecodeConfig(block_n, warps, stages, programs_per_sm=programs, min_chunk=min_chunk)
    for block_n, warps, stages, programs, min_chunk in [
        (64, 4, 3, 4, 64),
        (64, 2, 3, 4, 64),
        (32, 2, 3, 4, 64),
        (32, 1, 3, 8, 64),
        (32, 1, 3, 16, 64),
        (32, 1, 4, 8, 128),
        (32, 1, 3, 8, 192),
        (64, 2, 3, 4, 192),
        (64, 4, 3, 4, 256),
        (128, 4, 3, 4, 128),
        (128, 4, 3, 4, 512),
        (128, 8, 3, 4, 512),
    ]
]


def time_chains(variants: dict[str, Callable[..., Any]], args: tuple[Any, ...], links: int) -> dict[str, float]:
    """Microseconds a link of each variant, a jitted function of `args` whose second result replaces args[1]; NaN where
    it does not compile."""

    def build(function: Callable[..., Any]) -> Any:
        try:
            return jax.jit(function, donate_argnums=1).lower(*args).compile()
        except Exception:
            return None

    with ThreadPoolExecutor(8) as threads:
        runs = dict(zip(variants, threads.map(build, variants.values()), strict=True))
    first, kept, *rest = args
    times = {}
    for name, run in runs.items():
        if run is None:
            times[name] = float("nan")
            continue
        samples = []
        for sample in range(9):
            started = time.perf_counter()
            for _ in range(5):
                out, kept = run(first, kept, *rest)
            jax.block_until_ready(out)
            if sample > 1:
                samples.append((time.perf_counter() - started) / 5 / links * 1e6)
        times[name] = statistics.median(samples)
    return times


def attention(batch: int, context: int) -> dict[str, Any]:
    """Each config of the decode kernel on `batch` sequences of `context` tokens."""
    k, g, h = HEADS_SPEC.num_kv_heads, HEADS_SPEC.group, HEADS_SPEC.head_dim
    links = 32 if batch < 256 else 16
    pages = -(-context // PAGE_SIZE)
    order = np.random.default_rng(0).permutation(batch * pages) + 1
    keys = jax.random.split(jax.random.key(0), links + 2)
    pool = jax.jit(lambda key: jax.random.normal(key, (batch * pages + 1, 2, PAGE_SIZE, k, h), jnp.bfloat16))
    qkv = jax.random.normal(keys[0], (batch, k, g + 2, h), jnp.bfloat16)
    cos_sin = jax.random.uniform(keys[1], (batch, 2, h // 2))
    lengths = jnp.full(batch, context, jnp.int32)
    starts = jnp.arange(batch + 1, dtype=jnp.int32)
    metadata = (lengths, jnp.asarray(order.reshape(batch, pages).astype(np.int32)), starts, lengths)

    def chain(config: DecodeConfig | None) -> Callable[..., Any]:
        def run(qkv: Any, pools: Any, cos_sin: Any, *metadata: Any) -> Any:
            written = []
            for pages in pools:
                out = qkv[:, :, :g] * 1.0001
                if config is not None:
                    options: Any = {"window": None, "soft_cap": None, "alibi_slopes": None}
                    out, pages = cached_attention_triton(
                        qkv, cos_sin, pages, *metadata, scale=h**-0.5, decode_only=True, decode=config, **options
                    )
                written.append(pages)
                qkv = jnp.concatenate([out, qkv[:, :, g:]], axis=2)
            return qkv, tuple(written)

        return run

    variants = {"nothing": chain(None), **{str(astuple(c)): chain(c) for c in ATTENTION}}
    times = time_chains(variants, (qkv, tuple(map(pool, keys[2:])), cos_sin, *metadata), links)
    floor = batch * context * k * h * 4 / BYTES_PER_SECOND * 1e6
    return report(f"attention, batch {batch}, context {context}", floor, times)


def report(case: str, floor: float, times: dict[str, float]) -> dict[str, Any]:
    """Print a case's times, the fastest first, and return them without what the chain itself takes."""
    nothing = times.pop("nothing")
    times = {name: us - nothing for name, us in sorted(times.items(), key=lambda item: item[1])}
    print(f"{case}: floor {floor:.1f} us")
    for name, us in times.items():
        print(f"    {us:7.1f} us  {floor / us:4.0%}  {name}", flush=True)
    return {"case": case, "floor_us": floor, "us": times}


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 128, 256])
    parser.add_argument("--context", type=int, default=640)
    parser.add_argument("--json", type=Path, help="write all results here")
    args = parser.parse_args()
    cases = []
    for batch in args.batch:
        cases.append(attention(batch, args.context))
        if args.json:
            record = {"device": jax.devices()[0].device_kind, "cases": cases}
            args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
