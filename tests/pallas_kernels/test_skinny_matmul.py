"""Products of few rows: the parts sum to the product, in the reference and in the Triton kernel."""

import itertools
from collections.abc import Callable
from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike

from pallas_kernels.skinny_matmul import api, gated_matmul, scores_matmul, skinny_matmul
from pallas_kernels.skinny_matmul.config import (
    MIN_PROGRAMS,
    SHARED_BYTES,
    SkinnyConfig,
    gated_config,
    scores_config,
    skinny_config,
)
from tests.pallas_kernels.interpreter import KernelCase, interpret_cases
from tests.references.blocks import silu

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


# (columns, summed axis) of qkv, out and down.
PRODUCTS = {
    "Llama-3-8B": ((6144, 4096), (4096, 4096), (4096, 14336)),
    "Llama-3-8B, one of two GPUs": ((3072, 4096), (4096, 2048), (4096, 7168)),
    "Llama-3-8B, one of four": ((1536, 4096), (4096, 1024), (4096, 3584)),
    "Llama-3-70B, one of four": ((2560, 8192), (8192, 2048), (8192, 7168)),
    "Llama-2-7B": ((12288, 4096), (4096, 4096), (4096, 11008)),
    "Baichuan2-13B": ((15360, 5120), (5120, 5120), (5120, 13696)),
}
GATED = ((14336, 4096), (7168, 4096), (3584, 4096), (7168, 8192), (11008, 4096), (13696, 5120))


def arguments(rows: int, *weight: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    return {
        "x": rng.standard_normal((rows, weight[-1])).astype(dtype),
        "weight": rng.standard_normal(weight).astype(dtype),
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
    options = {"operation": "skinny_matmul", "config": asdict(SkinnyConfig(32, 32, 1, 2)), "dtype": "float32"}
    cases["scores"] = KernelCase(arguments(5, 70, 64, dtype="float16"), options)
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
    wanted = silu(gate) * up
    np.testing.assert_allclose(kernel_results[case][0], wanted, atol=1e-3)
    np.testing.assert_allclose(gated_matmul(*map(jnp.asarray, args.values())), wanted, atol=1e-3)


def test_each_part_is_the_product_over_its_own_stretch_of_the_summed_axis(
    kernel_results: dict[str, list[np.ndarray]],
) -> None:
    args = arguments(3, 24, 96)
    for i, part in enumerate(kernel_results["three parts"][0]):
        stretch = slice(32 * i, 32 * (i + 1))
        np.testing.assert_allclose(part, args["x"][:, stretch] @ args["weight"][:, stretch].T, atol=1e-4)


def test_scores_of_16_bit_values_are_float32(kernel_results: dict[str, list[np.ndarray]]) -> None:
    args = arguments(5, 70, 64, dtype="float16")
    wanted = args["x"].astype(np.float64) @ args["weight"].astype(np.float64).T
    scores = kernel_results["scores"][0][0]
    assert scores.shape == (5, 70) and scores.dtype == np.float32
    # Rounded to 16 bits they would be a thousandth off.
    np.testing.assert_allclose(scores, wanted, atol=1e-4)
    reference = scores_matmul(*map(jnp.asarray, args.values()))
    assert reference.dtype == jnp.float32
    np.testing.assert_allclose(reference, wanted, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 8, 16, 32, 64])
def test_products_of_few_rows_are_cut_to_fill_the_card_and_fit_it(rows: int) -> None:
    for columns, size in itertools.chain(*PRODUCTS.values()):
        config = skinny_config(rows, columns, size)
        assert config is not None and size % (config.parts * config.block_d) == 0
        assert config.parts * columns >= 64 * MIN_PROGRAMS
        assert config.shared_bytes(rows) <= SHARED_BYTES
    for columns, size in GATED:
        gated = gated_config(rows, columns, size)
        assert gated is not None and gated.parts == 1 and gated.shared_bytes(rows, 2) <= SHARED_BYTES
    for columns, size in ((128_256, 4096), (32_064, 8192), (256_000, 3584), (50_257, 4096)):
        scores = scores_config(rows, columns, size)
        assert scores is not None and scores.parts == 1 and scores.shared_bytes(rows) <= SHARED_BYTES


def test_small_and_odd_products_are_cut_as_they_can_be_or_left_to_xla() -> None:
    assert skinny_config(65, 4096, 4096) is gated_config(65, 4096, 4096) is scores_config(65, 4096, 4096) is None
    assert skinny_config(1, 64, 64) is gated_config(1, 64, 64) is scores_config(1, 64, 64) is None
    # 2,752 values are no even number of blocks of 128, nor of two parts of 64.
    assert skinny_config(1, 4096, 2752) == SkinnyConfig(64, 64, 4, 8, 1)
    assert skinny_config(1, 4096, 3000) is gated_config(1, 4096, 3000) is scores_config(1, 4096, 3000) is None
    assert gated_config(1, 4096, 4032) == SkinnyConfig(64, 64, 4, 6)


def test_arguments_that_do_not_fit_are_refused() -> None:
    x, weight = (jnp.asarray(a) for a in arguments(4, 8, 16).values())
    for multiply in (skinny_matmul, scores_matmul):
        with pytest.raises(ValueError, match="of one dtype"):
            multiply(x, weight[:, :8])
        with pytest.raises(ValueError, match="of one dtype"):
            multiply(x, weight.astype(jnp.bfloat16))
        with pytest.raises(ValueError, match=r"triton does not take .* leave implementation None"):
            multiply(x, weight, implementation="triton")
        with pytest.raises(ValueError, match="unknown implementation 'mosaic_gpu'; there are: reference, triton"):
            multiply(x, weight, implementation="mosaic_gpu")  # type: ignore[arg-type]
    matrices = jnp.stack([weight, weight])
    with pytest.raises(ValueError, match="of one dtype"):
        gated_matmul(x, weight)
    with pytest.raises(ValueError, match="mosaic_gpu does not take"):
        gated_matmul(x, matrices, implementation="mosaic_gpu")
    with pytest.raises(ValueError, match="there are: reference, triton, mosaic_gpu"):
        gated_matmul(x, matrices, implementation="cublas")  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "wanted"), [(64, ["gated", "float32", "None"]), (65, ["tiled"])])
