"""Choosing the next token of each sequence, on the device.

Sampling is by the Gumbel-max trick (Gumbel 1954): the noise of a token depends only on the request's seed and the
token's position, so the same seed gives the same tokens whatever else is in the batch, and again after preemption.
"""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.gumbel_argmax import gumbel_argmax
from pallas_kernels.platform import Implementation
from pallas_kernels.sampling_floor import sampling_floor


def sample_greedy(logits: jax.Array) -> jax.Array:
    """The most probable token of each row: [S, V] float32 → [S] int32. Ties go to the lower id."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def sample(
    logits: jax.Array,
    positions: jax.Array,
    params: dict[str, jax.Array],
    *,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Sample a token for each row under its own parameters.

    Tokens are dropped in this order, each step on what the last one left: min_p, top_k, top_p. Tokens that tie with
    the last one kept are kept too.

    Args:
        logits: [S, V] float32.
        positions: [S] int32, position of the token being chosen.
        params: the sampler's fields of `packed_layout`.
        implementation: of the kernels; None picks the best that can run.

    Returns:
        [S] int32 token ids.
    """
    return draw(_suppress(logits, params), positions, params, implementation=implementation)


def draw(
    logits: jax.Array,
    positions: jax.Array,
    params: dict[str, jax.Array],
    *,
    implementation: Implementation | None = None,
) -> jax.Array:
    """`sample` without holding any tokens back."""
    greedy = sample_greedy(logits)
    best = logits.max(axis=-1)
    temperature = params["temperature"]
    restrictions = params["top_k"], params["top_p"], params["min_p"]
    floor = sampling_floor(logits, best, temperature, *restrictions, implementation=implementation)
    seeds = jnp.stack([params["seed_high"], params["seed_low"]], axis=-1)
    drawn = gumbel_argmax(logits, best, floor, temperature, seeds, positions, implementation=implementation)
    # Below the smallest normal number a device may divide as by 0, and the best token is as good as certain anyway.
    return jnp.where(temperature >= np.finfo(np.float32).tiny, drawn, greedy)


def _suppress(logits: jax.Array, params: dict[str, jax.Array]) -> jax.Array:
    """Put the stop tokens of the rows that hold them back at -inf."""
    vocab_size = logits.shape[-1]
    ids = jnp.where(params["suppress"][:, None] > 0, params["suppressed_ids"], vocab_size)
    rows = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    return logits.at[rows, ids].set(-jnp.inf, mode="drop")
