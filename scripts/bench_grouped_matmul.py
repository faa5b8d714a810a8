#!/usr/bin/env python3
"""Times routed experts on a GPU against what their bytes and products must take, after checking the results.

    python scripts/bench_grouped_matmul.py [--check] [--time] [--ragged] [--tune] [--only CASE ...] [--json FILE]

Without a choice it checks and times. A case is a model and a number of tokens, as `qwen3-30b-a3b:32`; bfloat16, experts
drawn evenly. A timing is of calls chained in one jit, each on weights of its own and with experts of its own, so that
no weight is found in the cache, and is the median of several runs. It has all that a layer does but the router's
product: the choice of experts, the sorting, both products and the sum. The floor is the larger of bytes / 4.3 TB/s
(copy bandwidth measured on an H200) and flops / 790 TFLOP/s (dense products measured there); the bytes are those of the
experts that have tokens, and of the tokens. --ragged times the same layer by jax.lax.ragged_dot beside it.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from kernel_figures import figures, or_error

from pallas_kernels.grouped_matmul.arg_specs import BENCHMARK_TOKENS, EXPERTS, ExpertSpec
from pallas_kernels.grouped_matmul.config import SEARCHED_TOKENS, MatmulConfig, matmul_config, tile_rows
from pallas_kernels.grouped_matmul.reference import expert_mlp_reference, grouped_matmul_reference
from pallas_kernels.grouped_matmul.triton import expert_mlp_triton, grouped_matmul_triton
from pallas_kernels.top_k_experts.reference import top_k_experts_reference
from pallas_kernels.top_k_experts.triton import top_k_experts_triton

BYTES_PER_SECOND = 4.3e12
FLOPS_PER_SECOND = 790e12
MODELS = ("mixtral-8x7b", "qwen3-30b-a3b")
CASES = [f"{model}:{tokens}" for model in MODELS for tokens in BENCHMARK_TOKENS]
# Largest error over largest value, against float32: what lies between the products is rounded to 16 bits.
TOLERANCE = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 1e-5}
MAX_TEMPORARY_BYTES = 45e9

# Candidates of --tune by rows of a tile: (block_n, block_k, num_warps, num_stages, tiles_together).
CANDIDATES = {
    16: [
        (32, 128, 4, 4, 8),
        (32, 128, 2, 4, 8),
        (32, 256, 4, 3, 8),
        (64, 128, 4, 3, 8),
        (64, 128, 4, 4, 8),
        (64, 64, 4, 5, 8),
        (64, 256, 4, 3, 8),
        (128, 64, 4, 4, 8),
        (128, 128, 4, 3, 8),
        (128, 128, 8, 3, 8),
        (64, 128, 4, 4, 1),
    ],
    32: [(64, 128, 4, 3, 8), (128, 64, 4, 4, 8), (128, 128, 4, 3, 8), (128, 64, 8, 4, 8), (128, 64, 4, 4, 1)],
    64: [(64, 64, 4, 4, 8), (128, 64, 4, 4, 8), (128, 128, 4, 3, 8), (256, 64, 4, 3, 8), (256, 64, 8, 3, 8)],
    128: [
        (128, 64, 4, 4, 8),
        (128, 64, 8, 4, 8),
        (256, 64, 8, 3, 8),
        (256, 64, 8, 4, 8),
        (256, 64, 8, 3, 16),
        (256, 64, 8, 3, 4),
        (256, 32, 8, 4, 8),
    ],
}


@dataclass(frozen=True)
class Layer:
    """Random arguments of some layers: weights of each, and router logits for each."""

    gate_up: list[jax.Array]
    down: list[jax.Array]
    logits: list[jax.Array]


def make_layers(spec: ExpertSpec, num_tokens: int, count: int, dtype: str) -> Layer:
    e, d, f = spec.num_experts, spec.hidden_size, spec.intermediate_size
    make = jax.jit(
        lambda key, shape, scale: (jax.random.normal(key, shape, jnp.bfloat16) * scale).astype(dtype), static_argnums=1
    )
    keys = jax.random.split(jax.random.key(0), (count, 3))
    return Layer(
        [make(k, (e, 2, f, d), d**-0.5) for k in keys[:, 0]],
        [make(k, (e, d, f), f**-0.5) for k in keys[:, 1]],
        [jax.random.normal(k, (num_tokens, e)) for k in keys[:, 2]],
    )


def tokens_of(spec: ExpertSpec, num_tokens: int, dtype: str) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (num_tokens, spec.hidden_size), jnp.dtype(dtype))


def triton_layer(
    spec: ExpertSpec, x: jax.Array, logits: jax.Array, gate_up: jax.Array, down: jax.Array, **configs: Any
) -> jax.Array:
    ids, weights = top_k_experts_triton(logits, spec.num_experts_per_token, normalize=True)
    return expert_mlp_triton(x, ids, weights, gate_up, down, **configs)


def ragged_layer(spec: ExpertSpec, x: jax.Array, logits: jax.Array, gate_up: jax.Array, down: jax.Array) -> jax.Array:
    """The same by XLA's own operations."""
    e, k, f = spec.num_experts, spec.num_experts_per_token, spec.intermediate_size
    ids, weights = top_k_experts_reference(logits, k, normalize=True)
    order = jnp.argsort(ids.reshape(-1))
    sizes = jnp.bincount(ids.reshape(-1), length=e).astype(jnp.int32)
    both = grouped_matmul_reference(x[order // k], gate_up.reshape(e, 2 * f, -1), sizes)
    out = grouped_matmul_reference(jax.nn.silu(both[:, :f]) * both[:, f:], down, sizes)
    each = jnp.zeros_like(out).at[order].set(out).reshape(*ids.shape, -1)
    return jnp.sum(each * weights[:, :, None], axis=1).astype(x.dtype)


def floor_seconds(spec: ExpertSpec, layers: Layer, num_tokens: int) -> tuple[float, float, float]:
    """(the floor, bytes, flops) of a layer, on average over those that are timed."""
    k, d, f = spec.num_experts_per_token, spec.hidden_size, spec.intermediate_size
    chosen = [np.unique(np.argsort(-np.asarray(logits), axis=1)[:, :k]).size for logits in layers.logits]
    num_bytes = 2 * (statistics.mean(chosen) * 3 * d * f + 2 * num_tokens * d)
    flops = 6.0 * num_tokens * k * d * f
    return max(num_bytes / BYTES_PER_SECOND, flops / FLOPS_PER_SECOND), num_bytes, flops


def check_experts(model: str, num_tokens: int, dtype: str) -> dict[str, Any]:
    """The largest error of a layer against the reference in float32; and whether a second run gives the same bits."""
    # Fewer columns, so that float32 fits and does not take long; as many experts.
    spec = replace(EXPERTS[model], intermediate_size=min(EXPERTS[model].intermediate_size, 1792))
    layers = make_layers(spec, num_tokens, 1, dtype)
    x = tokens_of(spec, num_tokens, dtype)
    arguments = (layers.logits[0], layers.gate_up[0], layers.down[0])
    run = jax.jit(lambda *a: triton_layer(spec, *a))
    out, again = run(x, *arguments), run(x, *arguments)

    def reference(x: jax.Array, logits: jax.Array, *weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        ids, expert_weights = top_k_experts_reference(logits, spec.num_experts_per_token, normalize=True)
        return expert_mlp_reference(x, ids, expert_weights, *weights), ids

    right, ids = jax.jit(reference)(x.astype(jnp.float32), *arguments)
    kernel_ids, _ = top_k_experts_triton(layers.logits[0], spec.num_experts_per_token, normalize=True)
    error = float(jnp.max(jnp.abs(out.astype(jnp.float32) - right)) / jnp.max(jnp.abs(right)))
    same = bool((out == again).all()) and bool((ids == kernel_ids).all())
    name = f"experts {model} {num_tokens} tokens"
    return {"case": name, "dtype": dtype, "relative_error": error, "ok": same and error < TOLERANCE[dtype]}


def check_groups(sizes: Sequence[int], num_rows: int, dtype: str) -> dict[str, Any]:
    """The largest error of the plain product by group."""
    lhs_key, rhs_key = jax.random.split(jax.random.key(2))
    lhs = jax.random.normal(lhs_key, (num_rows, 1024), jnp.dtype(dtype))
    rhs = jax.random.normal(rhs_key, (len(sizes), 1536, 1024), jnp.dtype(dtype))
    out = jax.jit(grouped_matmul_triton)(lhs, rhs, jnp.array(sizes, jnp.int32)).astype(jnp.float32)
    right = jax.jit(grouped_matmul_reference)(*(a.astype(jnp.float32) for a in (lhs, rhs)), jnp.array(sizes, jnp.int32))
    error = float(jnp.max(jnp.abs(out - right)) / jnp.max(jnp.abs(right)))
    name = f"groups {list(sizes)} of {num_rows}"
    return {"case": name, "dtype": dtype, "relative_error": error, "ok": error < TOLERANCE[dtype]}


def run_checks() -> list[dict[str, Any]]:
    cases = [(m, n, "bfloat16") for m in (*MODELS, "qwen3-30b-a3b/8") for n in (1, 7, 16, 17, 32, 256, 2048)]
    cases += [("qwen3-30b-a3b", 8192, "bfloat16"), ("mixtral-8x7b", 4096, "float16")]
    cases += [("qwen3-30b-a3b", n, dtype) for n in (3, 300) for dtype in ("float16", "float32")]
    results = [check_experts(*case) for case in cases]
    for dtype in ("bfloat16", "float32"):
        results += [check_groups(sizes, 600, dtype) for sizes in ([100, 0, 317, 1, 150], [0, 600], [5, 5, 5])]
    for r in results:
        print(f"{'ok  ' if r['ok'] else 'FAIL'} {r['relative_error']:.1e} {r['dtype']:9} {r['case']}", flush=True)
    return results


def compile_chain(
    layer: Callable[..., jax.Array], spec: ExpertSpec, x: jax.Array, layers: Layer, **configs: Any
) -> Callable[..., jax.Array]:
    """Layers one after the other in one executable, as in a model."""

    def chain(x: jax.Array, logits: list[jax.Array], gate_up: list[jax.Array], down: list[jax.Array]) -> jax.Array:
        for arguments in zip(logits, gate_up, down, strict=True):
            x = layer(spec, x, *arguments, **configs)
        return x

    compiled: Any = jax.jit(chain).lower(x, layers.logits, layers.gate_up, layers.down).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    if temporary > MAX_TEMPORARY_BYTES:
        raise MemoryError(f"not run: it would take {temporary / 1e9:.0f} GB of temporaries")
    run: Callable[..., jax.Array] = compiled
    return run


def median_seconds(run: Callable[..., jax.Array], x: jax.Array, layers: Layer) -> float:
    """Seconds a layer, over executions started one behind the other so that the device does not wait for Python."""
    arguments = (layers.logits, layers.gate_up, layers.down)
    for _ in range(3):
        x = run(x, *arguments)
    started = time.perf_counter()
    jax.block_until_ready(run(jax.block_until_ready(x), *arguments))
    executions = max(2, min(50, round(0.05 / (time.perf_counter() - started))))
    samples = []
    for _ in range(7):
        jax.block_until_ready(x)
        started = time.perf_counter()
        for _ in range(executions):
            x = run(x, *arguments)
        jax.block_until_ready(x)
        samples.append((time.perf_counter() - started) / executions / len(layers.down))
    return statistics.median(samples)


def time_case(name: str, variants: list[tuple[str, Callable[..., jax.Array], dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row for each variant: (its name, the layer, configs)."""
    model, tokens = name.split(":")
    spec, num_tokens = EXPERTS[model], int(tokens)
    count = 2 if spec.num_experts * spec.hidden_size * spec.intermediate_size > 2e8 else 4
    layers = make_layers(spec, num_tokens, count, "bfloat16")
    x = tokens_of(spec, num_tokens, "bfloat16")
    floor, num_bytes, flops = floor_seconds(spec, layers, num_tokens)
    with ThreadPoolExecutor(8) as threads:
        runs = list(threads.map(lambda v: or_error(compile_chain, v[1], spec, x, layers, **v[2]), variants))
    rows = []
    for (kind, _, configs), run in zip(variants, runs, strict=True):
        row: dict[str, Any] = {"case": name, "by": kind, **{part: asdict(c) for part, c in configs.items()}}
        seconds = run if isinstance(run, Exception) else or_error(median_seconds, run, x, layers)
        row |= figures(seconds, floor, num_bytes, flops)
        rows.append(row)
        print(format_row(row), flush=True)
    return rows


def format_row(row: dict[str, Any]) -> str:
    configs = " ".join(f"{part}={tuple(row[part].values())}" for part in ("up_config", "down_config") if part in row)
    if "error" in row:
        return f"{row['case']:20} {row['by']:7} {row['error']} {configs}"
    return (
        f"{row['case']:20} {row['by']:7} {row['us']:10.1f} us  floor {row['floor_us']:8.1f}   {row['of_floor']:5.0%}   "
        f"{row['tb_per_s']:5.2f} TB/s   {row['tflop_per_s']:6.0f} TFLOP/s   {configs}"
    )


def candidates(name: str) -> list[tuple[str, Callable[..., jax.Array], dict[str, Any]]]:
    """The configs in use, then others for one product at a time."""
    model, tokens = name.split(":")
    spec, num_tokens = EXPERTS[model], int(tokens)
    rows = num_tokens * spec.num_experts_per_token
    in_use = SEARCHED_TOKENS if num_tokens <= SEARCHED_TOKENS else tile_rows(rows, spec.num_experts, "bfloat16")
    shapes = {
        "up_config": (2 * spec.intermediate_size, spec.hidden_size),
        "down_config": (spec.hidden_size, spec.intermediate_size),
    }
    variants: list[tuple[str, Callable[..., jax.Array], dict[str, Any]]] = [("triton", triton_layer, {})]
    for block_m in (in_use,) if num_tokens <= SEARCHED_TOKENS else (in_use // 2, in_use, in_use * 2):
        if block_m not in CANDIDATES:
            continue
        groups = min(rows, spec.num_experts)
        default = {part: matmul_config(block_m, groups, *shape, "bfloat16") for part, shape in shapes.items()}
        for part in shapes:
            for block_n, block_k, warps, stages, together in CANDIDATES[block_m]:
                config = MatmulConfig(block_m, block_n, block_k, warps, stages, together)
                if config != default[part]:
                    variants.append(("triton", triton_layer, default | {part: config}))
        if block_m != in_use:
            variants.append(("triton", triton_layer, default))
    return variants


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the reference in float32")
    parser.add_argument("--time", action="store_true", help="time the cases with the configs in use")
    parser.add_argument("--ragged", action="store_true", help="time jax.lax.ragged_dot beside them")
    parser.add_argument("--tune", action="store_true", help="time candidate configs")
    parser.add_argument("--only", nargs="+", default=CASES, choices=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--json", type=Path, help="write all results here")
    args = parser.parse_args()
    if not (args.check or args.time or args.tune):
        args.check = args.time = True
    device = jax.devices()[0].device_kind
    versions = {name: version(name) for name in ("jax", "jax-triton", "triton")}
    report: dict[str, Any] = {"device": device, "versions": versions}
    print(device, versions, flush=True)
    if args.check:
        report["checks"] = run_checks()
    if args.time:
        variants: list[tuple[str, Callable[..., jax.Array], dict[str, Any]]] = [("triton", triton_layer, {})]
        if args.ragged:
            variants.append(("ragged", ragged_layer, {}))
        report["timings"] = [row for name in args.only for row in time_case(name, variants)]
    if args.tune:
        report["candidates"] = [row for name in args.only for row in time_case(name, candidates(name))]
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(r["ok"] for r in report.get("checks", [])) else 1


if __name__ == "__main__":
    raise SystemExit(main())
