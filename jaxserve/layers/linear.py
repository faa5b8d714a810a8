"""The matrix products around attention. Matrices lie as in checkpoints, outputs first."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from jaxserve.layers.parameter import abstract_param
from jaxserve.sharding import TENSOR_AXIS, tensor_parallel_size
from pallas_kernels.residual_norm.reference import sum_parts
from pallas_kernels.skinny_matmul import gated_matmul, skinny_matmul


def multiply_columns(x: jax.Array, weight: jax.Array, mesh: Mesh, *, split_axis: int) -> jax.Array:
    """A product whose outputs are split over the devices: the sum of `columns_in_parts`, [T, ...] in x's dtype."""
    return sum_parts(columns_in_parts(x, weight, mesh, split_axis=split_axis), x.dtype)


def columns_in_parts(x: jax.Array, weight: jax.Array, mesh: Mesh, *, split_axis: int) -> jax.Array:
    """A product whose outputs are split over the devices, in parts that are left to be summed.

    Args:
        x: [T, D], whole on every device.
        weight: [..., D], split by one of its axes.
        mesh: the devices.
        split_axis: which.

    Returns:
        [parts, T, ...] as `skinny_matmul` leaves them, split by the same axis of the weight.
    """

    def local(x: jax.Array, weight: jax.Array) -> jax.Array:
        parts = skinny_matmul(x, weight.reshape(-1, weight.shape[-1]))
        return parts.reshape(*parts.shape[:2], *weight.shape[:-1])

    if tensor_parallel_size(mesh) > 1:
        split = [None] * split_axis + [TENSOR_AXIS]
        specs = (P(), P(*split))
        local = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(None, None, *split), check_vma=False)
    return local(x, weight)


def multiply_gated(x: jax.Array, weight: jax.Array, mesh: Mesh) -> jax.Array:
    """silu(gate) * up of both products of a SwiGLU layer, whose outputs are split over the devices.

    Args:
        x: [T, D], whole on every device.
        weight: [2, F, D], split by its second axis.
        mesh: the devices.

    Returns:
        [T, F] in x's dtype, split by its second axis.
    """
    if tensor_parallel_size(mesh) == 1:
        return gated_matmul(x, weight)
    columns = P(None, TENSOR_AXIS)
    inner: jax.Array = jax.shard_map(
        gated_matmul, mesh=mesh, in_specs=(P(), columns), out_specs=columns, check_vma=False
    )(x, weight)
    return inner


def multiply_split(x: jax.Array, weight: jax.Array, bias: jax.Array | None, mesh: Mesh) -> jax.Array:
    """A product whose summed axes are split over the devices, in parts that are left to be summed.

    Args:
        x: [T, ...], split by its second axis.
        weight: [N, ...], likewise.
        bias: [N], or None.
        mesh: the devices.

    Returns:
        [parts, T, N], the bias in it. Over several devices each has parts of its own, by the first axis, and only the
        sum over them all is the product.
    """

    def product(x: jax.Array, weight: jax.Array) -> jax.Array:
        # One contracted axis: with three, XLA transposes both sides before the product.
        return skinny_matmul(x.reshape(x.shape[0], -1), weight.reshape(weight.shape[0], -1))

    if tensor_parallel_size(mesh) == 1:
        parts = product(x, weight)
        return parts if bias is None else (sum_parts(parts, x.dtype) + bias)[None]

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(None, TENSOR_AXIS), P(None, TENSOR_AXIS), P()),
        out_specs=P(TENSOR_AXIS),
        check_vma=False,
    )
    def local(x: jax.Array, weight: jax.Array, bias: jax.Array | None) -> jax.Array:
        parts = product(x, weight)
        if bias is None:
            return parts
        # One device adds it, for all.
        mine = jnp.where(jax.lax.axis_index(TENSOR_AXIS) == 0, bias, jnp.zeros_like(bias))
        return parts.at[0].add(mine.astype(parts.dtype))

    products: jax.Array = local(x, weight, bias)
    return products


class QKVProjection(nnx.Module):
    """Queries, keys and values in one product, grouped by kv head so that each device holds whole groups.

    Args:
        hidden_size: D, of the input.
        num_kv_heads: K, with the copies that tensor parallelism makes.
        group_size: G, query heads of each kv head.
        head_dim: H.
        bias: add a bias.
        mesh: the devices.
        dtype: of the parameters.
    """

    def __init__(
        self,
        hidden_size: int,
        num_kv_heads: int,
        group_size: int,
        head_dim: int,
        *,
        bias: bool,
        mesh: Mesh,
        dtype: DTypeLike,
    ) -> None:
        shape = (num_kv_heads, group_size + 2, head_dim)
        axes = ("kv_heads", "group", "head_dim")
        self.weight = abstract_param(mesh, (*shape, hidden_size), (*axes, "embed"), dtype)
        self.bias = abstract_param(mesh, shape, axes, dtype) if bias else None
        self.mesh = mesh

    def in_parts(self, x: jax.Array) -> jax.Array:
        """[T, D] to [parts, T, K, G + 2, H], the queries of each kv head, then its key and its value."""
        parts = columns_in_parts(x, self.weight[...], self.mesh, split_axis=0)
        return parts if self.bias is None else (sum_parts(parts, x.dtype) + self.bias[...])[None]


class OutputProjection(nnx.Module):
    """The attended values of all heads back to the residual stream.

    Args:
        hidden_size: D, of the output.
        num_kv_heads: K, with the copies that tensor parallelism makes.
        group_size: G, query heads of each kv head.
        head_dim: H.
        bias: add a bias.
        mesh: the devices.
        dtype: of the parameters.
    """

    def __init__(
        self,
        hidden_size: int,
        num_kv_heads: int,
        group_size: int,
        head_dim: int,
        *,
        bias: bool,
        mesh: Mesh,
        dtype: DTypeLike,
    ) -> None:
        shape = (hidden_size, num_kv_heads, group_size, head_dim)
        self.weight = abstract_param(mesh, shape, ("embed", "kv_heads", "group", "head_dim"), dtype)
        self.bias = abstract_param(mesh, (hidden_size,), ("embed",), dtype) if bias else None
        self.mesh = mesh

    def in_parts(self, x: jax.Array) -> jax.Array:
        """[T, K, G, H] to [parts, T, D] as `multiply_split` leaves them."""
        return multiply_split(x, self.weight[...], None if self.bias is None else self.bias[...], self.mesh)
