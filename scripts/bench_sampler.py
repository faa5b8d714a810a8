#!/usr/bin/env python3
"""Checks and times the sampler on a GPU: greedy, with the Triton kernels, and with the sort that defines it.

    python scripts/bench_sampler.py [--tune] [--json FILE]
    python scripts/bench_sampler.py --vocab-size 1000 --rows 1 4      # a smoke test on a CPU, the sort alone

Llama-3's vocabulary. Logits are normal: `peaked` with a standard deviation of 3, where few tokens hold most of the
mass, as in a model's; `flat` with 1, where many do. Every row has the parameters named, or in `mixed` each row its own.
A timing is of calls chained in one jit, and is the median of several runs. The floor is the logits' bytes, read twice
(the best token must be known before others can be weighed), over 4.3 TB/s, copy bandwidth measured on an H200. Logits
of few rows lie in the cache, and can be read faster.

The check compares the kernels with the sort on the same device: the mass of tokens that only one of them keeps, and the
share of rows that draw another token.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxserve.runner.sampler import draw, sample_greedy
from pallas_kernels import platform
from pallas_kernels.gumbel_argmax.config import DrawConfig
from pallas_kernels.sampling_floor import sampling_floor
from pallas_kernels.sampling_floor.arg_specs import NUM_ROWS, PARAMS, VOCABULARIES
from pallas_kernels.sampling_floor.config import FloorConfig

BYTES_PER_SECOND = 4.3e12
SPREADS = {"peaked": 3.0, "flat": 1.0}
MIXED = "mixed"
# Calls chained in one jit; of the sort, which is slow to compile and to run, fewer do.
CALLS = 8
SORT_CALLS = 2
# The mass that rounding may move over a bound, and the share of rows whose two best noisy logits may be that close.
MASS_TOLERANCE = 1e-4
TOKEN_TOLERANCE = 0.01

FLOOR_CANDIDATES = [
    FloorConfig(chunk=chunk, pass_warps=warps, search_warps=search)
    for chunk, warps, search in [(4096, 4, 8), (2048, 4, 8), (4096, 8, 8), (8192, 8, 8), (4096, 4, 16), (4096, 4, 4)]
]
DRAW_CANDIDATES = [
    DrawConfig(chunk=chunk, few=few, num_warps=warps)
    for chunk, few, warps in [(4096, 512, 8), (2048, 256, 4), (4096, 512, 4), (4096, 1024, 8), (8192, 1024, 8)]
]

Sampler = Callable[[jax.Array, jax.Array, dict[str, jax.Array]], jax.Array]


def row_params(name: str, num_rows: int) -> dict[str, jax.Array]:
    """The sampler's fields for rows of these parameters."""
    specs = list(PARAMS.values()) if name == MIXED else [PARAMS[name]]
    rows = [specs[i % len(specs)] for i in range(num_rows)]
    seeds = np.random.default_rng(0).integers(-(2**31), 2**31, (2, num_rows)).astype(np.int32)
    return {
        "temperature": jnp.array([row.temperature for row in rows], jnp.float32),
        "top_k": jnp.array([2**31 - 1 if row.top_k is None else row.top_k for row in rows], jnp.int32),
        "top_p": jnp.array([row.top_p for row in rows], jnp.float32),
        "min_p": jnp.array([row.min_p for row in rows], jnp.float32),
        "seed_high": jnp.asarray(seeds[0]),
        "seed_low": jnp.asarray(seeds[1]),
    }


def random_logits(num_rows: int, vocab_size: int, spread: float) -> jax.Array:
    make = jax.jit(lambda key: spread * jax.random.normal(key, (num_rows, vocab_size), jnp.float32))
    logits: jax.Array = make(jax.random.key(num_rows))
    return logits


def compile_chain(sampler: Sampler, num_rows: int, vocab_size: int, calls: int = CALLS) -> Any:
    """Calls of the sampler, each at the positions that the last one's tokens say."""

    def chain(logits: jax.Array, positions: jax.Array, params: dict[str, jax.Array]) -> jax.Array:
        total = positions
        for _ in range(calls):
            # The barrier makes the logits another value to XLA, so that no call takes over another's passes.
            logits, positions = jax.lax.optimization_barrier((logits, positions))
            positions = sampler(logits, positions, params)
            total = total + positions
        return total % logits.shape[1]

    logits = jax.ShapeDtypeStruct((num_rows, vocab_size), jnp.float32)
    return jax.jit(chain).lower(logits, jnp.zeros(num_rows, jnp.int32), row_params(MIXED, num_rows)).compile()


def median_seconds(run: Any, logits: jax.Array, params: dict[str, jax.Array], calls: int = CALLS) -> float:
    """Seconds a call."""
    positions = jnp.zeros(logits.shape[0], jnp.int32)
    for _ in range(3):
        positions = run(logits, positions, params)
    jax.block_until_ready(positions)
    samples = []
    for _ in range(7):
        started = time.perf_counter()
        for _ in range(3):
            positions = run(logits, positions, params)
        jax.block_until_ready(positions)
        samples.append((time.perf_counter() - started) / 3 / calls)
    return statistics.median(samples)


def samplers() -> dict[str, Sampler]:
    found: dict[str, Sampler] = {
        "greedy": lambda logits, positions, params: sample_greedy(logits),
        "sort": lambda *args: draw(*args, implementation="reference"),
    }
    if platform.triton_can_run():
        found["triton"] = lambda *args: draw(*args, implementation="triton")
    return found


