"""Gated products of many rows in Mosaic GPU, interpreted on the CPU in float16, against float64."""

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.skinny_matmul import api, gated_matmul, tiled
from pallas_kernels.skinny_matmul.config import SHARED_BYTES, TILE_ROWS, TiledConfig, gated_config, tiled_gated_config
from tests.references.blocks import silu

INTERPRET = plgpu.InterpretGPUParams(detect_races=True)
# (rows, columns of each matrix, summed axis, how it is cut)
CASES = {
    "whole tiles": (256, 64, 192, TiledConfig(32, 2)),
    "rows end inside the second warpgroup's part": (200, 32, 128, TiledConfig(32, 2)),
    "rows end inside the first warpgroup's part": (140, 40, 64, TiledConfig(40, 2)),
    "columns end inside a tile, several tiles a program": (256, 136, 128, TiledConfig(32, 3)),
    "a last group of fewer rows of tiles": (384, 64, 64, TiledConfig(32, 2)),
}


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few programs that each has several tiles in the larger cases, and two rows of tiles side by side."""
    monkeypatch.setattr(tiled, "NUM_SMS", 3)
    monkeypatch.setattr(tiled, "GROUP", 2)


@pytest.mark.usefixtures("small_machine")
@pytest.mark.parametrize("case", CASES)
def test_every_value_is_silu_of_one_product_times_the_other(case: str) -> None:
    rows, columns, size, config = CASES[case]
    rng = np.random.default_rng(rows)
    x = jnp.asarray(rng.standard_normal((rows, size)), jnp.float16)
    weight = jnp.asarray(rng.standard_normal((2, columns, size)) / 8, jnp.float16)
    out = tiled.tiled_gated_matmul(x, weight, config, interpret=INTERPRET)
    gate, up = (np.asarray(x, np.float64) @ np.asarray(matrix, np.float64).T for matrix in weight)
    wanted = silu(gate) * up
    assert out.shape == (rows, columns) and out.dtype == x.dtype
    assert np.abs(np.asarray(out, np.float64) - wanted).max() < 1e-3 * np.abs(wanted).max()


def test_a_cut_fits_shared_memory_and_leaves_few_multiprocessors_without_work() -> None:
    # Llama-3-8B's on one, two and four GPUs, and Llama-3-70B's on four; Baichuan's.
    for columns, size in ((14336, 4096), (7168, 4096), (3584, 4096), (7168, 8192), (13824, 5120), (11008, 4096)):
        for rows in (65, 128, 256, 512, 1024, 8192):
            config = tiled_gated_config(rows, columns, size)
            assert config is not None and config.tile_columns % 8 == 0 and config.num_stages >= 3
            ring = config.num_stages * 2 * 64 * (TILE_ROWS + 2 * config.tile_columns)
            assert ring + 2 * TILE_ROWS * config.tile_columns <= SHARED_BYTES
            tiles = -(-rows // TILE_ROWS) * -(-columns // config.tile_columns)
            assert tiles > 0.8 * 132 * -(-tiles // 132)
    config = tiled_gated_config(8192, 14336, 4096)
    assert config is not None and config.tile_columns == 128  # where tiles are many, wide ones are fetched least


def test_few_rows_are_the_other_kernels_and_shapes_that_do_not_fit_are_refused() -> None:
    assert tiled_gated_config(64, 14336, 4096) is None and gated_config(64, 14336, 4096) is not None
    assert tiled_gated_config(256, 14332, 4096) is None
    assert tiled_gated_config(256, 14336, 4000) is None
    assert tiled_gated_config(256, 64, 64) is None
    x, weight = jnp.zeros((8, 96), jnp.float16), jnp.zeros((2, 8, 96), jnp.float16)
    with pytest.raises(ValueError, match="multiple of 64"):
        tiled.tiled_gated_matmul(x, weight, TiledConfig(32, 2))


def test_the_operation_takes_it_for_many_rows_where_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pallas_kernels.skinny_matmul.config.MIN_WEIGHTS", 1)
    monkeypatch.setattr(api, "triton_can_run", lambda: True)
    monkeypatch.setattr(api, "is_hopper", lambda: True)
    taken: list[TiledConfig] = []

    def kernel(x: jnp.ndarray, weight: jnp.ndarray, config: TiledConfig) -> jnp.ndarray:
        taken.append(config)
        return jnp.zeros((x.shape[0], weight.shape[1]), x.dtype)

    monkeypatch.setattr(tiled, "tiled_gated_matmul", kernel)
    x, weight = jnp.zeros((128, 64), jnp.bfloat16), jnp.zeros((2, 64, 64), jnp.bfloat16)
    assert gated_matmul(x, weight).shape == (128, 64)
    assert taken == [tiled_gated_config(128, 64, 64)]
    assert gated_matmul(x.astype(jnp.float32), weight.astype(jnp.float32)).dtype == jnp.float32
    assert len(taken) == 1  # it does not take 32 bits
