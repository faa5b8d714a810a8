"""The operation in plain jax.numpy: its three parts, one after the other."""

from typing import Unpack

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.kv_cache_update import kv_cache_update
from pallas_kernels.paged_attention import ScoreOptions
from pallas_kernels.paged_attention.reference import paged_attention_reference
from pallas_kernels.residual_norm.reference import sum_parts


def rotate(x: jax.Array, cos_sin: jax.Array) -> jax.Array:
    """Rotate the two halves of each head by its position's angles (RoPE, Su et al. 2021), in float32.

    Args:
        x: [T, ..., H].
        cos_sin: [T, 2, R / 2] float32: cosines, then sines. R <= H; what lies past R in a head is kept.

    Returns:
        As `x`, in its dtype.
    """
    half = cos_sin.shape[-1]
    middle = (1,) * (x.ndim - 2)
    cos, sin = (cos_sin[:, i].reshape(x.shape[0], *middle, -1) for i in (0, 1))
    rotated = x[..., : 2 * half].astype(jnp.float32)
    first, second = rotated[..., :half], rotated[..., half:]
    parts = [first * cos - second * sin, second * cos + first * sin]
    if 2 * half < x.shape[-1]:
        parts.append(x[..., 2 * half :].astype(jnp.float32))
    return jnp.concatenate(parts, axis=-1).astype(x.dtype)


def places_in_array(
    slot_mapping: jax.Array, page_table: jax.Array, first_page: jax.Array | None, page_size: int
) -> tuple[jax.Array, jax.Array]:
    """Slots [T] and pages [S, max_pages] of a layer whose page 0 is row first_page [1] of an array, counted in that
    array. Slots past the array stay past it."""
    if first_page is None:
        return slot_mapping, page_table
    return slot_mapping + first_page * page_size, page_table + first_page


def cached_attention_reference(
    qkv: jax.Array,
    cos_sin: jax.Array | None,
    kv_pages: jax.Array,
    slot_mapping: jax.Array,
    page_table: jax.Array,
    query_start_loc: jax.Array,
    seq_lens: jax.Array,
    *,
    first_page: jax.Array | None = None,
    dtype: DTypeLike | None = None,
    **options: Unpack[ScoreOptions],
) -> tuple[jax.Array, jax.Array]:
    """See `cached_attention`."""
    if qkv.ndim == 5:
        qkv = sum_parts(qkv, dtype or qkv.dtype)
    q, k, v = qkv[:, :, :-2], qkv[:, :, -2], qkv[:, :, -1]
    if cos_sin is not None:
        q, k = rotate(q, cos_sin), rotate(k, cos_sin)
    slot_mapping, page_table = places_in_array(slot_mapping, page_table, first_page, kv_pages.shape[2])
    kv_pages = kv_cache_update(kv_pages, k, v, slot_mapping)
    return paged_attention_reference(q, kv_pages, page_table, query_start_loc, seq_lens, **options), kv_pages
