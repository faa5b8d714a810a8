"""Rotating, writing and attending in one: the reference against its parts, the Triton kernels against the reference."""

from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.cached_attention import cached_attention, rotate
from pallas_kernels.kv_cache_update import kv_cache_update
from pallas_kernels.paged_attention import paged_attention
from pallas_kernels.paged_attention.arg_specs import BATCHES, HEADS, BatchSpec, HeadSpec
from pallas_kernels.paged_attention.config import DecodeConfig
from tests.pallas_kernels.cases import SCALE, SCORES, attention_case, slopes
from tests.pallas_kernels.interpreter import KernelCase, interpret_cases

NAMES = ("qkv", "cos_sin", "kv_pages", "slot_mapping", "page_table", "query_start_loc", "seq_lens")
OTHERS = 7.5
DECODE = DecodeConfig(block_n=16, num_warps=4, num_stages=2, programs_per_sm=1)
# Of which the sum is rounded to the pool's dtype.
ROUNDED = "in three parts, decode, float16"
ONE_LONG = BatchSpec(((1, 3), (1, 900), (1, 16), (1, 17), (1, 1)))


def arguments(heads: HeadSpec, batch: BatchSpec, *, rotated: int, decode_only: bool) -> dict[str, np.ndarray]:
    """What cached_attention takes; the slots that the step writes hold NaN before."""
    rng = np.random.default_rng(3)
    (q, pool, page_table, query_start_loc, seq_lens), _ = attention_case(heads, batch, rng)
    page_size, num_slots = pool.shape[2], pool.shape[0] * pool.shape[2]
    num_tokens = len(seq_lens) if decode_only else len(q)
    slot_mapping = num_slots + np.arange(num_tokens, dtype=np.int32)
    for row, (first, total) in enumerate(zip(query_start_loc, seq_lens, strict=False)):
        queries = query_start_loc[row + 1] - first
        positions = np.arange(total - queries, total)
        slots = page_table[row, positions // page_size] * page_size + positions % page_size
        slot_mapping[first : first + queries] = slots
        pool[slots // page_size, :, slots % page_size] = np.nan
    shape = (num_tokens, heads.num_kv_heads, heads.group + 2, heads.head_dim)
    angles = rng.uniform(0, 2 * np.pi, (num_tokens, rotated // 2))
    values = (
        rng.standard_normal(shape).astype(np.float32),
        np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32),
        pool,
        slot_mapping,
        page_table,
        query_start_loc,
        seq_lens,
    )
    return {name: value for name, value in zip(NAMES, values, strict=True) if rotated or name != "cos_sin"}


def among_other_layers(args: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray, slice]:
    """The arguments with the pool as the second of three layers of one array, the others full of OTHERS; the page that
    it begins at; and its rows. Padding's slots lie past the whole array."""
    pool, slots = args["kv_pages"], args["slot_mapping"]
    num_pages, num_slots = len(pool), len(pool) * pool.shape[2]
    others = np.full_like(pool, OTHERS)
    several = args | {
        "kv_pages": np.concatenate([others, pool, others]),
        "slot_mapping": np.where(slots < num_slots, slots, slots + 2 * num_slots),
    }
    return several, np.array([num_pages], np.int32), slice(num_pages, 2 * num_pages)


def in_parts(qkv: np.ndarray, num_parts: int) -> np.ndarray:
    """[parts, ...] float32 that add up to qkv."""
    parts = np.random.default_rng(5).standard_normal((num_parts - 1, *qkv.shape)).astype(np.float32)
    return np.concatenate([parts, (qkv - parts.sum(0))[None]])


def test_the_reference_is_rotation_then_cache_update_then_attention() -> None:
    args = arguments(HEADS["demo"], BATCHES["mixed"], rotated=64, decode_only=False)
    out, pool = jax.jit(lambda *a: cached_attention(*a, scale=SCALE))(*args.values())
    qkv, cos_sin, kv_pages, slot_mapping, *metadata = args.values()
    q, k, v = rotate(qkv[:, :, :-2], cos_sin), rotate(qkv[:, :, -2], cos_sin), qkv[:, :, -1]
    written = kv_cache_update(jnp.asarray(kv_pages), k, v, slot_mapping)
    np.testing.assert_allclose(pool, written, atol=1e-6)
    np.testing.assert_allclose(out, paged_attention(q, written, *metadata, scale=SCALE), atol=1e-6)


@pytest.mark.parametrize("batch", ["decode", "mixed"])
def test_a_layer_whose_pages_begin_elsewhere_is_computed_as_alone_and_leaves_other_layers_untouched(batch: str) -> None:
    args = arguments(HEADS["demo"], BATCHES[batch], rotated=64, decode_only=False)
    out, alone = cached_attention(*map(jnp.asarray, args.values()), scale=SCALE)
    several, first_page, own = among_other_layers(args)
    *_, written = result = cached_attention(*map(jnp.asarray, several.values()), first_page=first_page, scale=SCALE)
    np.testing.assert_array_equal(result[0], out)
    np.testing.assert_array_equal(written[own], alone)
    assert (np.delete(written, own, axis=0) == OTHERS).all()


def test_rotation_turns_pairs_by_their_angle_and_keeps_what_lies_past_the_rotated_part() -> None:
    x = np.array([[[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]], np.float32)
    cos_sin = np.array([[[0.0, 1.0], [1.0, 0.0]]], np.float32)  # a quarter turn for the first pair, none for the second
    np.testing.assert_allclose(rotate(jnp.asarray(x), cos_sin), [[[-3.0, 2.0, 1.0, 4.0, 5.0, 6.0]]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": np.zeros((7, 2, 2, 64), np.float32)}, r"must be \[T, K, G \+ 2, H\]"),
        ({"qkv": np.zeros((7, 2, 64), np.float32)}, r"or \[parts, T, K, G \+ 2, H\]"),
        ({"slot_mapping": np.zeros(3, np.int32)}, "one slot a row"),
        ({"cos_sin": np.zeros((7, 2, 33), np.float32)}, "R at most H"),
        ({"first_page": np.zeros((), np.int32)}, r"first_page must be \[1\] int32"),
    ],
)
def test_shapes_that_contradict_each_other_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    args = arguments(HEADS["demo"], BATCHES["decode"], rotated=64, decode_only=False) | change
    with pytest.raises(ValueError, match=message):
        cached_attention(**args, scale=SCALE)


def test_decode_only_with_more_rows_than_sequences_is_refused() -> None:
    args = arguments(HEADS["demo"], BATCHES["mixed"], rotated=64, decode_only=False)
    with pytest.raises(ValueError, match="one row a sequence"):
        cached_attention(*args.values(), scale=SCALE, decode_only=True)


def _cases() -> dict[str, tuple[str, BatchSpec, dict[str, object]]]:
    """Name -> (heads, batch, what differs from whole rotation and plain scores)."""
    decode = {"decode_only": True}
    cases = {f"{heads} decode": (heads, BATCHES["decode"], decode) for heads in HEADS}
    cases |= {f"{heads} mixed": (heads, BATCHES["mixed"], {}) for heads in ("demo", "falcon-7b", "phi-3-mini")}
    cases["one long among short"] = ("demo", ONE_LONG, decode)
    for rotated in (0, 16):
        cases[f"{rotated} rotated, decode"] = ("demo", ONE_LONG, {**decode, "rotated": rotated})
        cases[f"{rotated} rotated, mixed"] = ("demo", BATCHES["mixed"], {"rotated": rotated})
    cases["second of three layers, decode"] = ("demo", ONE_LONG, {**decode, "layers": True})
    cases["second of three layers, mixed"] = ("demo", BATCHES["mixed"], {"layers": True})
    cases["in three parts, decode"] = ("demo", ONE_LONG, {**decode, "parts": 3})
    cases["in two parts, mixed"] = ("demo", BATCHES["mixed"], {"parts": 2})
    cases[ROUNDED] = ("demo", ONE_LONG, {**decode, "parts": 3, "dtype": "float16"})
    for name, scores in SCORES.items():
        cases[f"{name}, decode"] = ("demo", ONE_LONG, {**decode, "scores": scores})
    cases["all three, mixed"] = ("demo", BATCHES["mixed"], {"scores": SCORES["all three"]})
    return cases


CASES = _cases()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[np.ndarray], list[np.ndarray], int]]:
    """Case -> (what the kernels computed, what the reference did, rows that are not padding)."""
    cases, expected = {}, {}
    for name, (heads, batch, special) in CASES.items():
        spec = replace(HEADS[heads], num_kv_heads=min(HEADS[heads].num_kv_heads, 2))
        decode_only = bool(special.get("decode_only", False))
        rotated = int(special.get("rotated", spec.head_dim))
        args = arguments(spec, batch, rotated=rotated, decode_only=decode_only)
        scores = dict(special.get("scores", {}))
        extra = {"alibi_slopes": slopes(spec)} if scores.pop("alibi", False) else {}
        if special.get("layers"):
            args, extra["first_page"], _ = among_other_layers(args)
        if parts := special.get("parts"):
            args["qkv"] = in_parts(args["qkv"], int(parts))
        if dtype := special.get("dtype"):
            args["kv_pages"] = args["kv_pages"].astype(str(dtype))
            scores["dtype"] = dtype
        right = cached_attention(
            *(jnp.asarray(args[n]) if n in args else None for n in NAMES), scale=SCALE, **scores, **extra
        )
        expected[name] = ([np.asarray(a) for a in right], sum(n for n, _ in batch.sequences))
        options = {"operation": "cached_attention", "scale": SCALE, "decode_only": decode_only}
        plain = {"window": None, "soft_cap": None}
        cases[name] = KernelCase({**args, **extra}, {**options, **plain, **scores, "decode": asdict(DECODE)})
    results = interpret_cases(tmp_path_factory.mktemp("cases"), cases)
    return {name: (results[name], *right) for name, right in expected.items()}


@pytest.mark.parametrize("case", CASES)
def test_kernels_attend_as_the_reference_and_leave_padding_rows_finite(
    case: str, outputs: dict[str, tuple[list[np.ndarray], list[np.ndarray], int]]
) -> None:
    (out, _), (right, _), num_rows = outputs[case]
    assert out.dtype == right.dtype == (np.float16 if case == ROUNDED else np.float32)
    np.testing.assert_allclose(out[:num_rows], right[:num_rows], atol=2e-3 if case == ROUNDED else 2e-5)
    assert np.isfinite(out[num_rows:]).all()


@pytest.mark.parametrize("case", CASES)
def test_kernels_write_exactly_the_slots_that_the_reference_writes(
    case: str, outputs: dict[str, tuple[list[np.ndarray], list[np.ndarray], int]]
) -> None:
    (_, pool), (_, right), _ = outputs[case]
    np.testing.assert_allclose(pool, right, atol=2e-3 if case == ROUNDED else 1e-6)
    # Values are not rotated.
    np.testing.assert_array_equal(pool[:, 1], right[:, 1])
