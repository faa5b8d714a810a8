#!/usr/bin/env python3
"""Times paged attention on a GPU against what its bytes and its products must take, after checking its results.

    python scripts/bench_kernels.py [--check] [--time] [--tune] [--only NAME ...] [--prefill KERNEL ...] [--json FILE]

Without a choice it checks and times, prompts by both kernels. Llama-3-8B's heads, bfloat16, pages of 16 scattered over
the pool. A timing is of calls chained in one jit, each on a pool of its own so that no keys are found in the cache, and
is the median of several runs. The floor is the larger of bytes / 4.3 TB/s (copy bandwidth measured on an H200) and
flops / 790 TFLOP/s (dense products measured there).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from kernel_figures import figures, or_error

from pallas_kernels.paged_attention.arg_specs import BATCHES, BENCHMARK_BATCHES, HEADS, BatchSpec, HeadSpec
from pallas_kernels.paged_attention.config import (
    DecodeConfig,
    MosaicPrefillConfig,
    PrefillConfig,
    decode_config,
    mosaic_prefill_config,
)
from pallas_kernels.paged_attention.reference import paged_attention_reference
from pallas_kernels.paged_attention.triton import paged_attention_triton

BYTES_PER_SECOND = 4.3e12
FLOPS_PER_SECOND = 790e12
MODEL = "llama-3-8b"
KERNELS = ("triton", "mosaic_gpu")
# Largest error over largest value. 16-bit weights of the softmax lose what 16-bit outputs lose again.
TOLERANCE = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 1e-5}

# Candidates of --tune.
DECODE_CANDIDATES = [
    DecodeConfig(block_n=block_n, num_warps=warps, num_stages=stages, programs_per_sm=programs)
    for block_n, warps, stages, programs in [
        (64, 4, 3, 4),
        (64, 4, 3, 2),
        (64, 4, 3, 8),
        (64, 4, 5, 4),
        (64, 2, 4, 4),
        (32, 4, 5, 4),
        (32, 2, 3, 4),
        (32, 1, 3, 8),
        (128, 4, 3, 4),
        (128, 8, 3, 4),
    ]
]
PREFILL_CANDIDATES = [
    PrefillConfig(*sizes)
    for sizes in [(128, 64, 8, 3), (128, 64, 8, 5), (128, 128, 8, 3), (64, 64, 4, 3), (64, 64, 4, 5), (64, 128, 4, 3)]
]
MOSAIC_CANDIDATES = [
    *(
        MosaicPrefillConfig(*sizes)
        for sizes in [(2, 128, 2), (1, 128, 2), (4, 128, 2), (2, 64, 4), (4, 64, 4), (2, 64, 3)]
    ),
    MosaicPrefillConfig(2, 128, 2, persistent=False),
]


@dataclass(frozen=True)
class Batch:
    """A BatchSpec's arrays: padded as in a step's bucket, pages in random order."""

    query_start_loc: np.ndarray
    seq_lens: np.ndarray
    page_table: np.ndarray
    num_tokens: int
    num_pages: int
    decode_only: bool


def lay_out(spec: BatchSpec, page_size: int) -> Batch:
    queries = [n for n, _ in spec.sequences]
    totals = np.array([total for _, total in spec.sequences], np.int32)
    pages = -(-totals // page_size)
    order = np.random.default_rng(0).permutation(int(pages.sum())).astype(np.int32) + 1
    page_table = np.zeros((len(totals), int(pages.max())), np.int32)
    for row, ids in zip(page_table, np.split(order, np.cumsum(pages)[:-1]), strict=True):
        row[: len(ids)] = ids
    return Batch(
        query_start_loc=np.cumsum([0, *queries]).astype(np.int32),
        seq_lens=totals,
        page_table=page_table,
        num_tokens=sum(queries),
        num_pages=int(pages.sum()) + 1,
        decode_only=max(queries) == 1,
    )


def random_arrays(heads: HeadSpec, batch: Batch, page_size: int, dtype: str, pools: int) -> tuple[Any, list[Any]]:
    k, g, h = heads.num_kv_heads, heads.group, heads.head_dim
    make = jax.jit(jax.random.normal, static_argnums=(1, 2))
    keys = jax.random.split(jax.random.key(0), pools + 1)
    q = make(keys[0], (batch.num_tokens, k, g, h), jnp.dtype(dtype))
    return q, [make(key, (batch.num_pages, 2, page_size, k, h), jnp.dtype(dtype)) for key in keys[1:]]


def floor_seconds(heads: HeadSpec, spec: BatchSpec, itemsize: int = 2) -> tuple[float, int, int]:
    """(the floor, bytes, flops) of one call: keys and values once, queries and output, causal products."""
    row = heads.num_kv_heads * heads.head_dim
    tokens = sum(n for n, _ in spec.sequences)
    total = sum(n for _, n in spec.sequences)
    num_bytes = itemsize * row * 2 * (total + tokens * heads.group)
    pairs = sum(n * (total - n) + n * (n + 1) // 2 for n, total in spec.sequences)
    flops = 4 * row * heads.group * pairs
    return max(num_bytes / BYTES_PER_SECOND, flops / FLOPS_PER_SECOND), num_bytes, flops


def prefill_config_of(kernel: str, heads: HeadSpec, page_size: int, dtype: str) -> MosaicPrefillConfig | None:
    """None leaves prompts to Triton."""
    return mosaic_prefill_config(heads.group, heads.head_dim, page_size, dtype) if kernel == "mosaic_gpu" else None


def check_case(kernel: str, heads_name: str, batch_name: str, dtype: str, page_size: int) -> dict[str, Any]:
    """The largest error of the kernels against the reference in float32, over the last rows of each sequence."""
    heads = HEADS[heads_name]
    spec = {**BATCHES, **BENCHMARK_BATCHES}[batch_name]
    batch = lay_out(spec, page_size)
    q, (pool,) = random_arrays(heads, batch, page_size, dtype, 1)
    scale = heads.head_dim**-0.5
    prefill = prefill_config_of(kernel, heads, page_size, dtype)
    metadata = (batch.page_table, batch.query_start_loc, batch.seq_lens)

    def run(q: jax.Array, pool: jax.Array, *metadata: jax.Array) -> jax.Array:
        return paged_attention_triton(q, pool, *metadata, scale=scale, decode_only=batch.decode_only, prefill=prefill)

    out = np.asarray(jax.jit(run)(q, pool, *metadata), np.float32)
    # The reference gathers keys for each query: some rows of each sequence are all that fits.
    kept = [min(n, max(1, 512 // len(spec.sequences))) for n, _ in spec.sequences]
    rows = np.concatenate([end - n + np.arange(n) for end, n in zip(batch.query_start_loc[1:], kept, strict=True)])
    starts = np.cumsum([0, *kept]).astype(np.int32)
    reference = jax.jit(lambda *a: paged_attention_reference(*a, scale=scale))
    right = reference(q[rows].astype(jnp.float32), pool, batch.page_table, starts, batch.seq_lens)
    right = np.asarray(right)
    error = float(np.abs(out[rows] - right).max() / np.abs(right).max())
    return {
        "prefill": kernel,
        "heads": heads_name,
        "batch": batch_name,
        "dtype": dtype,
        "page_size": page_size,
        "relative_error": error,
        "ok": bool(np.isfinite(out).all() and error <= TOLERANCE[dtype]),
    }


def check_cases(kernels: Sequence[str], only: Sequence[str]) -> list[tuple[str, str, str, str, int]]:
    cases = []
    if "triton" in kernels:
        cases += [("triton", heads, batch, "bfloat16", 16) for heads in HEADS for batch in ("decode", "mixed")]
        cases += [("triton", MODEL, batch, "bfloat16", 16) for batch in (*BATCHES, *only)]
        cases += [("triton", heads, "mixed", "float32", 16) for heads in ("demo", MODEL, "phi-2", "gemma-2-9b")]
        cases += [("triton", MODEL, "mixed", "float16", size) for size in (8, 16, 64, 256)]
    if "mosaic_gpu" in kernels:
        batches = (*BATCHES, *(name for name in only if not name.startswith("decode")))
        cases += [("mosaic_gpu", MODEL, batch, "bfloat16", 16) for batch in batches if batch != "decode"]
        for heads in ("demo", "llama-2-7b", "smollm-135m", "multi-query"):
            cases += [("mosaic_gpu", heads, batch, "bfloat16", 16) for batch in ("mixed", "chunk-after-context")]
        cases += [("mosaic_gpu", MODEL, "mixed", "float16", size) for size in (16, 64, 256)]
    return list(dict.fromkeys(cases))


def compile_chain(
    heads: HeadSpec, batch: Batch, page_size: int, calls: int, dtype: str, **configs: Any
) -> Callable[..., jax.Array]:
    """`calls` attentions in one executable, each the next one's queries, as the layers of a model."""
    shape = (heads.num_kv_heads, heads.group, heads.head_dim)

    def chain(q: jax.Array, pools: Sequence[jax.Array], *metadata: jax.Array) -> jax.Array:
        for pool in pools:
            q = paged_attention_triton(
                q, pool, *metadata, scale=heads.head_dim**-0.5, decode_only=batch.decode_only, **configs
            )
        return q

    q = jax.ShapeDtypeStruct((batch.num_tokens, *shape), dtype)
    pool = jax.ShapeDtypeStruct((batch.num_pages, 2, page_size, shape[0], shape[2]), dtype)
    metadata = (batch.page_table, batch.query_start_loc, batch.seq_lens)
    return jax.jit(chain).lower(q, [pool] * calls, *metadata).compile()


