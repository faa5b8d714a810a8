"""Products of few rows: the parts sum to the product, in the reference and in the Triton kernel."""

from dataclasses import asdict

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.skinny_matmul import skinny_matmul
from pallas_kernels.skinny_matmul.config import SkinnyConfig, skinny_config
from tests.pallas_kernels.interpreter import KernelCase, interpret_cases

# (rows, columns, summed axis, how it is cut): whole tiles, a part of a tile of columns, one row, several parts.
CASES = {
    "whole tiles": (16, 32, 64, SkinnyConfig(16, 32, 1, 2)),
    "columns end inside a tile": (5, 40, 64, SkinnyConfig(16, 32, 1, 2)),
    "one row": (1, 32, 96, SkinnyConfig(16, 32, 1, 2)),
    "three parts": (3, 24, 96, SkinnyConfig(16, 32, 1, 2, 3)),
}


def arguments(rows: int, columns: int, size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    return {
        "x": rng.standard_normal((rows, size)).astype(np.float32),
        "weight": rng.standard_normal((columns, size)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def kernel_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[np.ndarray]]:
    cases = {
        name: KernelCase(arguments(*sizes), {"operation": "skinny_matmul", "config": asdict(config)})
        for name, (*sizes, config) in CASES.items()
    }
    return interpret_cases(tmp_path_factory.mktemp("cases"), cases)


@pytest.mark.parametrize("case", CASES)
def test_the_parts_sum_to_the_product(case: str, kernel_results: dict[str, list[np.ndarray]]) -> None:
    *sizes, config = CASES[case]
    args = arguments(*sizes)
    product = args["x"].astype(np.float64) @ args["weight"].astype(np.float64).T
    (parts,) = kernel_results[case]
    assert parts.shape == (config.parts, *product.shape)
    np.testing.assert_allclose(parts.sum(0), product, atol=1e-4)
    reference = skinny_matmul(*map(jnp.asarray, args.values()))
    assert reference.shape == (1, *product.shape)
    np.testing.assert_allclose(reference[0], product, atol=1e-4)


def test_each_part_is_the_product_over_its_own_stretch_of_the_summed_axis(
    kernel_results: dict[str, list[np.ndarray]],
) -> None:
    args = arguments(3, 24, 96)
    for i, part in enumerate(kernel_results["three parts"][0]):
        stretch = slice(32 * i, 32 * (i + 1))
        np.testing.assert_allclose(part, args["x"][:, stretch] @ args["weight"][:, stretch].T, atol=1e-4)


def test_a_cut_always_fits_the_summed_axis_and_many_rows_are_left_to_xla() -> None:
    for rows in (1, 8, 16, 17, 32):
        for columns, size in ((6144, 4096), (4096, 4096), (4096, 14336), (2048, 8192), (3072, 3000), (5120, 13824)):
            config = skinny_config(rows, columns, size)
            assert config is None or size % (config.parts * config.block_d) == 0
        assert skinny_config(rows, 4096, 4096) is not None
    assert skinny_config(33, 4096, 4096) is None
    assert skinny_config(1, 64, 64) is None


def test_shapes_and_dtypes_that_do_not_fit_are_refused() -> None:
    x, weight = (jnp.asarray(a) for a in arguments(4, 8, 16).values())
    with pytest.raises(ValueError, match="of one dtype"):
        skinny_matmul(x, weight[:, :8])
    with pytest.raises(ValueError, match="of one dtype"):
        skinny_matmul(x, weight.astype(jnp.bfloat16))
    with pytest.raises(ValueError, match="does not take"):
        skinny_matmul(x, weight, implementation="triton")
