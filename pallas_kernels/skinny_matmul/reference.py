"""The operation in plain jax.numpy, which is also what XLA computes best with many rows."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.swiglu.reference import swiglu_reference


def skinny_matmul_reference(x: jax.Array, weight: jax.Array) -> jax.Array:
    """See `skinny_matmul`: one part."""
    return _product(x, weight, None)[None]


def scores_matmul_reference(x: jax.Array, weight: jax.Array) -> jax.Array:
    """See `scores_matmul`."""
    return _product(x, weight, jnp.float32)


def _product(x: jax.Array, weight: jax.Array, dtype: DTypeLike | None) -> jax.Array:
    # Without this a GPU would round float32 inputs to TF32.
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum("td,nd->tn", x, weight, precision=precision, preferred_element_type=dtype)


def gated_matmul_reference(x: jax.Array, weight: jax.Array) -> jax.Array:
    """See `gated_matmul`."""
    gate_up = skinny_matmul_reference(x, weight.reshape(-1, weight.shape[2]))[0]
    return swiglu_reference(gate_up.reshape(x.shape[0], *weight.shape[:2]))