def test_on_a_hopper_gpu_16_bit_products_are_the_kernels(
    rows: int, wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By shapes alone: a 70B model's of one of four GPUs."""
    monkeypatch.setattr(api, "triton_can_run", lambda: True)
    monkeypatch.setattr(api, "is_hopper", lambda: True)
    taken: list[str] = []

    def named(name: str, shape: Callable[..., tuple[int, ...]]) -> Callable[..., jax.Array]:
        def kernel(x: jax.Array, weight: jax.Array, config: object, dtype: object = name) -> jax.Array:
            del config
            taken.append(dtype if isinstance(dtype, str) else jnp.dtype(dtype).name)  # type: ignore[arg-type]
            return jnp.zeros(shape(x, weight), x.dtype)

        return kernel

    def of_gated(x: jax.Array, weight: jax.Array) -> tuple[int, ...]:
        return x.shape[0], weight.shape[1]

    product = named("None", lambda x, weight: (1, x.shape[0], weight.shape[0]))
    monkeypatch.setattr("pallas_kernels.skinny_matmul.triton.skinny_matmul_triton", product)
    monkeypatch.setattr("pallas_kernels.skinny_matmul.triton.gated_matmul_triton", named("gated", of_gated))
    monkeypatch.setattr("pallas_kernels.skinny_matmul.tiled.tiled_gated_matmul", named("tiled", of_gated))

    def multiply(dtype: DTypeLike) -> list[str]:
        taken.clear()
        abstract = [jax.ShapeDtypeStruct(shape, dtype) for shape in ((rows, 8192), (2, 7168, 8192))]
        jax.eval_shape(
            lambda x, weight: (gated_matmul(x, weight), scores_matmul(x, weight[0]), skinny_matmul(x, weight[0])),
            *abstract,
        )
        return list(taken)

    assert multiply(jnp.bfloat16) == multiply(jnp.float16) == wanted
    assert multiply(jnp.float32) == []
    monkeypatch.setattr(api, "is_hopper", lambda: False)
    assert multiply(jnp.bfloat16) == []
