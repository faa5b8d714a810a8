"""The definition of the operation, by one sort of the row that serves all three parameters."""

import jax
import jax.numpy as jnp
import numpy as np


def sampling_floor_reference(
    logits: jax.Array,
    best: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    min_p: jax.Array,
) -> jax.Array:
    """See `sampling_floor`."""
    random = temperature >= np.finfo(np.float32).tiny
    scale = jnp.where(random, temperature, 1.0)
    descending = -jnp.sort(-logits, axis=-1)
    # A token is kept by min_p when p >= min_p * p_max. The lowest finite number keeps all but -inf.
    floor = jnp.maximum(best + scale * jnp.log(min_p), np.finfo(np.float32).min)
    last_k = jnp.clip(top_k, 1, logits.shape[-1]) - 1
    floor = jnp.maximum(floor, jnp.take_along_axis(descending, last_k[:, None], axis=-1)[:, 0])
    weights = jnp.exp((descending - best[:, None]) / scale[:, None])
    weights = jnp.where(descending >= floor[:, None], weights, 0.0)
    before = jnp.cumsum(weights, axis=-1) - weights
    in_nucleus = (before < top_p[:, None] * weights.sum(-1, keepdims=True)) & (weights > 0.0)
    last = jnp.min(jnp.where(in_nucleus, descending, jnp.inf), axis=-1)
    # With 1 no rounding of the sums may cost a token.
    floor = jnp.where(top_p < 1.0, last, floor)
    return jnp.where(random, jnp.minimum(floor, best), best)
