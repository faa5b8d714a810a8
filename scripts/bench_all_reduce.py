#!/usr/bin/env python3
"""Checks and times the all-reduce over peer pointers on 2 to 8 GPUs of one machine.

    scripts/bench_all_reduce.py --check --time --output all_reduce.json

--check: sums, sums with residual and norm, maxima, and exchanges of columns for rows, for several dtypes, sizes and
numbers of rows, against NumPy; that all GPUs hold the same bits; calls in one executable, in several, and in two that
take turns; and that a GPU whose peer never arrives goes on within seconds and says so. With more than two GPUs sums are
taken in one shot and in two. --time: microseconds a call, by the kernels and by XLA's collectives: by the clock, of the
host, and of each kernel by the profiler. Calls are chained. With more than two GPUs both forms are timed; workspaces
here have room for rows beyond the limits of `config.py`. Before a sum there is a multiplication by an array of the
GPU's own, which keeps XLA from leaving collectives out; `multiply` is that alone. `scores` exchanges what each GPU has
of some rows of float32 scores for a share of whole rows; `gather` is XLA's gathering of all rows on all GPUs, which it
stands in place of. A case that fails is reported, and the others still run. Prints tables, and JSON to --output.
"""

import argparse
import itertools
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gpu_trace import Kernel, record_kernels  # first: it sets what XLA reads when it starts  # noqa: E402, I001

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from pallas_kernels.all_reduce import (  # noqa: E402
    Peers,
    PeerWorkspace,
    WorkspaceLayout,
    all_reduce,
    all_reduce_residual_norm,
    all_to_all,
    argmax_over_devices,
    config,
    why_no_peers,
)
from pallas_kernels.all_reduce.arg_specs import BENCHMARK_ROWS  # noqa: E402
from pallas_kernels.residual_norm import NormKind  # noqa: E402

AXIS = "tensor"
Figures = dict[str, Any]
EPS = 1e-5
CHAIN = 64
REPEATS = 20
RUNS = 4
SUM_KINDS = ("kernel sum", "kernel norm", "XLA sum", "XLA norm", "multiply")
SCORE_KINDS = ("kernel scores", "XLA scores", "XLA gather")
KINDS = (*SUM_KINDS, *SCORE_KINDS)
# What is timed with more than two GPUs, unless asked otherwise: there are more forms, and machines cost more.
SIZES_OF_MANY = (4096, 8192)
ROWS_OF_MANY = (1, 16, 64, 128, 256, 512)
# Of Llama 3, over two GPUs or more.
VOCAB_SIZE = 128_256
# (dtype, D, rows, parts, kind); None is as many rows as the workspace takes.
SUMS: tuple[tuple[str, int, int | None, int, NormKind], ...] = (
    ("bfloat16", 4096, 1, 1, "rms"),
    ("bfloat16", 4096, 256, 1, "rms"),
    ("bfloat16", 4096, None, 1, "rms"),
    ("bfloat16", 4096, 5, 3, "rms_rounded_last"),
    ("bfloat16", 576, 33, 1, "rms_plus_one"),
    ("bfloat16", 8192, 64, 1, "rms"),
    ("bfloat16", 16384, 7, 1, "rms"),
    ("float16", 4096, 17, 1, "rms_plus_one"),
    ("float16", 5120, 128, 2, "rms"),
    ("float32", 576, 3, 1, "rms_rounded_last"),
    ("float32", 4096, 128, 1, "rms"),
    ("float32", 16384, 2, 1, "rms"),
)


class Bench:
    """The GPUs, and workspaces on them as they are needed."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.size = mesh.devices.size
        self._workspaces: dict[tuple[int, int], PeerWorkspace] = {}

    def workspace(self, size: int, dtype: str) -> PeerWorkspace:
        """One for rows of `size` values; kept, so that cases of one size go on where others ended."""
        key = (size, jnp.dtype(dtype).itemsize)
        if key not in self._workspaces:
            self._workspaces[key] = self.new_workspace(size, dtype)
        return self._workspaces[key]

    def new_workspace(self, size: int, dtype: str) -> PeerWorkspace:
        """One of its own, with room for more rows than the kernels are used for."""
        layout = WorkspaceLayout(self.size, size * jnp.dtype(dtype).itemsize, config.MAX_ROWS)
        return PeerWorkspace(self.mesh, layout)

    @property
    def forms(self) -> tuple[bool, ...]:
        """How sums can be taken: in one shot, and with more than two GPUs in two."""
        return (False, True) if self.size > 2 else (False,)

    def put(self, array: np.ndarray, *axes: str | None) -> jax.Array:
        """An array on the GPUs, split by these axes; whole on each with none."""
        placed: jax.Array = jax.device_put(array, NamedSharding(self.mesh, P(*axes)))
        return placed

    def jit(self, function: Callable[..., Any], in_specs: Any) -> Any:
        """A function of each GPU's own arrays, compiled; its results come back one after the other, rank by rank."""
        mapped = jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=P(AXIS), check_vma=False)
        return jax.jit(mapped)


