#!/usr/bin/env python3
"""Times a layer's products, of few rows above all, each by every implementation that takes it, with what reads it.

    python scripts/bench_products.py --check --json FILE             # Llama-3.1-8B's matrices on a GPU
    python scripts/bench_products.py --tp 2 --rows 1 32              # what one of two GPUs holds of them
    python scripts/bench_products.py --tp 4 --rows 128 --tune        # also other ways to cut them

A product is timed as a step runs it: queries, keys and values (qkv) alone; gate and up with SwiGLU; the two that end
in the residual stream (out, down) with the sum and norm after them; the scores of the next token (head) alone. Each
timing is of several with weights of their own, so that none is found in the cache, in one CUDA graph: from the start
of its first kernel to the end of its last as the profiler saw them, which adds about half a microsecond a kernel. The
floor is the weights' bytes over the bandwidth.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
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
    SHARED_BYTES,
    SkinnyConfig,
    gated_config,
    scores_config,
    skinny_config,
    tiled_gated_config,
)
from pallas_kernels.skinny_matmul.reference import gated_matmul_reference, skinny_matmul_reference
from pallas_kernels.skinny_matmul.tiled import tiled_gated_matmul
from pallas_kernels.skinny_matmul.triton import gated_matmul_triton, skinny_matmul_triton
from pallas_kernels.swiglu import swiglu

ROOT = Path(__file__).resolve().parent.parent
BYTES_PER_SECOND = 4.3e12
WEIGHTS = 12  # of each matrix
WEIGHT_BYTES = 16 << 30  # of all of them
TOLERANCE = 1.5e-2  # of bfloat16, over the largest value

# Other ways to cut a product, in one, two and four parts, and a gated one or scores, in one.
CUTS = [SkinnyConfig(*c) for c in ((64, 128, 4, 5), (64, 128, 4, 3), (64, 64, 4, 8), (64, 64, 4, 5), (128, 64, 8, 4))]
WIDE_CUTS = [SkinnyConfig(*c) for c in ((64, 128, 4, 4), (64, 64, 4, 6), (128, 64, 8, 3), (128, 128, 8, 4))]

Product = Callable[[jax.Array, jax.Array], jax.Array]


def fitting(cuts: Iterable[SkinnyConfig], rows: int, size: int, num_weights: int = 1) -> list[SkinnyConfig]:
    """Those whose parts D divides into, and whose blocks the shared memory of a program holds."""
    return [
        cut
        for cut in cuts
        if size % (cut.parts * cut.block_d) == 0 and cut.shared_bytes(rows, num_weights) <= SHARED_BYTES
    ]


def other_cuts(rows: int, columns: int, size: int) -> list[SkinnyConfig]:
    """Other ways to cut a product that do not leave most of a card idle."""
    in_parts = [replace(cut, parts=parts) for parts in (1, 2, 4) for cut in CUTS]
    return [c for c in fitting(in_parts, rows, size) if 60 <= -(-columns // c.block_n) * c.parts <= 600]


def products(rows: int, columns: int, size: int, *, tune: bool = False) -> dict[str, Product]:
    """[T, D] by [N, D] to [parts, T, N], by name."""
    found: dict[str, Product] = {"xla": skinny_matmul_reference}
    if (config := skinny_config(rows, columns, size)) is not None:
        found["triton"] = partial(skinny_matmul_triton, config=config)
    if tune:
        found |= {
            f"triton {astuple(c)}": partial(skinny_matmul_triton, config=c) for c in other_cuts(rows, columns, size)
        }
    return found


def with_norm(product: Product, x: jax.Array, weight: jax.Array) -> jax.Array:
    """The norm of a residual stream of zeros with the product added."""
    stream = jnp.zeros((x.shape[0], weight.shape[0]), x.dtype)
    return residual_norm(stream, product(x, weight), jnp.ones(weight.shape[0], x.dtype), eps=1e-5)[1]


def with_swiglu(product: Product, x: jax.Array, weight: jax.Array) -> jax.Array:
    """SwiGLU of the products with both matrices [2, F, D]."""
    parts = product(x, weight.reshape(-1, weight.shape[2]))
    return swiglu(sum_parts(parts, x.dtype).reshape(x.shape[0], *weight.shape[:2]))


def scores_by(x: jax.Array, weight: jax.Array, config: SkinnyConfig) -> jax.Array:
    return skinny_matmul_triton(x, weight, config, dtype=jnp.float32)[0]


def alone(product: Product, x: jax.Array, weight: jax.Array) -> jax.Array:
    return sum_parts(product(x, weight), x.dtype)


def cases(rows: int, model: str, tp: int, *, tune: bool) -> dict[str, tuple[tuple[int, ...], dict[str, Product]]]:
    """By name, the weight's shape on one device, and the ways to compute the product with what reads it."""
    config = load_config(Path(model))
    hidden, inner = config.hidden_size, config.intermediate_size // tp
    heads = config.num_query_heads // tp * config.head_dim
    qkv = heads + 2 * config.num_kv_heads // tp * config.head_dim
    gated: dict[str, Product] = {
        name: partial(with_swiglu, product) for name, product in products(rows, 2 * inner, hidden).items()
    }
    if (few := gated_config(rows, inner, hidden)) is not None:
        gated["triton, gated"] = partial(gated_matmul_triton, config=few)
    if (many := tiled_gated_config(rows, inner, hidden)) is not None:
        gated["mosaic_gpu, gated"] = partial(tiled_gated_matmul, config=many)

    def ways(columns: int, size: int, reader: Any) -> tuple[tuple[int, ...], dict[str, Product]]:
        found = products(rows, columns, size, tune=tune)
        return (columns, size), {name: partial(reader, product) for name, product in found.items()}

    if tune:
        cuts = fitting(WIDE_CUTS, rows, hidden, num_weights=2)
        gated |= {f"triton, gated {astuple(c)}": partial(gated_matmul_triton, config=c) for c in cuts}
    scores: dict[str, Product] = {"xla": partial(scores_matmul, implementation="reference")}
    if scores_config(rows, config.vocab_size // tp, hidden) is not None:
        scores["triton"] = partial(scores_matmul, implementation="triton")
    if tune:
        scores |= {f"triton {astuple(c)}": partial(scores_by, config=c) for c in fitting(WIDE_CUTS, rows, hidden)}
    return {
        "qkv": ways(qkv, hidden, alone),
        "out": ways(hidden, heads, with_norm),
        "gate and up": ((2, inner, hidden), gated),
        "down": ways(hidden, inner, with_norm),
        "head": ((config.vocab_size // tp, hidden), scores),
    }


def compiled(compute: Product, x: jax.Array, weights: list[jax.Array]) -> Any:
    """The products of x and each weight, in one executable."""
    each = jax.jit(compute)
    return jax.jit(lambda x, weights: [each(x, weight) for weight in weights]).lower(x, weights).compile()


def microseconds(together: Any, x: jax.Array, weights: list[jax.Array]) -> float:
    """A product's share of all of them, the median of several runs."""
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
    parser.add_argument("--tune", action="store_true", help="time other ways to cut them, too")
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
        for name, (shape, ways) in cases(rows, args.model, args.tp, tune=args.tune).items():
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
            # Alone, for XLA times its candidates on the device.
            runs = {way: compiled(ways[way], x, weights) for way in ways if way == "xla"}
            rest = {way: compute for way, compute in ways.items() if way != "xla"}
            with ThreadPoolExecutor() as threads:
                runs |= zip(rest, threads.map(partial(compiled, x=x, weights=weights), rest.values()), strict=True)
            result["us"] = {way: microseconds(run, x, weights) for way, run in runs.items()}
            results.append(result)
            print(json.dumps(result), flush=True)
            if args.json:
                args.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(result.get("passed", True) for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
