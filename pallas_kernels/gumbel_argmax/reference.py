"""The definition of the operation. XLA fuses the noise into the argmax."""

import jax
import jax.numpy as jnp
import numpy as np


def gumbel_noise(seeds: jax.Array, positions: jax.Array, vocab_size: int) -> jax.Array:
    """[S, V] float32 Gumbel noise, a function of each row's seed [S, 2] int32 and position [S] int32 alone."""

    def noise(seed: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), position)
        return jax.random.gumbel(key, (vocab_size,), jnp.float32)

    return jax.vmap(noise)(jax.lax.bitcast_convert_type(seeds, jnp.uint32), positions)


def gumbel_argmax_reference(
    logits: jax.Array,
    best: jax.Array,
    floor: jax.Array,
    temperature: jax.Array,
    seeds: jax.Array,
    positions: jax.Array,
) -> jax.Array:
    """See `gumbel_argmax`."""
    random = temperature >= np.finfo(np.float32).tiny
    # Relative to the best, so that a small temperature sends the others to -inf and not the best to +inf.
    scaled = (logits - best[:, None]) / jnp.where(random, temperature, 1.0)[:, None]
    kept = jnp.where(logits >= floor[:, None], scaled, -jnp.inf)
    noise = gumbel_noise(seeds, positions, logits.shape[-1])
    return jnp.argmax(kept + noise, axis=-1).astype(jnp.int32)