def summing_in_two_shots(chosen: bool) -> AbstractContextManager[Any]:
    """Sums that are compiled in it are taken in two shots or in one, whatever the rows."""
    return mock.patch.object(config, "TWO_SHOT_SAVED_BYTES", 0 if chosen else sys.maxsize)


def form_name(two_shot: bool) -> str:
    """To be put after the name of a case."""
    return ", two shots" if two_shot else ""


def host(array: jax.Array) -> np.ndarray:
    copied: np.ndarray = np.asarray(array)
    return copied


def sum_function(peers: Peers, kind: NormKind) -> Callable[..., Any]:
    def both(x: jax.Array, parts: jax.Array, weight: jax.Array, table: jax.Array) -> Any:
        local = Peers(table, peers.layout)
        summed = all_reduce(parts, local, axis_name=AXIS, dtype=x.dtype, implementation="triton")
        # The second call sums other values, and comes after the first: calls of one workspace must not overlap.
        parts, _ = jax.lax.optimization_barrier((parts * 2, summed))
        fused = all_reduce_residual_norm(
            x, parts, weight, local, axis_name=AXIS, eps=EPS, kind=kind, implementation="triton"
        )
        return summed, *fused

    return both


def same_on_all(array: np.ndarray, ranks: int) -> np.ndarray:
    """The part of the first rank, after a look at whether the others have the same bits."""
    parts = array.reshape(ranks, -1, *array.shape[1:])
    for rank in range(1, ranks):
        if parts[rank].tobytes() != parts[0].tobytes():
            raise AssertionError(f"rank {rank} has other bits than rank 0")
    first: np.ndarray = parts[0]
    return first


def expected_sum(parts: np.ndarray, ranks: int, dtype: Any) -> np.ndarray:
    """[ranks * parts, T, D] as the kernels add it up, bit by bit, in `dtype`."""
    total: np.ndarray = np.zeros(parts.shape[1:], np.float32)
    for own in parts.reshape(ranks, -1, *parts.shape[1:]):
        local = own[0].astype(np.float32)
        for part in own[1:]:
            local = local + part
        total = total + local.astype(dtype).astype(np.float32)
    rounded: np.ndarray = total.astype(dtype)
    return rounded


def check_sums(
    bench: Bench, two_shot: bool, dtype: str, size: int, rows: int | None, num_parts: int, kind: NormKind
) -> None:
    workspace = bench.workspace(size, dtype)
    peers = workspace.peers
    rows = rows or peers.layout.max_rows
    t = jnp.dtype(dtype)
    rng = np.random.default_rng(rows)
    x, weight = (rng.standard_normal(s).astype(t) for s in ((rows, size), (size,)))
    parts = rng.standard_normal((bench.size * num_parts, rows, size)).astype(t if num_parts == 1 else np.float32)
    step = bench.jit(sum_function(peers, kind), (P(), P(AXIS), P(), P(AXIS)))
    args = [bench.put(x), bench.put(parts, AXIS), bench.put(weight), peers.table]
    # Three calls, so that both halves of the inboxes are written again.
    with summing_in_two_shots(two_shot):
        for _ in range(3):
            results = step(*args)
    summed, stream, normed = (same_on_all(host(r), bench.size) for r in results)
    if any(workspace.errors()):
        raise AssertionError(f"a wait was given up: {workspace.errors()}")
    want = expected_sum(parts, bench.size, t)
    np.testing.assert_array_equal(summed.astype(np.float32), want.astype(np.float32), "the sum")
    np.testing.assert_allclose(
        summed.astype(np.float64),
        parts.astype(np.float64).sum(0),
        rtol=2**-8 if t.itemsize == 2 else 0,
        atol=0.05 if t.itemsize == 2 else 1e-5,
    )
    twice = expected_sum(parts * np.asarray(2, parts.dtype), bench.size, t).astype(np.float32)
    want = (x.astype(np.float32) + twice).astype(t)
    np.testing.assert_array_equal(stream.astype(np.float32), want.astype(np.float32), "the residual stream")
    exact = want.astype(np.float64)
    exact /= np.sqrt((exact**2).mean(-1, keepdims=True) + EPS)
    exact *= weight.astype(np.float64) + (kind == "rms_plus_one")
    tolerance = {"bfloat16": 2e-2, "float16": 3e-3, "float32": 1e-5}[dtype]
    np.testing.assert_allclose(normed.astype(np.float64), exact, rtol=tolerance, atol=tolerance, err_msg="the norm")


