#!/usr/bin/env python3
"""Compiles steps over several H200s, without a GPU, and fails where the result is not what it must be.

Run as `scripts/compile_gate.py`, whose parts it uses. The kernels that sum over devices, in one shot and in two: no
register spilled. Decode steps: everything in one command buffer, no collective of XLA's,
one sum over the devices for each product that is split, and one more in layers that normalise all heads together; the
scores of greedy steps never together; kernels given no slice where it lies. Steps that sample, of more rows than the
kernel exchanges: one all-to-all of XLA's. Prompts of more rows than the kernels take: XLA's all-reduce, or, with the
residual stream split, its two halves. Takes about three minutes.
"""

import re
from dataclasses import replace
from typing import Any
from unittest import mock

import compile_gate as gate  # first: it sets what JAX reads when it is imported
import compile_gate_experts as experts_gate
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxserve.layers import norm
from jaxserve.models.config import ModelConfig
from jaxserve.runner.buckets import Bucket, SamplerKind
from jaxserve.runner.kv_pool import KVPoolSpec
from jaxserve.runner.step_compiler import StepCompiler
from jaxserve.sharding import named_sharding
from pallas_kernels.all_reduce import (
    Peers,
    WorkspaceLayout,
    all_reduce,
    all_reduce_residual_norm,
    all_to_all,
    argmax_over_devices,
)
from pallas_kernels.all_reduce import config as all_reduce_config

AXIS = "tensor"
ROWS = 4
# Llama 3's vocabulary; and layers as OLMo 2's.
LLAMA = replace(gate.MODEL, vocab_size=128_256)
OLMO = replace(gate.MODEL, norm="rms_rounded_last", norm_placement="after", qk_norm="whole")
# (devices, tokens, decode only, sampler) of the steps.
STEPS = (
    (2, 1, True, SamplerKind.GREEDY),
    (2, 256, True, SamplerKind.GREEDY),
    (4, 256, True, SamplerKind.GREEDY),
    (2, 512, False, SamplerKind.GREEDY),
    (4, 512, False, SamplerKind.GREEDY),
    (2, 8192, False, SamplerKind.GREEDY),
    (2, 1, True, SamplerKind.FULL),
    (2, 32, True, SamplerKind.FULL),
    (4, 64, True, SamplerKind.FULL),
    (2, 256, True, SamplerKind.FULL),
)
COLLECTIVE = r" (all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(?:-start)?\("


def check_kernels(mesh: Mesh, size: int, dtype: str, num_parts: int, *, two_shot: bool = False) -> list[str]:
    """What is wrong with the kernels for rows of one size, that are summed in one shot or in two."""
    num_devices = mesh.devices.size
    layout = WorkspaceLayout.of(size, jnp.dtype(dtype).itemsize, num_devices)

    def sums(x: jax.Array, parts: jax.Array, weight: jax.Array, table: jax.Array) -> Any:
        peers = Peers(table, layout)
        pairs = all_reduce(parts[:1, :, :2].astype(jnp.float32), peers, axis_name=AXIS)
        return all_reduce(parts, peers, axis_name=AXIS, dtype=x.dtype), pairs

    def others(x: jax.Array, parts: jax.Array, weight: jax.Array, table: jax.Array) -> Any:
        peers = Peers(table, layout)
        stream, normed = all_reduce_residual_norm(x, parts, weight, peers, axis_name=AXIS, eps=1e-5)
        ids = jnp.arange(x.shape[0], dtype=jnp.int32)
        columns = all_to_all(jnp.tile(stream.astype(jnp.float32), (num_devices, 1)), peers, axis_name=AXIS)
        chosen = argmax_over_devices(stream[:, 0].astype(jnp.float32), ids, peers, axis_name=AXIS)
        return stream, normed, columns, chosen

    def abstract(shape: tuple[int, ...], dtype: str, *axes: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=named_sharding(mesh, axes))

    args = (
        abstract((ROWS, size), dtype),
        abstract((num_devices * num_parts, ROWS, size), dtype if num_parts == 1 else "float32", "device"),
        abstract((size,), dtype),
        abstract((num_devices, layout.table_columns), "int32", "device"),
    )
    where = f"{num_devices} devices, {num_parts} parts of {dtype}[{size}], {'two shots' if two_shot else 'one shot'}"
    problems = []
    with mock.patch.object(all_reduce_config, "TWO_SHOT_SAVED_BYTES", 0 if two_shot else 1 << 60), gate.on_hopper():
        for run in (sums, others):
            mapped = jax.shard_map(
                run, mesh=mesh, in_specs=(P(), P(AXIS), P(), P(AXIS)), out_specs=P(), check_vma=False
            )
            problems += gate.compile_problems(f"{run.__name__}, {where}", jax.jit(mapped).trace(*args).lower())
    return problems


