"""Cuts a ragged batch into work items of a fixed number, as a compiled step needs."""

import jax
import jax.numpy as jnp


def assign(counts: jax.Array, num_items: int) -> tuple[jax.Array, jax.Array]:
    """Lay counts[i] work items of each i side by side: (whose each of num_items is, the first item of each i).

    Items past the last are nobody's and get len(counts). Sums over a square of comparisons rather than cumsum and
    searchsorted: those are several kernels and a loop in XLA, and a loop cannot be part of a CUDA graph.
    """
    index = jnp.arange(counts.shape[0], dtype=jnp.int32)
    ends = jnp.sum(jnp.where(index[None] <= index[:, None], counts[None], 0), axis=1, dtype=jnp.int32)
    item = jnp.arange(num_items, dtype=jnp.int32)
    owner = jnp.sum(ends[None] <= item[:, None], axis=1, dtype=jnp.int32)
    return owner, ends - counts