def argmax_function(peers: Peers) -> Callable[..., Any]:
    def choose(values: jax.Array, ids: jax.Array, table: jax.Array) -> jax.Array:
        local = Peers(table, peers.layout)
        return argmax_over_devices(values[0], ids[0], local, axis_name=AXIS, implementation="triton")

    return choose


def check_argmax(bench: Bench, rows: int) -> None:
    workspace = bench.workspace(4096, "bfloat16")
    rng = np.random.default_rng(rows)
    # Few values, so that many rows have ties.
    values = rng.integers(-3, 3, (bench.size, rows)).astype(np.float32)
    values[:, : rows // 3] = rng.standard_normal((bench.size, rows // 3))
    ids = (np.arange(bench.size)[:, None] * 1000 + rng.integers(0, 1000, (bench.size, rows))).astype(np.int32)
    step = bench.jit(argmax_function(workspace.peers), (P(AXIS), P(AXIS), P(AXIS)))
    for _ in range(3):
        chosen = step(bench.put(values, AXIS), bench.put(ids, AXIS), workspace.peers.table)
    want = np.take_along_axis(ids, values.argmax(0)[None], 0)[0]
    np.testing.assert_array_equal(same_on_all(host(chosen), bench.size), want)


def check_exchange(bench: Bench, rows: int, size: int) -> None:
    """Each GPU gives `size` columns of all rows, and gets all columns of `rows` of its own, bit by bit."""
    workspace = bench.workspace(4096, "bfloat16")
    peers = workspace.peers
    values = np.random.default_rng(size).standard_normal((bench.size, bench.size * rows, size)).astype(np.float32)
    values[:, 0, 0] = -np.inf

    def exchange(values: jax.Array, table: jax.Array) -> jax.Array:
        # The second call exchanges other values, and comes after the first.
        local = Peers(table, peers.layout)
        shares = all_to_all(values[0], local, axis_name=AXIS, implementation="triton")
        again, shares = jax.lax.optimization_barrier((values[0] * 2, shares))
        return jnp.stack([shares, all_to_all(again, local, axis_name=AXIS, implementation="triton")])[None]

    step = bench.jit(exchange, (P(AXIS), P(AXIS)))
    for _ in range(3):
        results = host(step(bench.put(values, AXIS), peers.table))
    want = np.concatenate(list(values), axis=1).reshape(bench.size, rows, -1)
    np.testing.assert_array_equal(results, np.stack([want, 2 * want], axis=1))
    if any(workspace.errors()):
        raise AssertionError(f"a wait was given up: {workspace.errors()}")


def check_interleaved(bench: Bench) -> None:
    """Two executables of different rows take turns, with many calls in flight, and chains of calls in each.

    With more than two GPUs, one of them sums in one shot and the other in two.
    """
    workspace = bench.workspace(4096, "bfloat16")
    peers = workspace.peers
    rng = np.random.default_rng(0)

    def chain(parts: jax.Array, table: jax.Array) -> jax.Array:
        local = Peers(table, peers.layout)
        for i in range(4):
            summed = all_reduce(parts, local, axis_name=AXIS, implementation="triton")
            # Exact in bfloat16: small whole numbers.
            parts = parts + (summed[None] * 0 + i)
        return all_reduce(parts, local, axis_name=AXIS, implementation="triton")

    steps, inputs, wants = [], [], []
    for rows in (8, 40):
        values = rng.integers(-8, 8, (bench.size, rows, 4096)).astype(jnp.bfloat16)
        inputs.append(bench.put(values, AXIS))
        with summing_in_two_shots(rows == 40):
            steps.append(bench.jit(chain, (P(AXIS), P(AXIS))).lower(inputs[-1], peers.table).compile())
        wants.append(values.astype(np.float32).sum(0) + bench.size * 6)
    results = [(i, steps[i](inputs[i], peers.table)) for turn in range(60) for i in ((0, 1) if turn % 3 else (1, 0))]
    for i, result in results:
        np.testing.assert_array_equal(same_on_all(host(result), bench.size).astype(np.float32), wants[i])


def check_missing_peer(bench: Bench) -> dict[str, Any]:
    """The first GPU alone makes a call: it must end, its error word be set, and later calls not wait, of any form."""
    workspace = bench.new_workspace(4096, "bfloat16")
    layout = workspace.peers.layout
    alone = Mesh(bench.mesh.devices[:1], (AXIS,))

    device = bench.mesh.devices.flat[0]
    parts = jax.device_put(np.ones((1, 300, 4096), jnp.bfloat16), device)
    (table,) = (s.data for s in workspace.peers.table.addressable_shards if s.device == device)

    def compiled(two_shot: bool) -> Any:
        def choose(parts: jax.Array, table: jax.Array) -> jax.Array:
            local = Peers(table, layout)
            summed = all_reduce(parts, local, axis_name=AXIS, implementation="triton")
            ids = jnp.arange(parts.shape[1], dtype=jnp.int32)
            return argmax_over_devices(
                summed[:, 0].astype(jnp.float32), ids, local, axis_name=AXIS, implementation="triton"
            )

        mapped = jax.shard_map(choose, mesh=alone, in_specs=(P(), P()), out_specs=P(), check_vma=False)
        with summing_in_two_shots(two_shot):
            return jax.jit(mapped).lower(parts, table).compile()

    steps = [compiled(two_shot) for two_shot in reversed(bench.forms)]
    seconds = []
    for step in [step for step in steps for _ in range(3)]:
        started = time.perf_counter()
        chosen = host(step(parts, table))
        seconds.append(time.perf_counter() - started)
        if (chosen != -1).any():
            raise AssertionError(f"a result of no meaning is not told from others: {chosen[:8]}")
    errors = workspace.errors()
    if not errors[0]:
        raise AssertionError(f"the error word is not set: {errors}")
    if not 0.05 < seconds[0] < 30 or max(seconds[1:]) > 0.5:
        raise AssertionError(f"waits took {seconds} s")
    return {"seconds": seconds, "errors": errors}


def check_late_peer(bench: Bench) -> dict[str, Any]:
    """A peer that arrives after the others gave up: all of them end, and all say so."""
    workspace = bench.new_workspace(4096, "bfloat16")
    layout = workspace.peers.layout
    table = np.array(host(workspace.peers.table))
    addresses = table[-1, : 2 * bench.size].copy()
    # The last rank writes to itself only.
    table[-1, : 2 * bench.size : 2], table[-1, 1 : 2 * bench.size : 2] = table[-1, 0], table[-1, 1]
    alone = bench.put(table, AXIS)
    values, ids = np.zeros((bench.size, 4), np.float32), np.arange(4 * bench.size, dtype=np.int32).reshape(-1, 4)
    step = bench.jit(argmax_function(workspace.peers), (P(AXIS), P(AXIS), P(AXIS)))
    args = bench.put(values, AXIS), bench.put(ids, AXIS)
    started = time.perf_counter()
    first = host(step(*args, alone)).reshape(bench.size, -1)
    seconds = time.perf_counter() - started
    if (first[:-1] != -1).any():
        raise AssertionError(f"ranks that waited in vain must choose -1: {first.tolist()}")
    # Now it does send, and the others tell it what happened. Counters and error words are those of the first call.
    table = np.array(host(alone))
    table[-1, : 2 * bench.size] = addresses
    second = host(step(*args, bench.put(table, AXIS))).reshape(bench.size, -1)
    if (second != -1).any():
        raise AssertionError(f"all ranks must hear of it: {second.tolist()}")
    return {"seconds": seconds, "errors": table[:, layout.error_word].tolist()}


def chain_function(kind: str, layout: WorkspaceLayout) -> Callable[..., Any]:
    """CHAIN calls one after the other; what comes of them can go in again."""
    implementation: Any = "triton" if kind.startswith("kernel") else "reference"

    def run(x: jax.Array, scale: jax.Array, weight: jax.Array, table: jax.Array) -> jax.Array:
        peers = Peers(table, layout)
        hidden, stream = x, x
        for _ in range(CHAIN):
            parts = (hidden * scale[0])[None]
            if kind == "multiply":
                hidden = jax.lax.optimization_barrier(parts)[0]
            elif kind.endswith("norm"):
                reduce = partial(all_reduce_residual_norm, axis_name=AXIS, eps=EPS, implementation=implementation)
                stream, hidden = reduce(stream, parts, weight, peers)
            else:
                hidden = all_reduce(parts, peers, axis_name=AXIS, implementation=implementation)
        return hidden

    return run


def exchange_function(layout: WorkspaceLayout) -> Callable[..., Any]:
    """CHAIN exchanges of maxima one after the other."""

    def run(ids: jax.Array, values: jax.Array, table: jax.Array) -> jax.Array:
        local = Peers(table, layout)
        for _ in range(CHAIN):
            ids = argmax_over_devices(values[0], ids, local, axis_name=AXIS, implementation="triton")
        return ids

    return run


def time_chain(bench: Bench, function: Callable[..., Any], specs: tuple[P, ...], args: list[jax.Array]) -> Figures:
    """What a link of a chain takes, in microseconds.

    `us` by the clock; `dispatch_us` of the host alone, a link's share; `gpu_us` of each kernel by the profiler, on the
    GPU that waited least for the other, and of the gap before it. Where `dispatch_us` is near `us`, the clock shows the
    host and not the GPUs. The first argument is given up for the result, so that no address changes between runs, for
    which the host would have to record parts of the CUDA graph anew.
    """
    mapped = jax.shard_map(function, mesh=bench.mesh, in_specs=specs, out_specs=specs[0], check_vma=False)
    step = jax.jit(mapped, donate_argnums=0)
    kept, *rest = args
    # The first runs are not captured as a CUDA graph.
    for _ in range(4):
        kept = jax.block_until_ready(step(kept, *rest))
    times, dispatches = [], []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(RUNS):
            kept = step(kept, *rest)
        dispatches.append((time.perf_counter() - started) / RUNS)
        kept.block_until_ready()
        times.append((time.perf_counter() - started) / RUNS)

    def run() -> None:
        nonlocal kept
        for _ in range(3):
            kept = step(kept, *rest)
        kept.block_until_ready()

    kernels = kernel_times(record_kernels(run, bench.size).kernels)
    link = 1e6 / CHAIN
    return {"us": link * float(np.median(times)), "dispatch_us": link * float(np.median(dispatches)), "gpu_us": kernels}


def kernel_times(runs: list[list[Kernel]]) -> dict[str, float]:
    """Median microseconds of each kernel, of its n-th runs that of the faster GPU; `gap` is between two kernels."""
    families = {kernel.family for kernel in runs[0]}
    medians = {}
    for family in sorted(families):
        durations = [[kernel.duration for kernel in gpu if kernel.family == family] for gpu in runs]
        medians[family] = float(np.median([min(same) for same in zip(*durations, strict=False)]))
    gaps = [b.start - a.end for a, b in itertools.pairwise(runs[0])]
    return {**medians, "gap": float(np.median(gaps)) if gaps else 0.0}


def time_calls(
    bench: Bench, kind: str, rows: int, size: int, dtype: str, words: int | None = None, two_shot: bool = False
) -> Figures:
    """What a call of a kind takes, the multiplication before it included."""
    workspace = bench.workspace(size, dtype)
    rng = np.random.default_rng(0)
    x, weight = (bench.put(rng.standard_normal(s).astype(dtype)) for s in ((rows, size), (size,)))
    scale = bench.put(np.full((bench.size, 1), 1 / bench.size, dtype), AXIS)
    chain = chain_function(kind, workspace.peers.layout)
    words_a_thread = mock.patch.object(config, "WORDS_A_THREAD", words or config.WORDS_A_THREAD)
    with words_a_thread, summing_in_two_shots(two_shot):
        return time_chain(bench, chain, (P(), P(AXIS), P(), P(AXIS)), [x, scale, weight, workspace.peers.table])


def time_exchange(bench: Bench, rows: int) -> Figures:
    """What an exchange of maxima takes."""
    workspace = bench.workspace(4096, "bfloat16")
    values = bench.put(np.zeros((bench.size, rows), np.float32), AXIS)
    ids = bench.put(np.zeros(rows, np.int32))
    chain = exchange_function(workspace.peers.layout)
    return time_chain(bench, chain, (P(), P(AXIS), P(AXIS)), [ids, values, workspace.peers.table])


def time_scores(bench: Bench, kind: str, rows: int) -> Figures:
    """What it takes to bring scores together: on each GPU a share of the rows, or all of them."""
    workspace = bench.workspace(4096, "bfloat16")
    layout = workspace.peers.layout
    whole_shares = -(-rows // bench.size) * bench.size
    values = np.zeros((whole_shares, VOCAB_SIZE // bench.size * bench.size), np.float32)
    implementation: Any = "triton" if kind.startswith("kernel") else "reference"

    def run(values: jax.Array, table: jax.Array) -> jax.Array:
        local = Peers(table, layout)
        for _ in range(CHAIN):
            own = jax.lax.optimization_barrier(values)
            if kind == "XLA gather":
                whole = jax.lax.all_gather(own, AXIS, axis=1, tiled=True)
                values = jax.lax.optimization_barrier(whole)[:, : own.shape[1]]
            else:
                shares = all_to_all(own, local, axis_name=AXIS, implementation=implementation)
                values = jax.lax.optimization_barrier(shares).reshape(own.shape)
        return values

    return time_chain(bench, run, (P(None, AXIS), P(AXIS)), [bench.put(values, None, AXIS), workspace.peers.table])


def takes_scores(bench: Bench, rows: int) -> bool:
    """Whether the kernel exchanges the scores of so many rows."""
    layout = bench.workspace(4096, "bfloat16").peers.layout
    return layout.takes_columns(-(-rows // bench.size), VOCAB_SIZE // bench.size * 4)


class Record:
    """What was found so far, written after each case."""

    def __init__(self, path: Path | None, seconds: float, **about: Any) -> None:
        self._path = path
        self._begin = time.monotonic()
        self._end = self._begin + seconds
        self.data: dict[str, Any] = {**about, "checks": {}, "times": []}

    def attempt(self, name: str, case: Callable[[], Any]) -> Any:
        """The result of a case, or None if it failed or the time is up."""
        if time.monotonic() > self._end:
            self._note(name, "not run: out of time")
            return None
        started = time.monotonic()
        try:
            result = case()
        except Exception as error:
            traceback.print_exc()
            self._note(name, f"failed: {type(error).__name__}: {str(error)[:500]}")
            return None
        self._note(name, "passed", took=time.monotonic() - started, result=result)
        return result

    def save(self) -> None:
        """Write the file."""
        if self._path is not None:
            self._path.write_text(json.dumps(self.data, indent=2) + "\n")

    @property
    def num_problems(self) -> int:
        """Cases that did not pass."""
        return sum(check["outcome"] != "passed" for check in self.data["checks"].values())

    def _note(self, name: str, outcome: str, **more: Any) -> None:
        seconds = time.monotonic() - self._begin
        print(f"{seconds:.0f} s, {name}: {outcome} {more.get('result') or ''}", file=sys.stderr, flush=True)
        self.data["checks"][name] = {"outcome": outcome, **more}
        self.save()


def check_all(bench: Bench, record: Record) -> None:
    for (dtype, size, rows, parts, kind), two_shot in itertools.product(SUMS, bench.forms):
        name = f"sum {dtype}, D {size}, {rows or 'most'} rows, {parts} parts, {kind}{form_name(two_shot)}"
        record.attempt(name, partial(check_sums, bench, two_shot, dtype, size, rows, parts, kind))
    for rows in (1, 31, 1000):
        record.attempt(f"argmax of {rows} rows", partial(check_argmax, bench, rows))
    for rows, size in ((1, VOCAB_SIZE // bench.size), (16, VOCAB_SIZE // bench.size), (3, 25_129), (40, 7)):
        record.attempt(f"exchange of {size} columns for {rows} rows", partial(check_exchange, bench, rows, size))
    record.attempt("two executables take turns", partial(check_interleaved, bench))


def time_all(
    bench: Bench,
    record: Record,
    sizes: Sequence[int],
    dtype: str,
    rows_to_time: Sequence[int],
    kinds: Sequence[str],
    words_a_thread: Sequence[int | None],
) -> None:
    for size in sizes:
        for rows in rows_to_time:
            row: dict[str, Any] = {"rows": rows, "D": size, "dtype": dtype}
            record.data["times"].append(row)
            # These do not depend on the size.
            if size == sizes[0]:
                time_all_exchanges(bench, record, row, kinds)
            time_all_sums(bench, record, row, kinds, words_a_thread)
        print_times(bench, [row for row in record.data["times"] if row["D"] == size])


def time_all_exchanges(bench: Bench, record: Record, row: dict[str, Any], kinds: Sequence[str]) -> None:
    rows = row["rows"]
    for kind in SCORE_KINDS:
        if kind in kinds and (kind != "kernel scores" or takes_scores(bench, rows)):
            row[kind] = record.attempt(f"time {kind}, {rows} rows", partial(time_scores, bench, kind, rows))
    row["exchange"] = record.attempt(f"time exchange, {rows} rows", partial(time_exchange, bench, rows))
    record.save()


def time_all_sums(
    bench: Bench, record: Record, row: dict[str, Any], kinds: Sequence[str], words_a_thread: Sequence[int | None]
) -> None:
    rows, size, dtype = row["rows"], row["D"], row["dtype"]
    most = bench.workspace(size, dtype).peers.layout.max_rows
    for kind in SUM_KINDS:
        of_kernel = kind.startswith("kernel")
        if kind not in kinds or (rows > most and of_kernel):
            continue
        for words, two_shot in itertools.product(words_a_thread, bench.forms) if of_kernel else [(None, False)]:
            name = (kind if words is None else f"{kind}, {words} words a thread") + form_name(two_shot)
            case = partial(time_calls, bench, kind, rows, size, dtype, words, two_shot)
            row[name] = record.attempt(f"time {name}, D {size}, {rows} rows", case)
            record.save()


def print_times(bench: Bench, times: Sequence[dict[str, Any]]) -> None:
    """A table of the times of one size."""
    about = f"D {times[0]['D']}, {times[0]['dtype']}, {bench.size} GPUs"
    table = Table(title=f"µs a call (of them the host's), and of the kernels, {about}")
    columns = [column for column in dict.fromkeys(itertools.chain(*times)) if column not in ("D", "dtype")]
    for column in columns:
        table.add_column(column)
    for row in times:
        table.add_row(*(describe(row.get(column)) for column in columns))
    Console(width=200).print(table)


def describe(value: Any) -> str:
    """A cell of the table."""
    if not isinstance(value, dict):
        return str(value or "")
    kernels = ", ".join(f"{name} {us:.1f}" for name, us in value["gpu_us"].items())
    return f"{value['us']:.1f} ({value['dispatch_us']:.1f})\n{kernels}"


def main() -> int:
    """Read the command line, check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--gpus", type=int, help="how many (default: all)")
    parser.add_argument("--size", type=int, nargs="+", help="D of rows to time (default: 4096; over 2 GPUs, 8192 too)")
    parser.add_argument("--rows", type=int, nargs="+", help="to time")
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        help="of calls, to time (default: all; over 2 GPUs, all but those of scores)",
    )
    parser.add_argument(
        "--words", type=int, nargs="+", choices=(1, 2), help="that a thread has, to time (default: as in use)"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--seconds", type=float, default=130, help="after which no further case is begun")
    parser.add_argument("--output", type=Path, help="write JSON here")
    args = parser.parse_args()

    devices = jax.devices()[: args.gpus]
    mesh = Mesh(np.array(devices), (AXIS,))
    if (reason := why_no_peers(mesh)) is not None:
        print(f"cannot run: {reason}", file=sys.stderr)
        return 1
    record = Record(args.output, args.seconds, device=devices[0].device_kind, gpus=len(devices), jax=jax.__version__)
    bench = Bench(mesh)
    if args.check:
        check_all(bench, record)
    if args.time:
        many = bench.size > 2
        time_all(
            bench,
            record,
            args.size or (SIZES_OF_MANY if many else (4096,)),
            args.dtype,
            args.rows or (ROWS_OF_MANY if many else BENCHMARK_ROWS),
            args.kinds or (SUM_KINDS if many else KINDS),
            args.words or [None],
        )
    if args.check:
        # Last: nothing after them can be disturbed.
        record.attempt("a peer that never arrives", partial(check_missing_peer, bench))
        record.attempt("a peer that arrives too late", partial(check_late_peer, bench))
    print(f"{record.num_problems} problems", file=sys.stderr)
    return 1 if record.num_problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
