"""Ragged batches over a paged pool, with attention written out one sequence at a time."""

from typing import Any

import numpy as np

from pallas_kernels.paged_attention.arg_specs import BatchSpec, HeadSpec

SCALE = 0.3
# What may become of a score, and where it shows: windows narrower and wider than a tile, caps that bite.
SCORES: dict[str, dict[str, Any]] = {
    "window of 5": {"window": 5},
    "window of 50": {"window": 50},
    "soft cap": {"soft_cap": 0.7},
    "ALiBi": {"alibi": True},
    "all three": {"window": 21, "soft_cap": 2.0, "alibi": True},
}


def slopes(heads: HeadSpec) -> np.ndarray:
    """ALiBi slopes [K, G] float32, distinct for every head."""
    heads_in_all = heads.num_kv_heads * heads.group
    return (2.0 ** -np.linspace(1, 8, heads_in_all)).astype(np.float32).reshape(heads.num_kv_heads, heads.group)


def dense_attention(q, keys, values, num_context, window=None, soft_cap=None, alibi_slopes=None):
    """One sequence: q [n, K, G, H], keys and values [L, K, H], of which the first num_context precede the queries."""
    scores = np.einsum("nkgh,lkh->kgnl", q, keys) * SCALE
    if soft_cap is not None:
        scores = soft_cap * np.tanh(scores / soft_cap)
    distance = np.arange(keys.shape[0])[None] - (num_context + np.arange(q.shape[0]))[:, None]
    if alibi_slopes is not None:
        scores += alibi_slopes[:, :, None, None] * distance
    visible = (distance <= 0) & (distance > -(window or np.inf))
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("kgnl,lkh->nkgh", weights / weights.sum(-1, keepdims=True), values)


def attention_case(
    heads: HeadSpec, batch: BatchSpec, rng: np.random.Generator, page_size: int = 16, unused_entries: int = 0, **scores
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """The arguments of paged_attention, and the right output in float64 without its 3 padding rows.

    Each sequence's pages are scattered over the pool, its unused slots are NaN; the last sequence is padding.
    unused_entries fills the page table past each sequence's pages; scores is what dense_attention takes besides.
    """
    pages_needed = [-(-total // page_size) for _, total in batch.sequences]
    num_pages = sum(pages_needed) + 3
    order = list(rng.permutation(np.arange(1, num_pages)))
    pool = np.full((num_pages, 2, page_size, heads.num_kv_heads, heads.head_dim), np.nan, np.float32)
    page_table = np.full((len(batch.sequences) + 1, max(pages_needed) + 2), unused_entries, np.int32)
    q_rows, expected = [], []
    for i, (queries, total) in enumerate(batch.sequences):
        keys, values = rng.standard_normal((2, total, heads.num_kv_heads, heads.head_dim)).astype(np.float32)
        pages = [order.pop() for _ in range(pages_needed[i])]
        page_table[i, : len(pages)] = pages
        for t in range(total):
            pool[pages[t // page_size], 0, t % page_size] = keys[t]
            pool[pages[t // page_size], 1, t % page_size] = values[t]
        q = rng.standard_normal((queries, heads.num_kv_heads, heads.group, heads.head_dim)).astype(np.float32)
        q_rows.append(q)
        expected.append(dense_attention(q.astype(np.float64), keys, values, total - queries, **scores))
    query_start_loc = np.cumsum([0] + [n for n, _ in batch.sequences] + [0]).astype(np.int32)
    seq_lens = np.array([total for _, total in batch.sequences] + [0], np.int32)
    padding = rng.standard_normal((3, *q_rows[0].shape[1:])).astype(np.float32)
    q = np.concatenate([*q_rows, padding])
    return (q, pool, page_table, query_start_loc, seq_lens), np.concatenate(expected)
