#!/usr/bin/env python3
"""Compiles routed experts for an H200, without a GPU, and fails where the result is not what it must be.

Run as `scripts/compile_gate.py`, whose parts it uses. Kernels: no register spilled; weights fetched ahead by cp.async
of 16 bytes; wgmma where experts have many rows each. Layers: everything in one command buffer, no weight copied. Takes
about two minutes.
"""

import re
from typing import Any
from unittest import mock

import compile_gate as gate  # first: it sets what JAX reads when it is imported
import jax
from flax import nnx
from jax.sharding import Mesh

from jaxserve.layers.moe import RoutedExperts
from jaxserve.sharding import named_sharding
from pallas_kernels import platform
from pallas_kernels.grouped_matmul.arg_specs import EXPERTS, ExpertSpec
from pallas_kernels.grouped_matmul.config import tile_rows

NUM_LAYERS = 4
# Without sorting, then few, some and many rows an expert.
NUM_TOKENS = (1, 32, 256, 512, 8192)


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
    with gate.recorded_kernels() as kernels, mock.patch.object(platform, "triton_can_run", lambda: True):
        jax.jit(layer.run_experts).trace(layer.weights, x).lower()
    rows = num_tokens * experts.num_experts_per_token
    many_rows = dtype != "float32" and tile_rows(rows, experts.num_experts, dtype) >= 64
    problems = []
    for kernel in kernels:
        where = f"{kernel.name}, {name}, {dtype}, {num_tokens} tokens"
        spilled = kernel.spilled_bytes()
        print(f"{where}: {kernel.shared_bytes} bytes shared, {spilled} spilled", flush=True)
        if spilled:
            problems.append(f"{where}: {spilled} bytes spilled")
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
    dump = gate.Path(gate.DUMP.name)
    for old in dump.iterdir():
        old.unlink()
    with gate.recorded_kernels(), mock.patch.object(platform, "triton_can_run", lambda: True):
        compiled: Any = jax.jit(layers.run_experts).lower(layers.weights, x).compile()
    thunks = next(dump.glob("*run_experts*thunk_sequence_after_thunk_passes.txt")).read_text().splitlines()
    outside = [line.split()[1] for line in thunks if line[:1].isdigit()]
    temporary = compiled.memory_analysis().temp_size_in_bytes
    where = f"{NUM_LAYERS} layers of {name}, {num_tokens} tokens"
    print(f"{where}: {len(thunks)} thunks, {temporary} bytes of temporaries", flush=True)
    problems = []
    if outside != ["kCommandBuffer"]:
        problems.append(f"{where}: not one command buffer, but {outside[:8]}")
    # What lies between the products of one layer, and a little; the weights of one expert alone are more in decoding.
    rows = num_tokens * experts.num_experts_per_token
    most = 2 * rows * (experts.hidden_size + experts.intermediate_size) + 8 * num_tokens * experts.hidden_size + 2**20
    if temporary > most:
        problems.append(f"{where}: {temporary} bytes of temporaries, above {most}")
    return problems


def main() -> int:
    mesh = gate.h200(1)
    problems = []
    for name in EXPERTS:
        for num_tokens in NUM_TOKENS:
            problems += check_kernels(mesh, name, num_tokens, "bfloat16")
    for num_tokens in NUM_TOKENS:
        problems += check_kernels(mesh, "qwen3-30b-a3b", num_tokens, "float32")
        problems += check_layers(mesh, "qwen3-30b-a3b", num_tokens)
    for problem in problems:
        print(f"FAIL {problem}")
    print("compiled as it must" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
