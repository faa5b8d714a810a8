"""The public operation: checks its arguments and picks an implementation."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.cached_attention.reference import cached_attention_reference
from pallas_kernels.paged_attention.api import (
    AttentionImplementation,
    ScoreOptions,
    check_scores,
    pick_attention,
    pick_prefill,
)


def cached_attention(
    qkv: jax.Array,
    cos_sin: jax.Array | None,
    kv_pages: jax.Array,
    slot_mapping: jax.Array,
    page_table: jax.Array,
    query_start_loc: jax.Array,
    seq_lens: jax.Array,
    *,
    first_page: jax.Array | None = None,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    alibi_slopes: jax.Array | None = None,
    decode_only: bool = False,
    dtype: DTypeLike | None = None,
    implementation: AttentionImplementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Rotate a step's queries and keys, write its keys and values into the pool, and attend over the pool.

    The same as rotating, `kv_cache_update` and `paged_attention` one after the other, whose arguments these are. On a
    GPU it is one kernel where every sequence has one query, and otherwise one that rotates and writes before those that
    attend.

    Args:
        qkv: [T, K, G + 2, H] the queries of each kv head, then its key and its value, or [parts, T, K, G + 2, H], whose
            sum that is. Rows from query_start_loc[S] on are padding, and finite.
        cos_sin: [T, 2, R / 2] float32, cosines and sines of each row's position, R <= H; None rotates nothing.
        kv_pages: [P, 2, page_size, K, H] the pool, of one layer or of several; written in place when it is donated.
        slot_mapping: [T] int32, the slot of each row's key and value, from P * page_size on for padding. Must say what
            page_table and seq_lens say.
        page_table: [S, max_pages] int32.
        query_start_loc: [S + 1] int32.
        seq_lens: [S] int32, with this step's tokens; 0 for padding.
        first_page: [1] int32, the row of kv_pages from which slot_mapping and page_table count, where this layer's
            pages begin; None is 0. An array and no number, so that layers may share what is compiled. Every slot,
            padding's too, plus first_page * page_size must be below 2**31.
        scale: factor on the scores, above 0.
        window: keys that each query sees, its own included; None is all.
        soft_cap: c in c * tanh(s / c); None leaves scores as they are.
        alibi_slopes: [K, G] float32; None adds nothing.
        decode_only: promises that T == S and row i is the one query of sequence i, or padding.
        dtype: of the sum of several parts; None is qkv's.
        implementation: `reference`, `triton`, `mosaic_gpu`, or None for the best that can run.

    Returns:
        [T, K, G, H] in that dtype, padding rows finite and of no meaning; and kv_pages with the step's tokens.

    Raises:
        ValueError: shapes contradict each other, a number is out of range, or the implementation cannot take them.
    """
    if qkv.ndim not in (4, 5):
        raise ValueError(f"qkv must be [T, K, G + 2, H] or [parts, T, K, G + 2, H], got {qkv.shape}")
    num_tokens, num_kv_heads, rows, head_dim = qkv.shape[-4:]
    dtype = jnp.dtype(dtype or qkv.dtype)
    if rows < 3 or kv_pages.shape[3:] != (num_kv_heads, head_dim) or slot_mapping.shape != (num_tokens,):
        raise ValueError(
            f"qkv {qkv.shape} must be [T, K, G + 2, H] with the heads of kv_pages {kv_pages.shape} and one slot a row; "
            f"slot_mapping has {slot_mapping.shape}"
        )
    if cos_sin is not None and (cos_sin.shape[:2] != (num_tokens, 2) or 2 * cos_sin.shape[2] > head_dim):
        raise ValueError(f"cos_sin {cos_sin.shape} must be [T, 2, R / 2], R at most H, for qkv {qkv.shape}")
    if decode_only and seq_lens.shape != (num_tokens,):
        raise ValueError(f"decode_only takes one row a sequence; there are {num_tokens} and {seq_lens.shape[0]}")
    if first_page is not None and (first_page.shape != (1,) or first_page.dtype != jnp.int32):
        raise ValueError(f"first_page must be [1] int32, got {first_page.shape} {first_page.dtype}")
    options: ScoreOptions = {"scale": scale, "window": window, "soft_cap": soft_cap, "alibi_slopes": alibi_slopes}
    check_scores((num_kv_heads, rows - 2), options)
    arguments = (qkv, cos_sin, kv_pages, slot_mapping, page_table, query_start_loc, seq_lens)
    if pick_attention(implementation, dtype, kv_pages.dtype) == "reference":
        return cached_attention_reference(*arguments, first_page=first_page, dtype=dtype, **options)
    # Loaded only here: jax_triton is not needed where the reference runs.
    from pallas_kernels.cached_attention.triton import cached_attention_triton

    prefill = pick_prefill(implementation, rows - 2, kv_pages, options)
    return cached_attention_triton(
        *arguments, first_page=first_page, **options, decode_only=decode_only, dtype=dtype, prefill=prefill
    )
