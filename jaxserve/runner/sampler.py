"""Choosing the next token of each sequence, on the device.

Sampling is by the Gumbel-max trick (Gumbel 1954): the noise of a token depends only on the request's seed and the
token's position, so the same seed gives the same tokens whatever else is in the batch, and again after preemption.
"""

import jax
import jax.numpy as jnp
import numpy as np


def sample_greedy(logits: jax.Array) -> jax.Array:
    """The most probable token of each row: [S, V] float32 → [S] int32. Ties go to the lower id."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def sample(logits: jax.Array, positions: jax.Array, params: dict[str, jax.Array]) -> jax.Array:
    """Sample a token for each row under its own parameters.

    Tokens are dropped in this order, each step on what the last one left: min_p, top_k, top_p. Tokens that tie with
    the last one kept are kept too.

    Args:
        logits: [S, V] float32.
        positions: [S] int32, position of the token being chosen.
        params: the sampler's fields of `packed_layout`.

    Returns:
        [S] int32 token ids.
    """
    logits = _suppress(logits, params)
    greedy = sample_greedy(logits)
    # Below the smallest normal number a device may divide as by 0, and the best token is as good as certain anyway.
    random = params["temperature"] >= np.finfo(np.float32).tiny
    # Relative to the best, so that a small temperature sends the others to -inf and not the best to +inf.
    relative = logits - logits.max(axis=-1, keepdims=True)
    scaled = relative / jnp.where(random, params["temperature"], 1.0)[:, None]
    kept = _restrict(scaled, params["top_k"], params["top_p"], params["min_p"])
    noise = _gumbel(params["seed_high"], params["seed_low"], positions, logits.shape[-1])
    drawn = jnp.argmax(kept + noise, axis=-1).astype(jnp.int32)
    return jnp.where(random, drawn, greedy)


def _suppress(logits: jax.Array, params: dict[str, jax.Array]) -> jax.Array:
    """Put the stop tokens of the rows that hold them back at -inf."""
    vocab_size = logits.shape[-1]
    ids = jnp.where(params["suppress"][:, None] > 0, params["suppressed_ids"], vocab_size)
    rows = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    return logits.at[rows, ids].set(-jnp.inf, mode="drop")


def _restrict(logits: jax.Array, top_k: jax.Array, top_p: jax.Array, min_p: jax.Array) -> jax.Array:
    """Put the tokens that min_p, top_k and top_p drop at -inf."""
    descending = -jnp.sort(-logits, axis=-1)
    best = descending[:, :1]
    # A token is kept by min_p when p >= min_p * p_max, i.e. when its logit is within -log(min_p) of the best.
    floor = best + jnp.log(min_p)[:, None]
    last_k = jnp.clip(top_k, 1, logits.shape[-1]) - 1
    floor = jnp.maximum(floor, jnp.take_along_axis(descending, last_k[:, None], axis=-1))
    weights = jnp.where(descending >= floor, jnp.exp(descending - best), 0.0)
    before = jnp.cumsum(weights, axis=-1) - weights
    # Kept: each token before which less than top_p of the mass lies; the best one always.
    # With 1 no rounding of the sums may cost a token.
    in_mass = (before < top_p[:, None] * weights.sum(-1, keepdims=True)) | (top_p[:, None] >= 1.0)
    in_nucleus = in_mass & (weights > 0.0)
    floor = jnp.min(jnp.where(in_nucleus, descending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= floor, logits, -jnp.inf)


def _gumbel(seed_high: jax.Array, seed_low: jax.Array, positions: jax.Array, vocab_size: int) -> jax.Array:
    """[S, V] Gumbel noise, a function of each row's seed and position alone."""
    data = jax.lax.bitcast_convert_type(jnp.stack([seed_high, seed_low], axis=-1), jnp.uint32)

    def noise(key_data: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.wrap_key_data(key_data, impl="threefry2x32"), position)
        return jax.random.gumbel(key, (vocab_size,), jnp.float32)

    return jax.vmap(noise)(data, positions)
