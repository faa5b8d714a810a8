"""The definition of the operation in plain jax.numpy, and what the CPU runs."""

import jax
import jax.numpy as jnp
from jax import lax


def top_k_experts_reference(
    logits: jax.Array, num_experts_per_token: int, *, normalize: bool
) -> tuple[jax.Array, jax.Array]:
    """See `top_k_experts`."""
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    _, expert_ids = lax.top_k(logits, num_experts_per_token)
    weights = jnp.take_along_axis(probabilities, expert_ids, axis=1)
    if normalize:
        weights /= jnp.sum(weights, axis=1, keepdims=True)
    return expert_ids, weights
