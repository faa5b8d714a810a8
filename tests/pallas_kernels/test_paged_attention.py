"""The reference against dense attention written out one sequence at a time, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.kv_cache_update import kv_cache_update
from pallas_kernels.paged_attention import paged_attention
from pallas_kernels.paged_attention.arg_specs import BATCHES, HEADS, BatchSpec, HeadSpec

PAGE_SIZE = 16
SCALE = 0.3


def _dense(q, keys, values, num_context):
    """One sequence: q [n, K, G, H], keys and values [L, K, H], of which the first num_context precede the queries."""
    scores = np.einsum("nkgh,lkh->kgnl", q, keys) * SCALE
    visible = np.arange(keys.shape[0])[None] <= num_context + np.arange(q.shape[0])[:, None]
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("kgnl,lkh->nkgh", weights / weights.sum(-1, keepdims=True), values)


def _case(heads: HeadSpec, batch: BatchSpec, rng: np.random.Generator):
    """A pool with each sequence's pages scattered over it, unused slots poisoned with NaN."""
    pages_needed = [-(-total // PAGE_SIZE) for _, total in batch.sequences]
    num_pages = sum(pages_needed) + 3
    order = list(rng.permutation(np.arange(1, num_pages)))
    pool = np.full((num_pages, 2, PAGE_SIZE, heads.num_kv_heads, heads.head_dim), np.nan, np.float32)
    page_table = np.zeros((len(batch.sequences) + 1, max(pages_needed) + 2), np.int32)
    q_rows, expected = [], []
    for i, (queries, total) in enumerate(batch.sequences):
        keys, values = rng.standard_normal((2, total, heads.num_kv_heads, heads.head_dim)).astype(np.float32)
        pages = [order.pop() for _ in range(pages_needed[i])]
        page_table[i, : len(pages)] = pages
        for t in range(total):
            pool[pages[t // PAGE_SIZE], 0, t % PAGE_SIZE] = keys[t]
            pool[pages[t // PAGE_SIZE], 1, t % PAGE_SIZE] = values[t]
        q = rng.standard_normal((queries, heads.num_kv_heads, heads.group, heads.head_dim)).astype(np.float32)
        q_rows.append(q)
        expected.append(_dense(q.astype(np.float64), keys, values, total - queries))
    query_start_loc = np.cumsum([0] + [n for n, _ in batch.sequences] + [0]).astype(np.int32)
    seq_lens = np.array([total for _, total in batch.sequences] + [0], np.int32)
    padding = rng.standard_normal((3, *q_rows[0].shape[1:])).astype(np.float32)
    q = np.concatenate([*q_rows, padding])
    return (q, pool, page_table, query_start_loc, seq_lens), np.concatenate(expected)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("heads", ["demo", "smollm-135m", "multi-query"])
def test_reference_equals_dense_attention_and_reads_no_slot_past_a_sequence(heads: str, batch: str) -> None:
    args, expected = _case(HEADS[heads], BATCHES[batch], np.random.default_rng(0))
    out = np.asarray(jax.jit(lambda *a: paged_attention(*a, scale=SCALE))(*args))
    np.testing.assert_allclose(out[: len(expected)], expected, atol=2e-5)
    assert np.isfinite(out[len(expected) :]).all()


def test_kv_cache_update_writes_the_slots_given_and_drops_padding() -> None:
    rng = np.random.default_rng(1)
    pool = rng.standard_normal((4, 2, 3, 2, 5)).astype(np.float32)
    k, v = rng.standard_normal((2, 4, 2, 5)).astype(np.float32)
    slots = np.array([7, 2, 12, 13], np.int32)  # 12 and 13 lie past the pool
    out = np.asarray(jax.jit(kv_cache_update)(pool, k, v, jnp.asarray(slots)))
    expected = pool.copy()
    expected[2, 0, 1], expected[2, 1, 1] = k[0], v[0]
    expected[0, 0, 2], expected[0, 1, 2] = k[1], v[1]
    np.testing.assert_array_equal(out, expected)


def test_shapes_that_contradict_each_other_are_refused() -> None:
    args, _ = _case(HEADS["demo"], BATCHES["decode"], np.random.default_rng(0))
    q, pool, page_table, query_start_loc, seq_lens = args
    with pytest.raises(ValueError, match="kv heads or head_dim"):
        paged_attention(q[:, :1], pool, page_table, query_start_loc, seq_lens, scale=SCALE)
    with pytest.raises(ValueError, match="one entry more"):
        paged_attention(q, pool, page_table, query_start_loc[1:], seq_lens, scale=SCALE)
    with pytest.raises(ValueError, match="do not fit"):
        kv_cache_update(pool, q[:, :, 0, :4], q[:, :, 0, :4], seq_lens)
