"""The operation in plain jax.numpy, and the definition of the kinds of norm."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

NormKind = Literal["rms", "rms_rounded_last", "rms_plus_one"]


def scale_normed(normed: jax.Array, weight: jax.Array, kind: NormKind, dtype: DTypeLike) -> jax.Array:
    """Scale float32 values of mean square 1 by a norm's weight, rounded to `dtype` where the kind of norm does it."""
    if kind == "rms":
        return weight * normed.astype(dtype)
    scale = weight.astype(jnp.float32)
    return (normed * (scale + 1.0 if kind == "rms_plus_one" else scale)).astype(dtype)


def norm_weight(weight: jax.Array, weight_row: jax.Array | None) -> jax.Array:
    """The weight [D] itself, or a row [1] of several [N, D]."""
    return weight if weight_row is None else weight[weight_row[0]]


def rms_norm(x: jax.Array, weight: jax.Array, *, eps: float, kind: NormKind) -> jax.Array:
    """x [..., D] over its root mean square, in float32, scaled by weight [D]; in x's dtype."""
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    return scale_normed(x32 * jax.lax.rsqrt(mean_square + eps), weight, kind, x.dtype)


def sum_parts(parts: jax.Array, dtype: DTypeLike) -> jax.Array:
    """[parts, T, N] to the product itself [T, N], in `dtype`, which one part alone has already."""
    return parts[0] if parts.shape[0] == 1 else jnp.sum(parts, axis=0).astype(dtype)


def residual_norm_reference(
    x: jax.Array, delta: jax.Array, weight: jax.Array, weight_row: jax.Array | None, *, eps: float, kind: NormKind
) -> tuple[jax.Array, jax.Array]:
    """See `residual_norm`."""
    if delta.ndim == 3:
        delta = sum_parts(delta, x.dtype)
    x = x + delta
    return x, rms_norm(x, norm_weight(weight, weight_row), eps=eps, kind=kind)
