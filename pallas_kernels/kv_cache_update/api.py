"""The public operation. XLA's own scatter writes as fast as a Triton kernel does, so there is one implementation."""

import jax
import jax.numpy as jnp


def kv_cache_update(kv_pages: jax.Array, k: jax.Array, v: jax.Array, slot_mapping: jax.Array) -> jax.Array:
    """Write each token's key and value into its slot; in place when kv_pages is donated.

    Args:
        kv_pages: [P, 2, page_size, K, H] the pool, keys at index 0 and values at 1 of the second axis.
        k: [T, K, H] keys.
        v: [T, K, H] values.
        slot_mapping: [T] int32, page * page_size + offset. Slots must be distinct; those from P * page_size on are
            dropped, which is how padding tokens are given (negative ones would wrap round).

    Returns:
        kv_pages with the T slots written.

    Raises:
        ValueError: shapes contradict each other.
    """
    if k.shape != v.shape or k.shape[1:] != kv_pages.shape[3:] or slot_mapping.shape != k.shape[:1]:
        raise ValueError(
            f"k {k.shape}, v {v.shape} and slot_mapping {slot_mapping.shape} do not fit kv_pages {kv_pages.shape}"
        )
    page_size = kv_pages.shape[2]
    page, offset = slot_mapping // page_size, slot_mapping % page_size
    rows = jnp.stack([k, v], axis=1).astype(kv_pages.dtype)
    kind = jnp.arange(2, dtype=jnp.int32)
    return kv_pages.at[page[:, None], kind[None], offset[:, None]].set(rows, mode="drop", unique_indices=True)
