#!/usr/bin/env python3
"""Compiles routed experts for an H200, without a GPU, and fails where the result is not what it must be.

Run as `scripts/compile_gate.py`, whose parts it uses. Kernels: no register spilled; weights fetched ahead by cp.async
of 16 bytes; wgmma where experts have many rows each. Layers, and the steps of a model: everything in one command
buffer, no weight copied, no sort and no loop. Takes about two minutes.
"""

import re
from dataclasses import replace
from typing import Any
from unittest import mock

import compile_gate as gate  # first: it sets what JAX reads when it is imported
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxserve.layers.moe import RoutedExperts
from jaxserve.models.config import ExpertsConfig
from jaxserve.runner.buckets import Bucket, Buckets, SamplerKind
from jaxserve.runner.kv_pool import KVPoolSpec
from jaxserve.runner.step_compiler import StepCompiler
from jaxserve.sharding import named_sharding
from pallas_kernels.grouped_matmul.arg_specs import EXPERTS, ExpertSpec
from pallas_kernels.grouped_matmul.config import tile_rows

NUM_LAYERS = 4
# Without sorting, then few, some and many rows an expert.
NUM_TOKENS = (1, 32, 256, 512, 8192)
# (tokens, decode only) of the model's steps.
STEPS = ((1, True), (256, True), (8192, False))


class AbstractExperts:
    """Layers of routed experts, of shapes only, and a function that runs them one after the other."""

    def __init__(self, mesh: Mesh, experts: ExpertSpec, dtype: str, num_layers: int) -> None:
        layer = RoutedExperts(
            experts.hidden_size,
            experts.intermediate_size,
            experts.num_experts,
            experts.num_experts_per_token,
            normalize_weights=True,
            mesh=mesh,
            dtype=dtype,
        )
        self._graphdef, state = nnx.split(layer)
        leaves, self._treedef = jax.tree.flatten(state)
        self.weights = (tuple(leaves),) * num_layers

    def run_experts(self, weights: Any, x: jax.Array) -> jax.Array:
        for leaves in weights:
            x = x + nnx.merge(self._graphdef, jax.tree.unflatten(self._treedef, leaves))(x)
        return x


def check_kernels(mesh: Mesh, name: str, num_tokens: int, dtype: str) -> list[str]:
    """What is wrong with the kernels of one layer."""
    experts = EXPERTS[name]
    layer = AbstractExperts(mesh, experts, dtype, num_layers=1)
    x = jax.ShapeDtypeStruct((num_tokens, experts.hidden_size), dtype, sharding=named_sharding(mesh))
    with gate.recorded_kernels() as kernels:
        jax.jit(layer.run_experts).trace(layer.weights, x).lower()
    rows = num_tokens * experts.num_experts_per_token
    many_rows = dtype != "float32" and tile_rows(rows, experts.num_experts, dtype) >= 64
    problems = []
    for kernel in kernels:
        where = f"{kernel.name}, {name}, {dtype}, {num_tokens} tokens"
        problems += kernel.spills(where)
        if kernel.name != "grouped_matmul_kernel":
            continue
        if not re.search(r"cp\.async\.c[ga]\.shared\.global .*0x10", kernel.ptx):
            problems.append(f"{where}: no cp.async of 16 bytes")
        if many_rows and "wgmma.mma_async" not in kernel.ptx:
            problems.append(f"{where}: no wgmma")
    return problems


def check_layers(mesh: Mesh, name: str, num_tokens: int) -> list[str]:
    """What is wrong with the executable of some layers."""
    experts = EXPERTS[name]
    layers = AbstractExperts(mesh, experts, "bfloat16", NUM_LAYERS)
    x = jax.ShapeDtypeStruct((num_tokens, experts.hidden_size), "bfloat16", sharding=named_sharding(mesh))
    gate.clear_dump()
    with gate.on_hopper():
        compiled: Any = jax.jit(layers.run_experts).lower(layers.weights, x).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    where = f"{NUM_LAYERS} layers of {name}, {num_tokens} tokens"
    print(f"{where}: {temporary} bytes of temporaries", flush=True)
    problems = check_graph("run_experts", compiled.as_text(), where)
    # What lies between the products of one layer, and a little; the weights of one expert alone are more in decoding.
    rows = num_tokens * experts.num_experts_per_token
    most = 2 * rows * (experts.hidden_size + experts.intermediate_size) + 8 * num_tokens * experts.hidden_size + 2**20
    if temporary > most:
        problems.append(f"{where}: {temporary} bytes of temporaries, above {most}")
    return problems


def check_graph(function: str, text: str, where: str) -> list[str]:
    """Whether the executable that was just compiled is one command buffer (a step with the copy of its tokens besides),
    without what could not be in one."""
    outside = gate.outside_graphs(gate.thunks_of(function))
    wanted = gate.STEP_THUNKS if function == "run_step" else ["kCommandBuffer"]
    problems = [] if outside == wanted else [f"{where}: not one command buffer, but {outside[:8]}"]
    if loops := re.findall(r" (?:sort|while)\(|DeviceRadixSort", text):
        problems.append(f"{where}: sorts or loops: {loops}")
    return problems


def check_step(mesh: Mesh, bucket: Bucket) -> list[str]:
    """What is wrong with a step of a model with experts."""
    spec = EXPERTS["qwen3-30b-a3b"]
    experts = ExpertsConfig(
        num_experts=spec.num_experts,
        num_experts_per_token=spec.num_experts_per_token,
        intermediate_size=spec.intermediate_size,
    )
    config = replace(gate.MODEL, hidden_size=spec.hidden_size, experts=experts)
    pool = KVPoolSpec(NUM_LAYERS, 3001, 16, config.num_kv_heads, config.head_dim, jnp.dtype("bfloat16"))
    gate.clear_dump()
    with mock.patch.object(gate, "MODEL", config), gate.on_hopper():
        model = gate.AbstractModel(mesh)
        step: Any = StepCompiler(model, model.weights, mesh, pool, 256, 256).compile(bucket)
    text = step.as_text()
    calls, temporary = len(gate.kernel_calls(text)), step.memory_analysis().temp_size_in_bytes
    print(f"{bucket}: {calls} calls of kernels, {temporary} bytes of temporaries", flush=True)
    return check_graph("run_step", text, f"step of {bucket.num_tokens} tokens")


def main() -> int:
    mesh = gate.h200(1)
    problems = []
    buckets = Buckets(max_num_seqs=256, max_num_batched_tokens=8192, page_size=16, split_decode=True)
    for bucket in buckets:
        if (bucket.num_tokens, bucket.decode_only) in STEPS and bucket.sampler is SamplerKind.GREEDY:
            problems += check_step(mesh, bucket)
    for name in EXPERTS:
        for num_tokens in NUM_TOKENS:
            problems += check_kernels(mesh, name, num_tokens, "bfloat16")
    for num_tokens in NUM_TOKENS:
        problems += check_kernels(mesh, "qwen3-30b-a3b", num_tokens, "float32")
        problems += check_layers(mesh, "qwen3-30b-a3b", num_tokens)
    return gate.report_problems(problems)


if __name__ == "__main__":
    raise SystemExit(main())