def time_rows(num_rows: int, vocab_size: int) -> list[dict[str, Any]]:
    """All samplers and parameters for one number of rows."""
    found = samplers()
    calls = {name: SORT_CALLS if name == "sort" else CALLS for name in found}

    def compile_one(name: str) -> Any:
        return compile_chain(found[name], num_rows, vocab_size, calls[name])

    with ThreadPoolExecutor(len(found)) as threads:
        runs = dict(zip(found, threads.map(compile_one, found), strict=True))
    rows = []
    for spread, scale in SPREADS.items():
        logits = random_logits(num_rows, vocab_size, scale)
        for name, run in runs.items():
            # What is not looked at makes no difference: sorting takes the same time whatever the parameters.
            for params in (*PARAMS, MIXED) if name == "triton" else (MIXED,):
                seconds = median_seconds(run, logits, row_params(params, num_rows), calls[name])
                floor = 2 * logits.nbytes / BYTES_PER_SECOND
                row = {"rows": num_rows, "logits": spread, "sampler": name, "params": params}
                rows.append(row | {"us": seconds * 1e6, "floor_us": floor * 1e6})
                print(f"{num_rows:5} rows  {spread:7} {name:7} {params:7} {seconds * 1e6:10.1f} us", flush=True)
    return rows


def check(num_rows: int, vocab_size: int) -> list[dict[str, Any]]:
    """The kernels against the sort, on the same logits."""

    @jax.jit
    def compare(logits: jax.Array, params: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        best, positions = logits.max(axis=-1), jnp.arange(num_rows, dtype=jnp.int32)
        names = ("temperature", "top_k", "top_p", "min_p")
        args = (logits, best, *(params[name] for name in names))
        kept = [logits >= sampling_floor(*args, implementation=i)[:, None] for i in ("reference", "triton")]
        temperature = jnp.maximum(params["temperature"], 1e-3)[:, None]
        masses = jax.nn.softmax(logits / temperature, axis=-1)
        moved = jnp.where(kept[0] != kept[1], masses, 0.0).sum(-1).max()
        tokens = [draw(logits, positions, params, implementation=i) for i in ("reference", "triton")]
        return moved, jnp.mean(tokens[0] != tokens[1])

    rows = []
    for spread, scale in SPREADS.items():
        logits = random_logits(num_rows, vocab_size, scale)
        for name in (*PARAMS, MIXED):
            moved, others = map(float, compare(logits, row_params(name, num_rows)))
            ok = moved <= MASS_TOLERANCE and others <= TOKEN_TOLERANCE
            rows.append({"rows": num_rows, "logits": spread, "params": name, "moved_mass": moved, "ok": ok})
            rows[-1]["other_tokens"] = others
            print(
                f"{'ok  ' if ok else 'FAIL'} {spread:7} {name:7} mass {moved:.1e}, other tokens {others:.1%}",
                flush=True,
            )
    return rows


def tune(num_rows: int, vocab_size: int) -> list[dict[str, Any]]:
    """Candidate sizes of the kernels, in rows of mixed parameters."""
    from pallas_kernels.gumbel_argmax.triton import gumbel_argmax_triton
    from pallas_kernels.sampling_floor.triton import sampling_floor_triton

    def sampler_of(cut: FloorConfig, pick: DrawConfig) -> Sampler:
        def run(logits: jax.Array, positions: jax.Array, params: dict[str, jax.Array]) -> jax.Array:
            best, temperature = logits.max(axis=-1), params["temperature"]
            rest = (params["top_k"], params["top_p"], params["min_p"])
            floor = sampling_floor_triton(logits, best, temperature, *rest, config=cut)
            seeds = jnp.stack([params["seed_high"], params["seed_low"]], axis=-1)
            return gumbel_argmax_triton(logits, best, floor, temperature, seeds, positions, config=pick)

        return run

    candidates = [(cut, DrawConfig()) for cut in FLOOR_CANDIDATES]
    candidates += [(FloorConfig(), pick) for pick in DRAW_CANDIDATES[1:]]
    with ThreadPoolExecutor(8) as threads:
        runs = list(threads.map(lambda c: compile_chain(sampler_of(*c), num_rows, vocab_size), candidates))
    rows = []
    for spread, scale in SPREADS.items():
        logits = random_logits(num_rows, vocab_size, scale)
        for (cut, pick), run in zip(candidates, runs, strict=True):
            us = median_seconds(run, logits, row_params(MIXED, num_rows)) * 1e6
            rows.append({"rows": num_rows, "logits": spread, "floor": asdict(cut), "draw": asdict(pick), "us": us})
            print(f"{num_rows:5} rows  {spread:7} {us:10.1f} us  {cut} {pick}", flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=list(NUM_ROWS), help="numbers of rows")
    parser.add_argument("--vocab-size", type=int, default=VOCABULARIES["llama-3"])
    parser.add_argument("--tune", action="store_true", help="time candidate sizes too")
    parser.add_argument("--json", type=Path, help="write all results here")
    args = parser.parse_args()
    report: dict[str, Any] = {"device": jax.devices()[0].device_kind, "vocab_size": args.vocab_size, "versions": {}}
    for name in ("jax", "jax-triton", "triton"):
        try:
            report["versions"][name] = version(name)
        except PackageNotFoundError:
            report["versions"][name] = None
    print(report, flush=True)
    report["checks"] = check(max(args.rows), args.vocab_size) if platform.triton_can_run() else []
    report["timings"] = [row for num_rows in args.rows for row in time_rows(num_rows, args.vocab_size)]
    if args.tune:
        report["candidates"] = [row for num_rows in args.rows for row in tune(num_rows, args.vocab_size)]
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if all(row["ok"] for row in report["checks"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
