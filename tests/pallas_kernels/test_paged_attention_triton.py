"""The Triton kernels, interpreted on the CPU in float32, against attention written out in float64."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from pallas_kernels.paged_attention.arg_specs import BATCHES, HEADS, BatchSpec
from pallas_kernels.paged_attention.config import DecodeConfig, PrefillConfig
from tests.pallas_kernels.cases import SCALE, attention_case

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
        cases[f"{heads} merged by a second kernel"] = (heads, BATCHES["mixed"], {"merge_in_tail": False})
    for page_size in (8, 24, 256):
        cases[f"pages of {page_size}"] = ("demo", BATCHES["mixed"], {"page_size": page_size})
    for decode_only in (False, True):
        name = f"one long among short, decode_only={decode_only}"
        batch = BatchSpec(((1, 3), (1, 900), (1, 16), (1, 17), (1, 1)))
        cases[name] = ("demo", batch, {"decode_only": decode_only})
    return cases


CASES = _cases()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Case -> (what the kernels computed, what is right)."""
    directory: Path = tmp_path_factory.mktemp("cases")
    expected = {}
    for name, (heads, batch, special) in CASES.items():
        # An entry past a sequence's pages that is followed reads memory far outside the pool.
        # Kv heads differ only in where they lie, and the interpreter is slow: two tell as much as 32.
        args, expected[name] = attention_case(
            replace(HEADS[heads], num_kv_heads=min(HEADS[heads].num_kv_heads, 2)),
            batch,
            np.random.default_rng(0),
            page_size=int(special.get("page_size", 16)),
            unused_entries=PAST_THE_POOL,
        )
        decode = asdict(DECODE) | {"merge_in_tail": special.get("merge_in_tail", True)}
        options = {"scale": SCALE, "decode_only": special.get("decode_only", False)}
        options |= {"decode": decode, "prefill": asdict(PREFILL)}
        arrays = dict(zip(ARGUMENTS, args, strict=True))
        np.savez(directory / f"{name}.npz", options=json.dumps(options), **arrays)
    command = [sys.executable, "-m", "tests.pallas_kernels.interpreted_triton", str(directory)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    return {name: (np.load(directory / f"{name}.npy"), right) for name, right in expected.items()}


@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_dense_attention_and_leave_padding_rows_finite(
    case: str, outputs: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    out, expected = outputs[case]
    np.testing.assert_allclose(out[: len(expected)], expected, atol=2e-5)
    assert np.isfinite(out[len(expected) :]).all()
