"""Products of up to 64 rows in Mosaic GPU, interpreted on the CPU in float16, against float64."""

from functools import partial

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import ArrayLike

from pallas_kernels.skinny_matmul import gated_matmul, mosaic_gpu, scores_matmul, skinny_matmul
from pallas_kernels.skinny_matmul.config import (
    MAX_STREAM_ROWS,
    SHARED_BYTES,
    StreamConfig,
    gated_config,
    gated_triton_config,
    scores_config,
    skinny_config,
    stream_config,
)

# (rows, columns, summed axis, how it is cut)
CASES = {
    "whole tiles": (64, 64, 256, StreamConfig(32, 2)),
    "more tiles than programs": (24, 160, 128, StreamConfig(32, 2)),
    "columns end inside a tile": (32, 40, 128, StreamConfig(32, 2)),
    "rows end inside a tile": (17, 32, 128, StreamConfig(32, 2)),
    "one row": (1, 64, 256, StreamConfig(32, 2)),
    "eight rows, two parts": (8, 64, 256, StreamConfig(32, 2, 2)),
    "two parts": (32, 64, 256, StreamConfig(32, 2, 2)),
    "a block of 128 values": (32, 64, 512, StreamConfig(32, 3, 2, 128)),
}
INTERPRET = plgpu.InterpretGPUParams(detect_races=True)


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few that each has several tiles in the larger cases."""
    monkeypatch.setattr(mosaic_gpu, "NUM_SMS", 3)


def operands(rows: int, *weight_shape: int) -> tuple[jax.Array, jax.Array]:
    """x [rows, D] and a weight whose last axis is D, in float16."""
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, weight_shape[-1]))
    return jnp.asarray(x, jnp.float16), jnp.asarray(rng.standard_normal(weight_shape), jnp.float16)


def exact(x: jax.Array, weight: jax.Array) -> np.ndarray:
    """The product in float64."""
    product: np.ndarray = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    return product


def relative_error(got: ArrayLike, wanted: np.ndarray) -> float:
    """The largest error over the largest value."""
    return float(np.abs(np.asarray(got, np.float64) - wanted).max() / np.abs(wanted).max())


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("case", CASES)
def test_the_parts_sum_to_the_product(case: str) -> None:
    rows, columns, size, config = CASES[case]
    x, weight = operands(rows, columns, size)
    parts = mosaic_gpu.stream_matmul(x, weight, config, interpret=INTERPRET)
    assert parts.shape == (config.parts, rows, columns)
    error = relative_error(np.asarray(parts, np.float64).sum(0), exact(x, weight))
    assert error < (1e-3 if config.parts == 1 else 1e-5)


@pytest.mark.usefixtures("few_programs")
def test_a_product_of_one_part_is_rounded_to_no_less_than_asked_for() -> None:
    rows, columns, size, config = CASES["columns end inside a tile"]
    x, weight = operands(rows, columns, size)
    (product,) = mosaic_gpu.stream_matmul(x, weight, config, dtype=jnp.float32, interpret=INTERPRET)
    assert product.dtype == jnp.float32
    assert relative_error(product, exact(x, weight)) < 1e-5


# (rows, columns of each matrix, summed axis, how it is cut)
GATED_CASES = {
    "whole tiles": (64, 64, 256, StreamConfig(32, 2)),
    "more tiles than programs, the last cut off": (24, 136, 128, StreamConfig(32, 2)),
    "one row": (1, 40, 256, StreamConfig(16, 3)),
    "a block of 128 values": (17, 112, 256, StreamConfig(112, 2, 1, 128)),
}


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("case", GATED_CASES)
def test_a_gated_product_is_silu_of_one_product_times_the_other(case: str) -> None:
    rows, columns, size, config = GATED_CASES[case]
    x, weight = operands(rows, 2, columns, size)
    weight /= 8
    out = mosaic_gpu.stream_gated_matmul(x, weight, config, interpret=INTERPRET)
    gate, up = (exact(x, matrix) for matrix in weight)
    wanted = gate / (1 + np.exp(-gate)) * up
    assert out.shape == (rows, columns)
    assert relative_error(out, wanted) < 1e-3
    assert relative_error(gated_matmul(x, weight), wanted) < 3e-3


def test_a_gated_cut_gives_each_program_as_many_tiles_and_fits_shared_memory() -> None:
    # Llama-3-8B's on one, two and four GPUs, and Llama-3-70B's on one and four; Baichuan's.
    matrices = ((14336, 4096), (7168, 4096), (3584, 4096), (28672, 8192), (7168, 8192), (11008, 4096), (13824, 5120))
    assert [gated_triton_config(rows, 3584, 4096) is not None for rows in (1, 32, 33)] == [True, True, False]
    assert gated_config(32, 3584, 4096) is None
    assert gated_triton_config(1, 7168, 4096) is None  # enough weights for the host to keep up
    assert gated_triton_config(1, 512, 512) is None
    for columns, size in matrices:
        config = gated_config(64, columns, size)
        assert config is not None
        assert config.parts == 1 and size % config.block_d == 0
        tiles = -(-columns // (config.block_n // 2))
        rounds = -(-tiles // 132)
        assert tiles > 0.84 * 132 * rounds  # no round for the sake of a few
        ring = config.num_stages * 2 * config.block_d * (64 + config.block_n)
        assert ring + 64 * config.block_n // 2 * (2 + 4) <= SHARED_BYTES
    assert gated_config(65, 14336, 4096) is None
    # XLA's are faster for a few rows where only narrow blocks fit.
    assert gated_config(1, 11008, 4096) is None
    assert gated_config(17, 11008, 4096) is not None
    assert gated_config(1, 14336, 4096) is not None
    assert gated_config(1, 512, 512) is None


def test_a_cut_fits_the_summed_axis_and_shared_memory_and_other_shapes_are_left_to_others() -> None:
    # The matrices of models on one GPU, and of Llama-3-8B's on two and four.
    whole = ((6144, 4096), (4096, 4096), (4096, 14336), (2048, 8192), (5120, 13824), (4096, 11008))
    halves = ((3072, 4096), (4096, 2048), (4096, 7168), (14336, 4096))
    quarters = ((1536, 4096), (4096, 1024), (4096, 3584), (7168, 4096))
    for rows in (1, 8, 17, 24, 32, 64):
        for columns, size in (*whole, *halves, *quarters):
            for one_part in (False, True):
                config = stream_config(rows, columns, size, one_part=one_part)
                if (rows <= 16 and columns < 5000) or (rows <= 32 and columns * size < 1 << 23):
                    # Triton's kernel is faster there or costs the host less, if it takes the shape.
                    assert (config is None) == (skinny_config(rows, columns, size) is not None)
                    continue
                assert config is not None
                assert size % (config.parts * config.block_d) == 0
                assert config.num_stages >= 3
                ring = config.num_stages * 2 * config.block_d * (64 + config.block_n)
                assert ring + 64 * config.block_n * (2 if config.parts == 1 else 4) <= SHARED_BYTES
                assert config.parts == 1 or not one_part
    assert stream_config(65, 4096, 4096) is None
    assert stream_config(32, 28672, 4096) is None
    assert stream_config(32, 64, 64) is None


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, weight = jnp.zeros((65, 128), jnp.float16), jnp.zeros((64, 128), jnp.float16)
    with pytest.raises(ValueError, match="at most 64"):
        mosaic_gpu.stream_matmul(x, weight, StreamConfig(32, 2))
    with pytest.raises(ValueError, match="mosaic_gpu does not take"):
        skinny_matmul(x, weight, implementation="mosaic_gpu")
    x, weight = jnp.zeros((65, 128), jnp.float16), jnp.zeros((2, 64, 128), jnp.float16)
    with pytest.raises(ValueError, match="mosaic_gpu does not take"):
        gated_matmul(x, weight, implementation="mosaic_gpu")
    with pytest.raises(ValueError, match="weight \\[2, F, D\\]"):
        gated_matmul(x, weight[0])
    with pytest.raises(ValueError, match="unknown implementation"):
        gated_matmul(x, weight, implementation="cuda")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="triton does not take"):
        gated_matmul(x, weight, implementation="triton")
    with pytest.raises(ValueError, match="not linear"):
        mosaic_gpu.stream_gated_matmul(x[:1], weight, StreamConfig(32, 2, 2))


@pytest.mark.parametrize(
    ("columns", "size", "block_n"),
    [(128_256, 4096, 112), (64_128, 4096, 128), (32_064, 8192, 128), (256_000, 3584, 112)],
)
def test_tiles_of_scores_leave_few_programs_without_one(columns: int, size: int, block_n: int) -> None:
    config = scores_config(1, columns, size)
    assert config is not None and (config.block_n, config.parts, config.block_d) == (block_n, 1, 128)
    rounds = -(-columns // (block_n * mosaic_gpu.NUM_SMS))
    assert columns / (rounds * block_n * mosaic_gpu.NUM_SMS) > 0.94
    ring = config.num_stages * 2 * config.block_d * (MAX_STREAM_ROWS + block_n)
    assert config.num_stages >= 4 and ring + MAX_STREAM_ROWS * block_n * 4 <= SHARED_BYTES


@pytest.mark.parametrize(("rows", "columns", "size"), [(65, 128_256, 4096), (1, 50_257, 4096), (1, 128_256, 4032)])
def test_scores_that_the_kernel_does_not_take_are_left_to_xla(rows: int, columns: int, size: int) -> None:
    assert scores_config(rows, columns, size) is None


@pytest.mark.usefixtures("few_programs")
def test_scores_are_float32_of_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mosaic_gpu, "stream_matmul", partial(mosaic_gpu.stream_matmul, interpret=INTERPRET))
    monkeypatch.setattr("pallas_kernels.skinny_matmul.config.MIN_WEIGHTS", 1)
    x, weight = operands(5, 200, 256)
    scores = scores_matmul(x, weight, implementation="mosaic_gpu")
    assert scores.shape == (5, 200) and scores.dtype == jnp.float32
    assert relative_error(scores, exact(x, weight)) < 1e-5
    assert relative_error(scores_matmul(x, weight), exact(x, weight)) < 1e-5


def test_wrong_operands_of_scores_are_refused() -> None:
    x, weight = operands(5, 40, 256)
    with pytest.raises(ValueError, match="of one dtype"):
        scores_matmul(x.astype(jnp.float32), weight)
    with pytest.raises(ValueError, match="of one dtype"):
        scores_matmul(x[:, :128], weight)
    with pytest.raises(ValueError, match="there are: reference, mosaic_gpu"):
        scores_matmul(x, weight, implementation="triton")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leave implementation None"):
        scores_matmul(x, weight[:33], implementation="mosaic_gpu")
