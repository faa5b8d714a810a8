"""Gated products of many rows on Hopper, in Pallas Mosaic GPU: TMA, wgmma, specialised warpgroups.

A tile of the result is 128 rows by some columns. Two warpgroups take 64 rows each and multiply them with the same
columns of both matrices at once, so that both products of a value end up in one thread, which makes the result of them
before anything is written: the activation costs no pass over memory. A third warpgroup does nothing but fetch. As many
programs as the card runs at once walk over the tiles, several rows of tiles side by side, so that what one program has
fetched is still in the cache when its neighbours ask for it.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.platform import NUM_SMS
from pallas_kernels.skinny_matmul.config import TILE_ROWS, TiledConfig
from pallas_kernels.skinny_matmul.ring import (
    COLUMNS,
    COMPUTE_REGISTERS,
    FETCH_REGISTERS,
    NUM_COMPUTING,
    multiply_blocks,
    num_steps,
)

WG_ROWS = TILE_ROWS // NUM_COMPUTING
# Rows of tiles that programs walk over side by side.
GROUP = 16


class _Sizes(NamedTuple):
    """Everything about one launch that is known when it is compiled."""

    num_rows: int
    columns: int
    blocks: int  # of D
    config: TiledConfig

    @property
    def row_tiles(self) -> int:
        return -(-self.num_rows // TILE_ROWS)

    @property
    def column_tiles(self) -> int:
        return -(-self.columns // self.config.tile_columns)

    @property
    def num_tiles(self) -> int:
        return self.row_tiles * self.column_tiles

    @property
    def num_programs(self) -> int:
        return min(self.num_tiles, NUM_SMS)


def _tile(step: Any, sizes: _Sizes) -> tuple[Any, Any]:
    """The first row and the first column of the step-th tile of this program."""
    index = step * sizes.num_programs + lax.axis_index("program")
    in_group = GROUP * sizes.column_tiles
    group, place = lax.div(index, in_group), lax.rem(index, in_group)
    width = jnp.minimum(sizes.row_tiles - group * GROUP, GROUP)
    row_tile = group * GROUP + lax.rem(place, width)
    return row_tile * TILE_ROWS, lax.div(place, width) * sizes.config.tile_columns


def _fetch(x: Any, weight: Any, x_ring: Any, w_ring: Any, full: Any, empty: Any, sizes: _Sizes) -> None:
    """The fetching warpgroup."""
    stages, width = sizes.config.num_stages, sizes.config.tile_columns

    def fetch_tile(step: Any, fetched: Any) -> Any:
        row, column = _tile(step, sizes)

        def fetch_block(block: Any, _: None) -> None:
            slot = lax.rem(fetched + block, stages)
            d = pl.ds(block * COLUMNS, COLUMNS)
            plgpu.barrier_wait(empty.at[slot])
            # What lies past the last row or column arrives as zeros.
            plgpu.copy_gmem_to_smem(x.at[pl.ds(row, TILE_ROWS), d], x_ring.at[slot], full.at[slot])
            for matrix in range(2):
                half = w_ring.at[slot, pl.ds(matrix * width, width)]
                plgpu.copy_gmem_to_smem(weight.at[matrix, pl.ds(column, width), d], half, full.at[slot])

        lax.fori_loop(0, sizes.blocks, fetch_block, None)
        return fetched + sizes.blocks

    lax.fori_loop(0, num_steps(sizes.num_tiles, sizes.num_programs), fetch_tile, jnp.int32(0))
    # The ring is empty when all that was fetched is used.
    for slot in range(stages):
        plgpu.barrier_wait(empty.at[slot])


def _compute(out: Any, x_ring: Any, w_ring: Any, out_smem: Any, full: Any, empty: Any, wg: Any, sizes: _Sizes) -> None:
    """A computing warpgroup."""
    stages, width = sizes.config.num_stages, sizes.config.tile_columns
    rows = pl.ds(wg * WG_ROWS, WG_ROWS)

    def compute_tile(step: Any, done: Any) -> Any:
        row, column = _tile(step, sizes)

        products = multiply_blocks(
            (WG_ROWS, 2 * width),
            lambda slot: (x_ring.at[slot, rows], w_ring.at[slot].T),
            full,
            empty,
            done=done,
            num_blocks=sizes.blocks,
            num_stages=stages,
        )
        gate, up = products[:, :width], products[:, width:]
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        out_smem[wg] = (gate / (1 + jnp.exp(-gate)) * up).astype(out.dtype)
        plgpu.commit_smem()
        # What lies past the last row or column is not written.
        plgpu.copy_smem_to_gmem(out_smem.at[wg], out.at[pl.ds(row + wg * WG_ROWS, WG_ROWS), pl.ds(column, width)])
        return done + sizes.blocks

    for slot in range(stages):
        plgpu.barrier_arrive(empty.at[slot])
    lax.fori_loop(0, num_steps(sizes.num_tiles, sizes.num_programs), compute_tile, jnp.int32(0))
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _kernel(x: Any, weight: Any, out: Any, x_ring: Any, w_ring: Any, out_smem: Any, *barriers: Any, sizes: Any) -> None:
    wg = lax.axis_index("wg")

    @pl.when(wg < NUM_COMPUTING)
    def _() -> None:
        plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
        _compute(out, x_ring, w_ring, out_smem, *barriers, wg, sizes)

    @pl.when(wg == NUM_COMPUTING)
    def _() -> None:
        plgpu.set_max_registers(FETCH_REGISTERS, action="decrease")
        _fetch(x, weight, x_ring, w_ring, *barriers, sizes)


def tiled_gated_matmul(x: jax.Array, weight: jax.Array, config: TiledConfig, *, interpret: Any = None) -> jax.Array:
    """silu(x @ weight[0].T) * (x @ weight[1].T) of x [T, D] and weight [2, F, D], both of one 16-bit dtype.

    Args:
        config: how it is cut.
        interpret: a `plgpu.InterpretGPUParams`, to run on the CPU.

    Returns:
        [T, F] in x's dtype, rounded once.

    Raises:
        ValueError: D is not a multiple of 64.
    """
    (num_rows, size), columns = x.shape, weight.shape[1]
    if size % COLUMNS:
        raise ValueError(f"D must be a multiple of {COLUMNS}, got {size}")
    sizes = _Sizes(num_rows, columns, size // COLUMNS, config)
    width, stages = config.tile_columns, config.num_stages
    tiled = (plgpu.TilingTransform((8, COLUMNS)), plgpu.SwizzleTransform(128))
    call = plgpu.kernel(
        partial(_kernel, sizes=sizes),
        out_type=jax.ShapeDtypeStruct((num_rows, columns), x.dtype),
        scratch_types=(
            plgpu.SMEM((stages, TILE_ROWS, COLUMNS), x.dtype, transforms=tiled),
            plgpu.SMEM((stages, 2 * width, COLUMNS), x.dtype, transforms=tiled),
            plgpu.SMEM((NUM_COMPUTING, WG_ROWS, width), x.dtype, transforms=tiled if width % COLUMNS == 0 else ()),
            plgpu.Barrier(num_arrivals=3, num_barriers=stages),
            plgpu.Barrier(num_arrivals=NUM_COMPUTING, num_barriers=stages),
        ),
        grid=(sizes.num_programs,),
        grid_names=("program",),
        num_threads=NUM_COMPUTING + 1,
        thread_name="wg",
        kernel_name="tiled_gated_matmul",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )
    out: jax.Array = call(x, weight)
    return out
