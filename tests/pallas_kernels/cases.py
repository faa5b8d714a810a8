"""Ragged batches over a paged pool, with attention written out one sequence at a time."""

import numpy as np

from pallas_kernels.paged_attention.arg_specs import BatchSpec, HeadSpec

SCALE = 0.3


def dense_attention(q, keys, values, num_context):
    """One sequence: q [n, K, G, H], keys and values [L, K, H], of which the first num_context precede the queries."""
    scores = np.einsum("nkgh,lkh->kgnl", q, keys) * SCALE
    visible = np.arange(keys.shape[0])[None] <= num_context + np.arange(q.shape[0])[:, None]
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("kgnl,lkh->nkgh", weights / weights.sum(-1, keepdims=True), values)


def attention_case(
    heads: HeadSpec, batch: BatchSpec, rng: np.random.Generator, page_size: int = 16, unused_entries: int = 0
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """The arguments of paged_attention, and the right output in float64 without its 3 padding rows.

    Each sequence's pages are scattered over the pool, its unused slots are NaN; the last sequence is padding.
    unused_entries fills the page table past each sequence's pages.
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
        expected.append(dense_attention(q.astype(np.float64), keys, values, total - queries))
    query_start_loc = np.cumsum([0] + [n for n, _ in batch.sequences] + [0]).astype(np.int32)
    seq_lens = np.array([total for _, total in batch.sequences] + [0], np.int32)
    padding = rng.standard_normal((3, *q_rows[0].shape[1:])).astype(np.float32)
    q = np.concatenate([*q_rows, padding])
    return (q, pool, page_table, query_start_loc, seq_lens), np.concatenate(expected)
