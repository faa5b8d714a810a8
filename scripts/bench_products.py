#!/usr/bin/env python3
"""Times a layer's products, of few rows above all, each by every implementation that takes it, with what reads it.

    python scripts/bench_products.py --check --json FILE             # Llama-3.1-8B's matrices on a GPU
    python scripts/bench_products.py --tp 2 --rows 1 32              # what one of two GPUs holds of them

A product is timed as a step runs it: queries, keys and values (qkv) alone; gate and up with SwiGLU; the two that end
in the residual stream (out, down) with the sum and norm after them; the scores of the next token (head) alone. Each
timing is of several with weights of their own, so that none is found in the cache, in one CUDA graph: from the start
of its first kernel to the end of its last as the profiler saw them, which adds about half a microsecond a kernel. The
floor is the weights' bytes over the bandwidth. Mosaic GPU's kernels are timed where steps have others, too.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from gpu_trace import record_kernels  # first: it sets what XLA reads when it starts

import jax  # isort: skip
import jax.numpy as jnp
import numpy as np

from jaxserve.models.registry import load_config
from pallas_kernels.residual_norm import residual_norm
from pallas_kernels.residual_norm.reference import sum_parts
from pallas_kernels.skinny_matmul import scores_matmul
from pallas_kernels.skinny_matmul.config import (
    FEW_ROWS,
    gated_config,
    gated_triton_config,
    scores_config,
    skinny_config,
    stream_config,
    tiled_gated_config,
)
from pallas_kernels.skinny_matmul.mosaic_gpu import stream_gated_matmul, stream_matmul
from pallas_kernels.skinny_matmul.reference import gated_matmul_reference, skinny_matmul_reference
from pallas_kernels.skinny_matmul.tiled import tiled_gated_matmul
from pallas_kernels.skinny_matmul.triton import gated_matmul_triton, skinny_matmul_triton
from pallas_kernels.swiglu import swiglu

ROOT = Path(__file__).resolve().parent.parent
BYTES_PER_SECOND = 4.3e12
WEIGHTS = 12  # of each matrix
WEIGHT_BYTES = 16 << 30  # of all of them
TOLERANCE = 1.5e-2  # of bfloat16, over the largest value

Product = Callable[[jax.Array, jax.Array], jax.Array]


def products(rows: int, columns: int, size: int, *, one_part: bool) -> dict[str, Product]:
    """[T, D] by [N, D] to [parts, T, N], by name."""
    found: dict[str, Product] = {"xla": skinny_matmul_reference}
    if (config := skinny_config(rows, columns, size)) is not None:
        found["triton"] = partial(skinny_matmul_triton, config=config)
    if (stream := stream_config(max(rows, FEW_ROWS + 1), columns, size, one_part=one_part)) is not None:
        found["mosaic_gpu"] = partial(stream_matmul, config=stream)
    return found


def with_norm(product: Product, x: jax.Array, weight: jax.Array) -> jax.Array:
    """The norm of a residual stream of zeros with the product added."""
    stream = jnp.zeros((x.shape[0], weight.shape[0]), x.dtype)
    return residual_norm(stream, product(x, weight), jnp.ones(weight.shape[0], x.dtype), eps=1e-5)[1]


def with_swiglu(product: Product, x: jax.Array, weight: jax.Array) -> jax.Array:
    """SwiGLU of the products with both matrices [2, F, D]."""
    parts = product(x, weight.reshape(-1, weight.shape[2]))
    return swiglu(sum_parts(parts, x.dtype).reshape(x.shape[0], *weight.shape[:2]))


def alone(product: Product, x: jax.Array, weight: jax.Array) -> jax.Array:
    return sum_parts(product(x, weight), x.dtype)


def cases(rows: int, model: str, tp: int) -> dict[str, tuple[tuple[int, ...], dict[str, Product]]]:
    """By name, the weight's shape on one device, and the ways to compute the product with what reads it."""
    config = load_config(Path(model))
    hidden, inner = config.hidden_size, config.intermediate_size // tp
    heads = config.num_query_heads // tp * config.head_dim
    qkv = heads + 2 * config.num_kv_heads // tp * config.head_dim
    gated: dict[str, Product] = {
        name: partial(with_swiglu, product)
        for name, product in products(rows, 2 * inner, hidden, one_part=True).items()
    }
    if (tiles := gated_config(max(rows, FEW_ROWS + 1), inner, hidden)) is not None:
        gated["mosaic_gpu, gated"] = partial(stream_gated_matmul, config=tiles)
    if (triton := gated_triton_config(rows, inner, hidden)) is not None:
        gated["triton, gated"] = partial(gated_matmul_triton, config=triton)
    if (many := tiled_gated_config(rows, inner, hidden)) is not None:
        gated["mosaic_gpu, gated"] = partial(tiled_gated_matmul, config=many)

    def ways(columns: int, size: int, reader: Any, *, one_part: bool) -> tuple[tuple[int, ...], dict[str, Product]]:
        found = products(rows, columns, size, one_part=one_part)
        return (columns, size), {name: partial(reader, product) for name, product in found.items()}

    scores: dict[str, Product] = {"xla": partial(scores_matmul, implementation="reference")}
    if scores_config(rows, config.vocab_size // tp, hidden) is not None:
        scores["mosaic_gpu"] = partial(scores_matmul, implementation="mosaic_gpu")
    return {
        "qkv": ways(qkv, hidden, alone, one_part=True),
        "out": ways(hidden, heads, with_norm, one_part=False),
        "gate and up": ((2, inner, hidden), gated),
        "down": ways(hidden, inner, with_norm, one_part=False),
        "head": ((config.vocab_size // tp, hidden), scores),
    }


def microseconds(compute: Product, x: jax.Array, weights: list[jax.Array]) -> float:
    """A product's share of all of them, the median of several runs."""
    each = jax.jit(compute)
    together = jax.jit(lambda x, weights: [each(x, weight) for weight in weights])
    for _ in range(3):
        jax.block_until_ready(together(x, weights))
    spans = []
    for _ in range(5):
        kernels = record_kernels(lambda: jax.block_until_ready(together(x, weights))).kernels[0]
        spans.append((max(kernel.end for kernel in kernels) - kernels[0].start) / len(weights))
    return statistics.median(spans)


def error(name: str, compute: Product, x: jax.Array, weight: jax.Array) -> float:
    """The largest, over the largest value, against the reference in float32."""
    x32, weight32 = x.astype(jnp.float32), weight.astype(jnp.float32)
    if name == "gate and up":
        wanted = gated_matmul_reference(x32, weight32)
    else:
        wanted = {"qkv": alone, "head": alone}.get(name, with_norm)(skinny_matmul_reference, x32, weight32)
    difference = np.abs(np.asarray(jax.jit(compute)(x, weight), np.float32) - np.asarray(wanted))
    return float(difference.max() / np.abs(np.asarray(wanted)).max())


def main() -> int:
    """Read the command line, measure, print; 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "benchmarks/models/llama-3.1-8b"), help="its config is enough")
    parser.add_argument("--tp", type=int, default=1, help="over how many GPUs its matrices are split (default: 1)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16, 32, 64])
    parser.add_argument("--products", nargs="+", default=["qkv", "out", "gate and up", "down", "head"])
    parser.add_argument("--ways", nargs="+", help="implementations to time (default: all that take it)")
    parser.add_argument("--check", action="store_true", help="compare with the reference first")
    parser.add_argument("--json", type=Path, help="write the JSON here, after each product")
    args = parser.parse_args()
    results: list[dict[str, Any]] = []
    record = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "model": Path(args.model).name,
        "tensor_parallel_size": args.tp,
        "cases": results,
    }
    for rows in args.rows:
        for name, (shape, ways) in cases(rows, args.model, args.tp).items():
            if name not in args.products:
                continue
            ways = {way: compute for way, compute in ways.items() if way in (args.ways or ways)}
            number = min(WEIGHTS, WEIGHT_BYTES // (2 * math.prod(shape)))
            keys = jax.random.split(jax.random.key(rows), number + 1)
            x = jax.random.normal(keys[0], (rows, shape[-1]), jnp.bfloat16)
            weights = [0.02 * jax.random.normal(key, shape, jnp.bfloat16) for key in keys[1:]]
            result: dict[str, Any] = {"product": name, "rows": rows, "weight": shape}
            result["floor_us"] = weights[0].nbytes / BYTES_PER_SECOND * 1e6
            if args.check:
                result["error"] = {way: error(name, compute, x, weights[0]) for way, compute in ways.items()}
                result["passed"] = all(e < TOLERANCE for e in result["error"].values())
            result["us"] = {way: microseconds(compute, x, weights) for way, compute in ways.items()}
            results.append(result)
            print(json.dumps(result), flush=True)
            if args.json:
                args.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(result.get("passed", True) for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