def check_step(mesh: Mesh, config: ModelConfig, bucket: Bucket, *, split_stream: bool = False) -> list[str]:
    """What is wrong with a step of a model over the devices of a mesh, with the stream of long steps split or not."""
    num_devices = mesh.devices.size
    layout = WorkspaceLayout.of(config.hidden_size, 2, num_devices)
    pool = KVPoolSpec(config.num_layers, 3001, 16, config.num_kv_heads, config.head_dim, jnp.dtype("bfloat16"))
    with mock.patch.object(gate, "MODEL", config):
        model = gate.AbstractModel(mesh)
    jax.clear_caches()
    gate.clear_dump()
    with (
        gate.on_hopper(),
        mock.patch.object(norm, "SPLIT_STREAM_ROWS", layout.max_rows + 1 if split_stream else None),
    ):
        step: Any = StepCompiler(model, model.weights, mesh, pool, 256, 256).compile(bucket)
    text = step.as_text()
    table = f"s32[1,{layout.table_columns}]"
    calls = [line for line in gate.kernel_calls(text) if table in line]
    collectives = sorted(re.findall(COLLECTIVE, text))
    where = f"{num_devices} devices, {bucket}, {config.qk_norm}"
    print(f"{where}: {len(calls)} calls between devices, collectives {collectives}", flush=True)
    problems = []
    # Two products a layer, the norms of all heads, and the embedding; then the tokens.
    sums = config.num_layers * (3 if config.qk_norm == "whole" else 2) + 1
    num_calls, wanted = (sums + 1, []) if bucket.num_tokens <= layout.max_rows else (1, ["all-reduce"] * sums)
    if split_stream:
        # All but that of the embedding.
        wanted = ["all-gather"] * (sums - 1) + ["all-reduce"] + ["reduce-scatter"] * (sums - 1)
    if bucket.sampler is SamplerKind.FULL:
        share = bucket.num_seqs // num_devices or 1
        if layout.takes_columns(share, config.vocab_size // num_devices * 4):
            num_calls += 1
        else:
            wanted = ["all-to-all", *wanted]
    if len(calls) != num_calls:
        problems.append(f"{where}: {len(calls)} calls between devices, not {num_calls}")
    if collectives != wanted:
        problems.append(f"{where}: collectives of XLA's: {collectives}")
    if not wanted:
        problems += experts_gate.check_graph("run_step", text, where)
    # Kernels count on arrays that are aligned.
    if any("kDynamicSliceFusion" in line for line in gate.thunks_of("run_step")):
        problems.append(f"{where}: kernels are given slices where they lie")
    pool_bytes = pool.num_pages * pool.page_bytes // num_devices
    if step.memory_analysis().alias_size_in_bytes < pool_bytes:
        problems.append(f"{where}: the pool is not written in place")
    return problems


def main() -> int:
    problems = []
    meshes = {n: gate.h200(n) for n in (2, 4, 8)}
    # The sizes between are cut alike, and float16 as bfloat16.
    for size in (576, 4096, 16384):
        problems += check_kernels(meshes[2], size, "bfloat16", 1)
    # Rows of 16384 in float32, in which no such model is served, spill over 8.
    for num_devices, size, dtype in (
        (4, 8192, "bfloat16"),
        (4, 8192, "float32"),
        (8, 16384, "bfloat16"),
        (8, 8192, "float32"),
    ):
        problems += check_kernels(meshes[num_devices], size, dtype, 1)
    problems += check_kernels(meshes[2], 4096, "bfloat16", 2)
    problems += check_kernels(meshes[4], 8192, "bfloat16", 4)
    for num_devices, size in ((4, 4096), (8, 16384)):
        problems += check_kernels(meshes[num_devices], size, "bfloat16", 1, two_shot=True)
        problems += check_kernels(meshes[num_devices], 8192, "float32", 1, two_shot=True)
    problems += check_kernels(meshes[4], 4096, "bfloat16", 2, two_shot=True)
    problems += check_kernels(meshes[8], 8192, "float16", 4, two_shot=True)
    buckets = gate.step_buckets()
    for num_devices, num_tokens, decode_only, sampler in STEPS:
        problems += check_step(meshes[num_devices], LLAMA, buckets[num_tokens, decode_only, sampler])
    problems += check_step(meshes[2], LLAMA, buckets[8192, False, SamplerKind.GREEDY], split_stream=True)
    for num_tokens, decode_only in ((32, True), (512, False)):
        problems += check_step(meshes[2], OLMO, buckets[num_tokens, decode_only, SamplerKind.GREEDY])
    return gate.report_problems(problems)


if __name__ == "__main__":
    raise SystemExit(main())
