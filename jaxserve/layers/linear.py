"""The matrix products around attention. Matrices lie as in checkpoints, outputs first."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxserve.layers.parameter import abstract_param
from jaxserve.sharding import constrain


def project(subscripts: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """`einsum` of activations and a weight, in their dtype; the hardware sums in float32 whatever that is."""
    # Without this a GPU would round float32 inputs to TF32.
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(subscripts, x, weight, precision=precision)


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

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[T, D] to queries [T, K, G, H], keys [T, K, H] and values [T, K, H]."""
        out = project("td,kghd->tkgh", x, self.weight[...])
        if self.bias is not None:
            out += self.bias[...]
        return out[:, :, :-2], out[:, :, -2], out[:, :, -1]


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

    def __call__(self, x: jax.Array) -> jax.Array:
        """[T, K, G, H] to [T, D], summed over the devices."""
        # One contracted axis: with three, XLA transposes both sides before the product.
        weight = self.weight[...]
        out = project("tf,df->td", x.reshape(x.shape[0], -1), weight.reshape(weight.shape[0], -1))
        out = constrain(out, self.mesh)
        return out if self.bias is None else out + self.bias[...]
