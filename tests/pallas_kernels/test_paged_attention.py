"""The reference against dense attention written out one sequence at a time, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.kv_cache_update import kv_cache_update
from pallas_kernels.paged_attention import paged_attention
from pallas_kernels.paged_attention.arg_specs import BATCHES, HEADS
from tests.pallas_kernels.cases import SCALE, SCORES, attention_case, slopes


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("heads", ["demo", "smollm-135m", "multi-query"])
def test_reference_equals_dense_attention_and_reads_no_slot_past_a_sequence(heads: str, batch: str) -> None:
    args, expected = attention_case(HEADS[heads], BATCHES[batch], np.random.default_rng(0))
    out = np.asarray(jax.jit(lambda *a: paged_attention(*a, scale=SCALE))(*args))
    np.testing.assert_allclose(out[: len(expected)], expected, atol=2e-5)
    assert np.isfinite(out[len(expected) :]).all()


@pytest.mark.parametrize("batch", ["decode", "mixed"])
@pytest.mark.parametrize("scores", SCORES)
def test_reference_narrows_caps_and_biases_scores_as_dense_attention_does(scores: str, batch: str) -> None:
    heads, options = HEADS["smollm-135m"], dict(SCORES[scores])
    if options.pop("alibi", False):
        options["alibi_slopes"] = slopes(heads)
    args, expected = attention_case(heads, BATCHES[batch], np.random.default_rng(0), **options)
    out = np.asarray(jax.jit(lambda *a: paged_attention(*a, scale=SCALE, **options))(*args))
    np.testing.assert_allclose(out[: len(expected)], expected, atol=2e-5)


def test_a_window_or_cap_of_zero_and_slopes_of_another_shape_are_refused() -> None:
    args, _ = attention_case(HEADS["demo"], BATCHES["decode"], np.random.default_rng(0))
    for option in ({"window": 0}, {"soft_cap": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} must be above 0"):
            paged_attention(*args, scale=SCALE, **option)
    with pytest.raises(ValueError, match="alibi_slopes must be"):
        paged_attention(*args, scale=SCALE, alibi_slopes=jnp.ones((2, 3)))


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


def test_a_scale_of_zero_and_an_unknown_implementation_are_refused() -> None:
    args, _ = attention_case(HEADS["demo"], BATCHES["decode"], np.random.default_rng(0))
    with pytest.raises(ValueError, match="above 0"):
        paged_attention(*args, scale=0.0)
    with pytest.raises(ValueError, match="unknown implementation 'cudnn'"):
        paged_attention(*args, scale=SCALE, implementation="cudnn")


def test_triton_refuses_a_pool_of_another_dtype_than_the_queries() -> None:
    (q, *rest), _ = attention_case(HEADS["demo"], BATCHES["decode"], np.random.default_rng(0))
    with pytest.raises(ValueError, match="one dtype"):
        paged_attention(q.astype(np.float16), *rest, scale=SCALE, implementation="triton")


def test_shapes_that_contradict_each_other_are_refused() -> None:
    args, _ = attention_case(HEADS["demo"], BATCHES["decode"], np.random.default_rng(0))
    q, pool, page_table, query_start_loc, seq_lens = args
    with pytest.raises(ValueError, match="kv heads or head_dim"):
        paged_attention(q[:, :1], pool, page_table, query_start_loc, seq_lens, scale=SCALE)
    with pytest.raises(ValueError, match="one entry more"):
        paged_attention(q, pool, page_table, query_start_loc[1:], seq_lens, scale=SCALE)
    with pytest.raises(ValueError, match="do not fit"):
        kv_cache_update(pool, q[:, :, 0, :4], q[:, :, 0, :4], seq_lens)
