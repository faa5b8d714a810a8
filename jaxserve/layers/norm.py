"""Normalisation."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxserve.layers.parameter import abstract_param


class RMSNorm(nnx.Module):
    """Root mean square normalisation (Zhang and Sennrich 2019), computed in float32.

    Args:
        size: D, of the normalised axis.
        eps: added to the mean square.
        mesh: the devices.
        dtype: of the weight.
    """

    def __init__(self, size: int, *, eps: float, mesh: Mesh, dtype: DTypeLike) -> None:
        self.weight = abstract_param(mesh, (size,), ("embed",), dtype)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] to [..., D], in the dtype of `x`. It is rounded to that before the weight scales it, as in Llama."""
        x32 = x.astype(jnp.float32)
        normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return self.weight[...] * normed.astype(x.dtype)