def median_seconds(run: Callable[..., jax.Array], q: jax.Array, pools: list[jax.Array], batch: Batch) -> float:
    """Seconds a call, over executions started one behind the other so that the device does not wait for Python."""
    metadata = [jnp.asarray(a) for a in (batch.page_table, batch.query_start_loc, batch.seq_lens)]
    for _ in range(3):
        q = run(q, pools, *metadata)
    started = time.perf_counter()
    jax.block_until_ready(run(jax.block_until_ready(q), pools, *metadata))
    executions = max(2, min(20, round(0.05 / (time.perf_counter() - started))))
    samples = []
    for _ in range(7):
        jax.block_until_ready(q)
        started = time.perf_counter()
        for _ in range(executions):
            q = run(q, pools, *metadata)
        jax.block_until_ready(q)
        samples.append((time.perf_counter() - started) / executions / len(pools))
    return statistics.median(samples)


def time_batch(name: str, variants: list[dict[str, Any]], page_size: int = 16) -> list[dict[str, Any]]:
    heads, spec = HEADS[MODEL], BENCHMARK_BATCHES[name]
    batch = lay_out(spec, page_size)
    floor, num_bytes, flops = floor_seconds(heads, spec)
    pool_bytes = batch.num_pages * page_size * heads.num_kv_heads * heads.head_dim * 4
    calls = max(8, min(64, -(-(1 << 30) // pool_bytes)))
    with ThreadPoolExecutor(8) as threads:
        runs = list(
            threads.map(lambda v: or_error(compile_chain, heads, batch, page_size, calls, "bfloat16", **v), variants)
        )
    q, pools = random_arrays(heads, batch, page_size, "bfloat16", calls)
    rows = []
    for variant, run in zip(variants, runs, strict=True):
        row: dict[str, Any] = {"batch": name, **{kind: asdict(config) for kind, config in variant.items()}}
        seconds = run if isinstance(run, Exception) else or_error(median_seconds, run, q, pools, batch)
        row |= figures(seconds, floor, num_bytes, flops)
        rows.append(row)
        print(format_row(row), flush=True)
    return rows


def format_row(row: dict[str, Any]) -> str:
    configs = " ".join(f"{kind}={tuple(row[kind].values())}" for kind in ("decode", "prefill") if kind in row)
    if "error" in row:
        return f"{row['batch']:18} {row['error']} {configs}"
    return (
        f"{row['batch']:18} {row['us']:10.1f} us   floor {row['floor_us']:9.1f}   {row['of_floor']:5.0%}   "
        f"{row['tb_per_s']:5.2f} TB/s   {row['tflop_per_s']:6.0f} TFLOP/s   {configs}"
    )


def run_checks(kernels: Sequence[str], only: Sequence[str]) -> list[dict[str, Any]]:
    results = []
    with ThreadPoolExecutor(8) as threads:
        for r in threads.map(lambda case: check_case(*case), check_cases(kernels, only)):
            results.append(r)
            print(
                f"{'ok  ' if r['ok'] else 'FAIL'} {r['relative_error']:.1e} {r['prefill']:10} {r['heads']:14} "
                f"{r['batch']:20} {r['dtype']:9} page {r['page_size']}",
                flush=True,
            )
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the reference in float32")
    parser.add_argument("--time", action="store_true", help="time the shapes with the configs in use")
    parser.add_argument("--tune", action="store_true", help="time candidate configs")
    parser.add_argument("--only", nargs="+", default=list(BENCHMARK_BATCHES), choices=list(BENCHMARK_BATCHES))
    parser.add_argument("--prefill", nargs="+", default=list(KERNELS), choices=KERNELS, help="what computes prompts")
    parser.add_argument("--json", type=Path, help="write all results here")
    args = parser.parse_args()
    if not (args.check or args.time or args.tune):
        args.check = args.time = True
    device = jax.devices()[0].device_kind
    versions = {name: version(name) for name in ("jax", "jax-triton", "triton")}
    report: dict[str, Any] = {"device": device, "versions": versions}
    print(device, versions, flush=True)
    if args.check:
        report["checks"] = run_checks(args.prefill, args.only)
    if args.time:
        report["timings"] = [row for name in args.only for row in time_batch(name, in_use(name, args.prefill))]
    if args.tune:
        report["candidates"] = [row for name in args.only for row in time_batch(name, candidates(name, args.prefill))]
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(r["ok"] for r in report.get("checks", [])) else 1


def in_use(name: str, kernels: Sequence[str]) -> list[dict[str, Any]]:
    """The configs in use, of each kernel that can compute the batch's prompts."""
    if name.startswith("decode"):
        return [{}]
    heads = HEADS[MODEL]
    mosaic = {"prefill": mosaic_prefill_config(heads.group, heads.head_dim, 16, jnp.bfloat16)}
    return [{} if kernel == "triton" else mosaic for kernel in kernels]


def candidates(name: str, kernels: Sequence[str]) -> list[dict[str, Any]]:
    if name.startswith("decode"):
        return [{"decode": config} for config in DECODE_CANDIDATES]
    configs = [
        *(PREFILL_CANDIDATES if "triton" in kernels else []),
        *(MOSAIC_CANDIDATES if "mosaic_gpu" in kernels else []),
    ]
    decode = decode_config(HEADS[MODEL].head_dim, HEADS[MODEL].group, jnp.bfloat16, 1)
    return [{"prefill": config, "decode": decode} for config in configs]


if __name__ == "__main__":
    raise SystemExit(main())
