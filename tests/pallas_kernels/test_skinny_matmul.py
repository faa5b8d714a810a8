"""Products of few rows: the parts sum to the product, in the reference and in the Triton kernel."""

from collections.abc import Callable
from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.skinny_matmul import api, gated_matmul, skinny_matmul
from pallas_kernels.skinny_matmul.config import SkinnyConfig, gated_triton_config, skinny_config
from tests.pallas_kernels.interpreter import KernelCase, interpret_cases

# (rows, columns, summed axis, how it is cut): whole tiles, a part of a tile of columns, one row, several parts.
CASES = {
    "whole tiles": (16, 32, 64, SkinnyConfig(16, 32, 1, 2)),
    "columns end inside a tile": (5, 40, 64, SkinnyConfig(16, 32, 1, 2)),
    "one row": (1, 32, 96, SkinnyConfig(16, 32, 1, 2)),
    "three parts": (3, 24, 96, SkinnyConfig(16, 32, 1, 2, 3)),
}


# The same of gated products: columns of each matrix.
GATED_CASES = {
    "gated, whole tiles": (16, 32, 64, SkinnyConfig(16, 32, 1, 2)),
    "gated, columns end inside a tile": (5, 40, 64, SkinnyConfig(16, 32, 1, 2)),
    "gated, one row": (1, 32, 96, SkinnyConfig(16, 32, 1, 2)),
}


def arguments(rows: int, *weight: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    return {
        "x": rng.standard_normal((rows, weight[-1])).astype(np.float32),
        "weight": rng.standard_normal(weight).astype(np.float32),
    }


@pytest.fixture(scope="module")
def kernel_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[np.ndarray]]:
    cases = {
        name: KernelCase(arguments(*sizes), {"operation": "skinny_matmul", "config": asdict(config)})
        for name, (*sizes, config) in CASES.items()
    }
    cases |= {
        name: KernelCase(arguments(rows, 2, *sizes), {"operation": "gated_matmul", "config": asdict(config)})
        for name, (rows, *sizes, config) in GATED_CASES.items()
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


@pytest.mark.parametrize("case", GATED_CASES)
def test_a_gated_product_is_silu_of_one_product_times_the_other(
    case: str, kernel_results: dict[str, list[np.ndarray]]
) -> None:
    rows, *sizes, _ = GATED_CASES[case]
    args = arguments(rows, 2, *sizes)
    gate, up = (args["x"].astype(np.float64) @ matrix.astype(np.float64).T for matrix in args["weight"])
    wanted = gate / (1 + np.exp(-gate)) * up
    np.testing.assert_allclose(kernel_results[case][0], wanted, atol=1e-3)
    np.testing.assert_allclose(gated_matmul(*map(jnp.asarray, args.values())), wanted, atol=1e-3)


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


def test_small_gated_products_of_few_rows_are_left_to_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pallas_kernels.skinny_matmul.config.MIN_WEIGHTS", 1)
    monkeypatch.setattr(api, "triton_can_run", lambda: True)
    monkeypatch.setattr(api, "is_hopper", lambda: True)
    taken: list[SkinnyConfig] = []

    def kernel(x: jax.Array, weight: jax.Array, config: SkinnyConfig) -> jax.Array:
        taken.append(config)
        return jnp.zeros((x.shape[0], weight.shape[1]), x.dtype)

    monkeypatch.setattr("pallas_kernels.skinny_matmul.triton.gated_matmul_triton", kernel)
    x, weight = jnp.zeros((32, 256), jnp.bfloat16), jnp.zeros((2, 64, 256), jnp.bfloat16)
    assert gated_matmul(x, weight).shape == (32, 64)
    assert gated_matmul(x[:1], weight, implementation="triton").shape == (1, 64)
    assert taken == [gated_triton_config(32, 64, 256), gated_triton_config(1, 64, 256)]
    with pytest.raises(ValueError, match="mosaic_gpu does not take"):
        gated_matmul(x, weight, implementation="mosaic_gpu")


def test_where_xla_compiles_triton_all_products_of_few_rows_are_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By shapes alone: a 70B model's of one of four GPUs, of which Mosaic GPU's kernels else take both."""
    monkeypatch.setattr(api, "triton_can_run", lambda: True)
    monkeypatch.setattr(api, "is_hopper", lambda: True)
    monkeypatch.setattr("pallas_kernels.platform.triton_can_run", lambda: True)
    taken: list[str] = []

    def named(name: str, parts: int | None) -> Callable[..., jax.Array]:
        def kernel(x: jax.Array, weight: jax.Array, config: object) -> jax.Array:
            taken.append(name)
            shape = (x.shape[0], weight.shape[-2])
            return jnp.zeros(shape if parts is None else (parts, *shape), x.dtype)

        return kernel

    monkeypatch.setattr("pallas_kernels.skinny_matmul.triton.gated_matmul_triton", named("triton gated", None))
    monkeypatch.setattr("pallas_kernels.skinny_matmul.triton.skinny_matmul_triton", named("triton", 1))
    monkeypatch.setattr("pallas_kernels.skinny_matmul.mosaic_gpu.stream_gated_matmul", named("mosaic gated", None))
    monkeypatch.setattr("pallas_kernels.skinny_matmul.mosaic_gpu.stream_matmul", named("mosaic", 2))

    def multiply(num_rows: int) -> list[str]:
        taken.clear()
        abstract = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((num_rows, 8192), (2, 7168, 8192))]
        jax.eval_shape(lambda x, weight: (gated_matmul(x, weight), skinny_matmul(x, weight[0])), *abstract)
        return list(taken)

    assert multiply(16) == multiply(17) == ["mosaic gated", "mosaic"]
    monkeypatch.setattr("pallas_kernels.platform.TRITON_BY_XLA", True)
    assert multiply(16) == ["triton gated", "triton"]
    assert multiply(17) == ["mosaic gated", "mosaic"]
