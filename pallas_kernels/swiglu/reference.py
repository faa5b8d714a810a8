"""The operation in plain jax.numpy."""

import jax


def swiglu_reference(gate_up: jax.Array) -> jax.Array:
    """See `swiglu`."""
    return jax.nn.silu(gate_up[:, 0]) * gate_up[:, 1]
