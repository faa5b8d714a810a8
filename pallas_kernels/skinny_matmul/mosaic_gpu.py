"""Products of up to 64 rows on Hopper, in Pallas Mosaic GPU: TMA, wgmma, specialised warpgroups.

Such a product takes as long as reading the weights, if they keep coming. One warpgroup of a program does nothing but
fetch: blocks of the weight's rows, and of all rows of x, go through a ring in shared memory, several blocks ahead. Two
others multiply, each half of the columns. In a gated product one computes columns of the gate, the other the same
columns of the other matrix, which it hands over through shared memory.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from pallas_kernels.platform import NUM_SMS
from pallas_kernels.skinny_matmul.config import MAX_STREAM_ROWS, StreamConfig
from pallas_kernels.skinny_matmul.ring import (
    COLUMNS,
    COMPUTE_REGISTERS,
    FETCH_REGISTERS,
    NUM_COMPUTING,
    multiply_blocks,
    num_steps,
)


class _Sizes(NamedTuple):
    """Everything about one launch that is known when it is compiled."""

    num_rows: int
    columns: int  # of the result
    blocks: int  # of D, that a program sums over
    config: StreamConfig
    gated: bool

    @property
    def fetched_rows(self) -> int:
        """What else of a tile of MAX_STREAM_ROWS lies in shared memory is not written."""
        return -(-self.num_rows // 8) * 8

    @property
    def wg_columns(self) -> int:
        return self.config.block_n // NUM_COMPUTING

    @property
    def tile_columns(self) -> int:
        """Columns of the result that a piece of work makes."""
        return self.wg_columns if self.gated else self.config.block_n

    @property
    def num_items(self) -> int:
        """Pieces of work: a part of D of a tile of columns."""
        return -(-self.columns // self.tile_columns) * self.config.parts

    @property
    def num_programs(self) -> int:
        return min(self.num_items, NUM_SMS)


class _Item(NamedTuple):
    """Where one piece of work lies."""

    row: Any  # 0, but not to the compiler: a tile may reach past the last row
    column: Any
    part: Any


def _item(step: Any, sizes: _Sizes) -> _Item:
    """The step-th piece of work of this program."""
    index = step * sizes.num_programs + lax.axis_index("program")
    tile, part = lax.div(index, sizes.config.parts), lax.rem(index, sizes.config.parts)
    return _Item(tile * 0, tile * sizes.tile_columns, part)


def _fetch(x: Any, weight: Any, x_ring: Any, w_ring: Any, full: Any, empty: Any, sizes: _Sizes) -> None:
    """The fetching warpgroup."""
    config = sizes.config

    def fetch_item(step: Any, fetched: Any) -> Any:
        item = _item(step, sizes)

        def fetch_block(block: Any, _: None) -> None:
            slot = lax.rem(fetched + block, config.num_stages)
            d = pl.ds((item.part * sizes.blocks + block) * config.block_d, config.block_d)
            plgpu.barrier_wait(empty.at[slot])
            # What lies past the last row or column arrives as zeros.
            columns = pl.ds(item.column, sizes.tile_columns)
            if sizes.gated:
                for matrix in range(2):
                    half = pl.ds(matrix * sizes.wg_columns, sizes.wg_columns)
                    plgpu.copy_gmem_to_smem(weight.at[matrix, columns, d], w_ring.at[slot, half], full.at[slot])
            else:
                plgpu.copy_gmem_to_smem(weight.at[columns, d], w_ring.at[slot], full.at[slot])
            rows = pl.ds(0, sizes.fetched_rows)
            plgpu.copy_gmem_to_smem(x.at[pl.ds(item.row, sizes.fetched_rows), d], x_ring.at[slot, rows], full.at[slot])

        lax.fori_loop(0, sizes.blocks, fetch_block, None)
        return fetched + sizes.blocks

    lax.fori_loop(0, num_steps(sizes.num_items, sizes.num_programs), fetch_item, jnp.int32(0))
    # The ring is empty when all that was fetched is used.
    for slot in range(config.num_stages):
        plgpu.barrier_wait(empty.at[slot])


def _compute(x_ring: Any, w_ring: Any, finish: Any, full: Any, empty: Any, wg: Any, sizes: _Sizes) -> None:
    """A computing warpgroup; `finish` takes a piece of work and its product [MAX_STREAM_ROWS, wg_columns]."""
    stages = sizes.config.num_stages
    wg_columns = pl.ds(wg * sizes.wg_columns, sizes.wg_columns)

    def compute_item(step: Any, done: Any) -> Any:
        item = _item(step, sizes)

        product = multiply_blocks(
            (MAX_STREAM_ROWS, sizes.wg_columns),
            lambda slot: (x_ring.at[slot], w_ring.at[slot, wg_columns].T),
            full,
            empty,
            done=done,
            num_blocks=sizes.blocks,
            num_stages=stages,
        )
        finish(item, product)
        return done + sizes.blocks

    for slot in range(stages):
        plgpu.barrier_arrive(empty.at[slot])
    lax.fori_loop(0, num_steps(sizes.num_items, sizes.num_programs), compute_item, jnp.int32(0))
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _store(out: Any, out_smem: Any, item: _Item, column: Any, values: jax.Array, sizes: _Sizes) -> None:
    """Write [MAX_STREAM_ROWS, wg_columns] to the result from a column on; what lies past its last row or column is not
    written."""
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    out_smem[...] = values.astype(out.dtype)
    plgpu.commit_smem()
    rows = pl.ds(0, sizes.fetched_rows)
    plgpu.copy_smem_to_gmem(
        out_smem.at[rows], out.at[item.part, pl.ds(item.row, sizes.fetched_rows), pl.ds(column, sizes.wg_columns)]
    )


def _compute_half(out: Any, rings: Any, out_smem: Any, barriers: Any, wg: Any, sizes: _Sizes) -> None:
    """A warpgroup that stores what it computes."""

    def finish(item: _Item, product: jax.Array) -> None:
        _store(out, out_smem.at[wg], item, item.column + wg * sizes.wg_columns, product, sizes)

    plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
    _compute(*rings, finish, *barriers, wg, sizes)


def _compute_gate(
    out: Any, rings: Any, out_smem: Any, up_smem: Any, barriers: Any, handing: Any, sizes: _Sizes
) -> None:
    """The warpgroup of the gate, which gets the other product and stores silu(gate) * up."""
    handed, taken = handing

    def finish(item: _Item, gate: jax.Array) -> None:
        plgpu.barrier_wait(handed)
        up = plgpu.load(up_smem, layout=plgpu.Layout.WGMMA)
        plgpu.barrier_arrive(taken)
        _store(out, out_smem.at[0], item, item.column, gate / (1 + jnp.exp(-gate)) * up, sizes)

    plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
    plgpu.barrier_arrive(taken)
    _compute(*rings, finish, *barriers, 0, sizes)


def _compute_up(rings: Any, up_smem: Any, barriers: Any, handing: Any, sizes: _Sizes) -> None:
    """The warpgroup of the other matrix."""
    handed, taken = handing

    def finish(item: _Item, up: jax.Array) -> None:
        del item
        plgpu.barrier_wait(taken)
        up_smem[...] = up
        plgpu.barrier_arrive(handed)

    plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
    _compute(*rings, finish, *barriers, 1, sizes)
    # The barrier is left as it was found: the last that was handed over is taken.
    plgpu.barrier_wait(taken)


def _kernel(
    x: Any,
    weight: Any,
    out: Any,
    x_ring: Any,
    w_ring: Any,
    out_smem: Any,
    full: Any,
    empty: Any,
    *gating: Any,
    sizes: _Sizes,
) -> None:
    wg = lax.axis_index("wg")
    rings, barriers = (x_ring, w_ring), (full, empty)
    if sizes.gated:
        up_smem, *handing = gating
        pl.when(wg == 0)(lambda: _compute_gate(out, rings, out_smem, up_smem, barriers, handing, sizes))
        pl.when(wg == 1)(lambda: _compute_up(rings, up_smem, barriers, handing, sizes))
    else:
        pl.when(wg < NUM_COMPUTING)(lambda: _compute_half(out, rings, out_smem, barriers, wg, sizes))

    @pl.when(wg == NUM_COMPUTING)
    def _() -> None:
        plgpu.set_max_registers(FETCH_REGISTERS, action="decrease")
        _fetch(x, weight, x_ring, w_ring, full, empty, sizes)


def stream_matmul(
    x: jax.Array, weight: jax.Array, config: StreamConfig, *, dtype: DTypeLike | None = None, interpret: Any = None
) -> jax.Array:
    """x [T, D] times weight [N, D], both of one 16-bit dtype, over each of the config's parts of D.

    Args:
        config: how it is cut.
        dtype: of the result; None is float32 if there are several parts, else x's.
        interpret: a `plgpu.InterpretGPUParams`, to run on the CPU.

    Returns:
        [parts, T, N].

    Raises:
        ValueError: T is above 64, or D is not a multiple of parts * block_d.
    """
    if dtype is None:
        dtype = x.dtype if config.parts == 1 else jnp.float32
    return _launch(x, weight, config, weight.shape[0], dtype, gated=False, interpret=interpret)


def stream_gated_matmul(x: jax.Array, weight: jax.Array, config: StreamConfig, *, interpret: Any = None) -> jax.Array:
    """silu(x @ weight[0].T) * (x @ weight[1].T) of x [T, D] and weight [2, F, D], both of one 16-bit dtype.

    Args:
        config: how it is cut; a tile's columns are those of both matrices, and there is one part.
        interpret: a `plgpu.InterpretGPUParams`, to run on the CPU.

    Returns:
        [T, F] in x's dtype, rounded once.

    Raises:
        ValueError: T is above 64, D is not a multiple of block_d, or there are several parts.
    """
    if config.parts != 1:
        raise ValueError(f"a gated product is not linear in its parts: parts must be 1, got {config.parts}")
    return _launch(x, weight, config, weight.shape[1], x.dtype, gated=True, interpret=interpret)[0]


def _launch(
    x: jax.Array, weight: jax.Array, config: StreamConfig, columns: int, dtype: Any, *, gated: bool, interpret: Any
) -> jax.Array:
    """[parts, T, columns]."""
    num_rows, size = x.shape
    if num_rows > MAX_STREAM_ROWS or size % (config.parts * config.block_d):
        raise ValueError(
            f"T must be at most {MAX_STREAM_ROWS} and D a multiple of {config.parts} * {config.block_d}, "
            f"got {num_rows} and {size}"
        )
    sizes = _Sizes(num_rows, columns, size // (config.parts * config.block_d), config, gated)
    tiled = (plgpu.TilingTransform((8, COLUMNS)), plgpu.SwizzleTransform(128))
    tile = (MAX_STREAM_ROWS, sizes.wg_columns)
    gating = (plgpu.SMEM(tile, jnp.float32), plgpu.Barrier(num_arrivals=1), plgpu.Barrier(num_arrivals=1))
    call = plgpu.kernel(
        partial(_kernel, sizes=sizes),
        out_type=jax.ShapeDtypeStruct((config.parts, num_rows, columns), dtype),
        scratch_types=(
            plgpu.SMEM((config.num_stages, MAX_STREAM_ROWS, config.block_d), x.dtype, transforms=tiled),
            plgpu.SMEM((config.num_stages, config.block_n, config.block_d), x.dtype, transforms=tiled),
            plgpu.SMEM((1 if gated else NUM_COMPUTING, *tile), dtype),
            plgpu.Barrier(num_arrivals=3 if gated else 2, num_barriers=config.num_stages),
            plgpu.Barrier(num_arrivals=NUM_COMPUTING, num_barriers=config.num_stages),
            *(gating if gated else ()),
        ),
        grid=(sizes.num_programs,),
        grid_names=("program",),
        num_threads=NUM_COMPUTING + 1,
        thread_name="wg",
        kernel_name="stream_gated_matmul" if gated else "stream_matmul",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )
    out: jax.Array = call(x, weight)
    return out
