"""What kernels of sums, norms and decoding attention ask for of the weight that is multiplied next, and that it changes
nothing else.

In Triton's interpreter, where asking for a line of 128 bytes is replaced by writing 1 to its first byte.
"""

from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import fetch_ahead
from pallas_kernels.fetch_ahead import LINE_BYTES, FetchConfig, fetch_config, fetched
from pallas_kernels.paged_attention.arg_specs import BATCHES, HEADS
from pallas_kernels.paged_attention.config import DecodeConfig
from tests.pallas_kernels.cases import SCALE, cached_attention_arguments
from tests.pallas_kernels.interpreter import KernelCase, interpret_cases

KERNELS = ("norm", "sum", "attention")
SIZE = 64
ROWS = 5
# 7 rows of 1,024 bytes in two parts, of each of which 256 bytes are asked for.
WEIGHT_ROWS, ROW_BYTES = 7, 1024
FETCHED = FetchConfig(rows=2 * WEIGHT_ROWS, stride=512, size=256)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(3)
    x, *deltas = rng.standard_normal((4, ROWS, SIZE)).astype(np.float32)
    arrays = {"x": x, "weight": rng.standard_normal(SIZE).astype(np.float32)}
    ahead = {"ahead": np.zeros((WEIGHT_ROWS, ROW_BYTES), np.uint8)}
    norm = arrays | {"delta": np.stack(deltas)}
    total = arrays | {"parts": np.stack(deltas[:2])[:, None]}
    heads, batch = HEADS["demo"], BATCHES["decode"]
    attended = cached_attention_arguments(heads, batch, rotated=64, decode_only=True)
    decode = {"decode": asdict(DecodeConfig(block_n=16, num_warps=1, num_stages=2, programs_per_sm=1))}
    of_attention = {"operation": "cached_attention", "scale": SCALE, "decode_only": True, **decode}
    of_attention |= {"window": None, "soft_cap": None}
    of_norm = {"operation": "residual_norm", "eps": 1e-5, "kind": "rms"}
    of_sum = {**of_norm, "operation": "all_reduce", "row_bytes": 4 * SIZE, "max_rows": 8}
    fetch = {"fetch": asdict(FETCHED)}
    cases = {
        "norm": KernelCase(norm, of_norm),
        "norm, fetching": KernelCase(norm | ahead, of_norm | fetch),
        "attention": KernelCase(attended, of_attention),
        "attention, fetching": KernelCase(attended | ahead, of_attention | fetch),
        "sum": KernelCase(total, of_sum),
        "sum, fetching": KernelCase(total | ahead, of_sum | fetch),
    }
    return interpret_cases(tmp_path_factory.mktemp("cases"), cases)


@pytest.mark.parametrize("kernel", KERNELS)
def test_fetching_leaves_the_results_as_they_are(kernel: str, results: dict[str, list[np.ndarray]]) -> None:
    *fetching, _ = results[f"{kernel}, fetching"]
    for result, wanted in zip(fetching, results[kernel], strict=True):
        np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_beginning_of_each_part_of_each_row_is_asked_for_and_nothing_else(
    kernel: str, results: dict[str, list[np.ndarray]]
) -> None:
    touched = results[f"{kernel}, fetching"][-1].reshape(2 * WEIGHT_ROWS, FETCHED.stride)
    asked = np.zeros(FETCHED.stride, bool)
    asked[: FETCHED.size : LINE_BYTES] = True
    assert (touched[:, asked] > 0).all()
    assert (touched[:, ~asked] == 0).all()


@pytest.fixture
def eight_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_ahead, "FETCH_AHEAD_BYTES", 8 << 20)
    monkeypatch.setattr(fetch_ahead, "is_hopper", lambda: True)


@pytest.mark.usefixtures("eight_mib")
def test_what_is_asked_for_is_whole_lines_of_about_the_bytes_that_were_set() -> None:
    # Llama-3-8B's queries, keys and values on one of four GPUs, in four parts; its gate and up.
    qkv, gate_up = fetch_config(1, 1536, 8192, 4), fetch_config(8, 28672, 8192, 1)
    assert (qkv, gate_up) == (FetchConfig(6144, 2048, 1280), FetchConfig(28672, 8192, 256))
    # Less than a line of each row: one line. More than there is: all of it.
    assert fetch_config(1, 128_256, 8192, 1) == FetchConfig(128_256, 8192, 128)
    assert fetch_config(1, 512, 8192, 2) == FetchConfig(1024, 4096, 4096)


@pytest.mark.usefixtures("eight_mib")
def test_prompts_and_rows_that_are_no_whole_lines_fetch_nothing() -> None:
    assert fetch_config(fetch_ahead.MAX_ROWS, 4096, 8192, 1) is not None
    assert fetch_config(fetch_ahead.MAX_ROWS + 1, 4096, 8192, 1) is None
    assert fetch_config(1, 4096, 8192 + 64, 1) is None


@pytest.mark.usefixtures("eight_mib")
def test_the_parts_are_those_of_the_product_that_comes_next() -> None:
    weight = jax.ShapeDtypeStruct((2, 6, 128, 4096), jnp.bfloat16)
    shapes = []

    def step(weight: jax.Array) -> jax.Array:
        for one_part in (True, False):
            found = fetched(8, weight, one_part=one_part)
            assert found is not None
            shapes.append((found.weight.shape, found.config.rows))
        return weight

    jax.eval_shape(step, weight)
    jax.eval_shape(step, jax.ShapeDtypeStruct((8192, 7168), jnp.bfloat16))
    # Of 1,536 columns some rows are multiplied in four parts; of 8,192 in one if the reader wants that, else in two.
    assert shapes == [((1536, 4096), 4 * 1536)] * 2 + [((8192, 7168), 8192), ((8192, 7168), 2 * 8192)]


def test_nothing_is_fetched_unless_it_is_asked_for() -> None:
    assert fetch_ahead.FETCH_AHEAD_BYTES == 0
    assert fetch_config(1, 4096, 8192, 1) is None
    assert fetched(1, jnp.zeros((4, 64))) is None
