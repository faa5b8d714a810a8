"""Routed experts in place of the feed-forward layer.

Every device holds a part of every expert, as it does of a dense feed-forward: whatever experts tokens choose, the work
divides evenly, and one sum over the devices ends the layer. The kernels stand inside `jax.shard_map`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from jaxserve.layers.parameter import abstract_param
from jaxserve.sharding import TENSOR_AXIS, constrain, partition_spec
from pallas_kernels.grouped_matmul import expert_mlp
from pallas_kernels.residual_norm.reference import sum_parts
from pallas_kernels.top_k_experts import top_k_experts

_GATE_UP_AXES = ("experts", "gate_up", "mlp", "embed")
_DOWN_AXES = ("experts", "embed", "mlp")


class Router(nnx.Module):
    """Scores every expert for every token.

    Args:
        hidden_size: D.
        num_experts: E.
        mesh: the devices.
        dtype: of the parameter.
    """

    def __init__(self, hidden_size: int, num_experts: int, *, mesh: Mesh, dtype: DTypeLike) -> None:
        self.weight = abstract_param(mesh, (num_experts, hidden_size), ("experts", "embed"), dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[T, D] to scores [T, E] in float32, not rounded to x's dtype: that would make equal ones of close ones."""
        precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
        return jnp.einsum("td,ed->te", x, self.weight[...], precision=precision, preferred_element_type=jnp.float32)


class ExpertMatrices(nnx.Module):
    """One matrix, or several, of every expert.

    Args:
        shape: of the parameter, the experts first.
        axes: the logical axis of each dimension.
        mesh: the devices.
        dtype: of the parameter.
    """

    def __init__(self, shape: tuple[int, ...], axes: tuple[str, ...], *, mesh: Mesh, dtype: DTypeLike) -> None:
        self.weight = abstract_param(mesh, shape, axes, dtype)


class RoutedExperts(nnx.Module):
    """The k experts of E that a router scores highest, each a gated feed-forward, added up by its scores.

    A sparsely gated mixture of experts (Shazeer et al. 2017) as in Mixtral (Jiang et al. 2024) and Qwen3-MoE: scores
    are a softmax over all experts.

    Args:
        hidden_size: D.
        intermediate_size: F of each expert; must divide by the size of the mesh's tensor axis.
        num_experts: E.
        num_experts_per_token: k.
        normalize_weights: divide the weights of a token's experts by their sum.
        mesh: the devices.
        dtype: of the parameters.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        num_experts_per_token: int,
        *,
        normalize_weights: bool,
        mesh: Mesh,
        dtype: DTypeLike,
    ) -> None:
        self.router = Router(hidden_size, num_experts, mesh=mesh, dtype=dtype)
        self.gate_up_proj = ExpertMatrices(
            (num_experts, 2, intermediate_size, hidden_size), _GATE_UP_AXES, mesh=mesh, dtype=dtype
        )
        self.down_proj = ExpertMatrices(
            (num_experts, hidden_size, intermediate_size), _DOWN_AXES, mesh=mesh, dtype=dtype
        )
        self.num_experts_per_token = num_experts_per_token
        self.normalize_weights = normalize_weights
        self.mesh = mesh

    def __call__(self, x: jax.Array) -> jax.Array:
        """[T, D] to [T, D], summed over the devices."""
        return constrain(sum_parts(self.in_parts(x), x.dtype), self.mesh)

    def in_parts(self, x: jax.Array) -> jax.Array:
        """[T, D] to [devices, T, D], a part of each device. A row's result does not depend on the other rows."""

        @partial(
            jax.shard_map,
            mesh=self.mesh,
            in_specs=(P(), P(), partition_spec(_GATE_UP_AXES), partition_spec(_DOWN_AXES)),
            out_specs=P(TENSOR_AXIS),
            check_vma=False,
        )
        def local(x: jax.Array, logits: jax.Array, gate_up: jax.Array, down: jax.Array) -> jax.Array:
            expert_ids, expert_weights = top_k_experts(
                logits, self.num_experts_per_token, normalize=self.normalize_weights
            )
            return expert_mlp(x, expert_ids, expert_weights, gate_up, down)[None]

        out: jax.Array = local(x, self.router(x), self.gate_up_proj.weight[...], self.down_proj.weight[...])
        return out
