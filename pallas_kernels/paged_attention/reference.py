"""Paged attention in plain jax.numpy: the definition of the operation, and what the CPU runs."""

import jax
import jax.numpy as jnp
from jax import lax

# Keys are visited in blocks of about this many, as far as the longest sequence reaches, so that a short batch costs
# little however long the page table is.
BLOCK_KEYS = 128


def paged_attention_reference(
    q: jax.Array,
    kv_pages: jax.Array,
    page_table: jax.Array,
    query_start_loc: jax.Array,
    seq_lens: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    alibi_slopes: jax.Array | None = None,
) -> jax.Array:
    """See `paged_attention`. Softmax over blocks of keys with a running maximum (Milakov & Gimelshein 2018)."""
    num_tokens, num_kv_heads, group, head_dim = q.shape
    page_size = kv_pages.shape[2]
    pages_per_block = max(1, min(BLOCK_KEYS // page_size, page_table.shape[1]))
    block = pages_per_block * page_size
    pad = -page_table.shape[1] % pages_per_block
    page_table = jnp.pad(page_table, ((0, 0), (0, pad)))

    token = jnp.arange(num_tokens, dtype=jnp.int32)
    seq = jnp.searchsorted(query_start_loc, token, side="right", method="compare_all").astype(jnp.int32) - 1
    seq = jnp.clip(seq, 0, seq_lens.shape[0] - 1)
    # Padding rows fall to the last sequence; the bound keeps them within its keys.
    position = jnp.minimum(seq_lens[seq] - query_start_loc[seq + 1] + token, seq_lens[seq] - 1)
    q32 = q.astype(jnp.float32) * scale

    def visit(i: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        top, total, out = carry
        pages = lax.dynamic_slice_in_dim(page_table, i * pages_per_block, pages_per_block, axis=1)[seq]
        kv = kv_pages[pages].astype(jnp.float32)  # [T, pages, 2, page_size, K, H]
        k = kv[:, :, 0].reshape(num_tokens, block, num_kv_heads, head_dim)
        v = kv[:, :, 1].reshape(num_tokens, block, num_kv_heads, head_dim)
        scores = jnp.einsum("tkgh,tbkh->tkgb", q32, k, precision=lax.Precision.HIGHEST)
        distance = i * block + jnp.arange(block, dtype=jnp.int32)[None] - position[:, None]
        if soft_cap is not None:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        if alibi_slopes is not None:
            scores += alibi_slopes[..., None] * distance[:, None, None].astype(jnp.float32)
        visible = distance <= 0 if window is None else (distance <= 0) & (distance > -window)
        visible = visible[:, None, None]
        scores = jnp.where(visible, scores, -jnp.inf)
        new_top = jnp.maximum(top, scores.max(-1))
        # A row that has seen no key yet has a maximum of -inf; 0 in its place keeps the weights at 0 and not NaN.
        base = jnp.where(jnp.isneginf(new_top), 0.0, new_top)
        weights = jnp.exp(scores - base[..., None])
        decay = jnp.exp(top - base)
        total = total * decay + weights.sum(-1)
        # Slots past a sequence's end may hold anything, NaN included, which a weight of 0 would not silence.
        v = jnp.where(visible[:, 0, 0, :, None, None], v, 0.0)
        update = jnp.einsum("tkgb,tbkh->tkgh", weights, v, precision=lax.Precision.HIGHEST)
        return new_top, total, out * decay[..., None] + update

    shape = (num_tokens, num_kv_heads, group)
    start = (
        jnp.full(shape, -jnp.inf, jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros((*shape, head_dim), jnp.float32),
    )
    num_blocks = jnp.minimum((jnp.max(seq_lens) + block - 1) // block, page_table.shape[1] // pages_per_block)
    _, total, out = lax.fori_loop(0, num_blocks, visit, start)
    return (out / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)[..., None]).astype(q.dtype)
