"""The Triton kernels, interpreted on the CPU in float32, against attention written out in float64."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from pallas_kernels.paged_attention.arg_specs import BATCHES, HEADS, BatchSpec
from pallas_kernels.paged_attention.config import DecodeConfig, PrefillConfig
from tests.pallas_kernels.cases import SCALE, SCORES, attention_case, slopes
from tests.pallas_kernels.interpreter import KernelCase, interpret_cases

ARGUMENTS = ("q", "kv_pages", "page_table", "query_start_loc", "seq_lens")
# Small blocks, so that short sequences have several of them, and few enough chunks for some to have more than one.
DECODE = DecodeConfig(block_n=16, num_warps=4, num_stages=2, programs_per_sm=1)
PREFILL = PrefillConfig(block_m=32, block_n=32, num_warps=4, num_stages=2)
PAST_THE_POOL = 2**28


def _cases() -> dict[str, tuple[str, BatchSpec, dict[str, object]]]:
    """Name -> (heads, batch, what differs from the usual)."""
    cases = {f"{h} {b}": (h, BATCHES[b], {}) for h in HEADS for b in BATCHES}
    for heads in ("demo", "llama-3-8b", "gemma-2-9b"):
        cases[f"{heads} decode only"] = (heads, BATCHES["decode"], {"decode_only": True})
    for page_size in (8, 24, 256):
        cases[f"pages of {page_size}"] = ("demo", BATCHES["mixed"], {"page_size": page_size})
    for decode_only in (False, True):
        name = f"one long among short, decode_only={decode_only}"
        batch = BatchSpec(((1, 3), (1, 900), (1, 16), (1, 17), (1, 1)))
        cases[name] = ("demo", batch, {"decode_only": decode_only})
    for name, scores in SCORES.items():
        cases[f"{name} mixed"] = ("demo", BATCHES["mixed"], {"scores": scores})
        cases[f"{name} chunk"] = ("demo", BATCHES["chunk-after-context"], {"scores": scores})
    return cases


CASES = _cases()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Case -> (what the kernels computed, what is right)."""
    cases, expected = {}, {}
    for name, (heads, batch, special) in CASES.items():
        # Kv heads differ only in where they lie, and the interpreter is slow: two tell as much as 32.
        spec = replace(HEADS[heads], num_kv_heads=min(HEADS[heads].num_kv_heads, 2))
        scores = dict(special.get("scores", {}))
        if scores.pop("alibi", False):
            scores["alibi_slopes"] = slopes(spec)
        # An entry past a sequence's pages that is followed reads memory far outside the pool.
        args, expected[name] = attention_case(
            spec,
            batch,
            np.random.default_rng(0),
            page_size=int(special.get("page_size", 16)),
            unused_entries=PAST_THE_POOL,
            **scores,
        )
        arrays = dict(zip(ARGUMENTS, args, strict=True))
        if "alibi_slopes" in scores:
            arrays["alibi_slopes"] = scores.pop("alibi_slopes")
        options = {"operation": "paged_attention", "scale": SCALE, "decode_only": special.get("decode_only", False)}
        options["decode"] = asdict(DECODE)
        cases[name] = KernelCase(arrays, options | {"prefill": asdict(PREFILL)} | scores)
    results = interpret_cases(tmp_path_factory.mktemp("cases"), cases)
    return {name: (results[name][0], right) for name, right in expected.items()}


@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_dense_attention_and_leave_padding_rows_finite(
    case: str, outputs: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    out, expected = outputs[case]
    np.testing.assert_allclose(out[: len(expected)], expected, atol=2e-5)
    assert np.isfinite(out[len(expected) :]).all()
