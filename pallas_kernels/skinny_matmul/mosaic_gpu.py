"""Products of up to a few hundred rows on Hopper, in Pallas Mosaic GPU: TMA, wgmma, specialised warpgroups.

Such a product takes as long as reading the weights, if they keep coming. One warpgroup of a program does nothing but
fetch: blocks of the weight's rows, and of all rows of x, go through a ring in shared memory, several blocks ahead. The
others multiply. Programs of a cluster that need the same block get it by one fetch (multicast).

With two matrices of one shape, their products are combined before they are written.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.skinny_matmul.config import NUM_SMS, StreamConfig

WG_ROWS = 64  # wgmma's M
COLUMNS = 64  # of a 16-bit type, make the 128 bytes that shared memory is swizzled over
FETCH_REGISTERS = 40
WG_THREADS, SM_REGISTERS = 128, 65536

Combine = Callable[[jax.Array, jax.Array], jax.Array]


class _Sizes(NamedTuple):
    """Everything about one launch that is known when it is compiled."""

    num_rows: int
    columns: int
    blocks: int  # of D, that a program sums over
    num_matrices: int
    config: StreamConfig
    combine: Combine | None

    @property
    def tile_rows(self) -> int:
        """Rows of x that a program takes."""
        if self.config.row_tiles == 1:
            return self.num_rows
        return -(-self.num_rows // (self.config.row_tiles * WG_ROWS)) * WG_ROWS

    @property
    def fetched_rows(self) -> int:
        """Those, up to what wgmma needs; where they fill no warpgroup's tile, what else lies there is not written."""
        return -(-self.tile_rows // 8) * 8 if self.tile_rows <= WG_ROWS else self.num_row_groups * WG_ROWS

    @property
    def num_row_groups(self) -> int:
        return -(-self.tile_rows // WG_ROWS)

    @property
    def num_computing(self) -> int:
        """Computing warpgroups: each takes WG_ROWS rows. If there are no more rows than that, two share the columns."""
        return max(2, self.num_row_groups)

    @property
    def wg_columns(self) -> int:
        return self.config.block_n if self.num_row_groups > 1 else self.config.block_n // 2

    @property
    def cluster(self) -> int:
        return max(self.config.row_tiles, self.config.column_cluster)

    @property
    def num_items(self) -> int:
        """Pieces of work of a cluster: a part of D of one or several tiles of columns."""
        return -(-self.columns // (self.config.block_n * self.config.column_cluster)) * self.config.parts

    @property
    def num_programs(self) -> int:
        return min(self.num_items, NUM_SMS // self.cluster)


class _Item(NamedTuple):
    """Where one piece of work lies."""

    row: Any
    column: Any
    part: Any


def _item(step: Any, sizes: _Sizes) -> _Item:
    """The step-th piece of work of this program."""
    index = step * sizes.num_programs + lax.axis_index("program")
    rank = lax.axis_index("cluster")
    config = sizes.config
    tile = lax.div(index, config.parts) * config.column_cluster + (rank if config.column_cluster > 1 else 0)
    row = (rank if config.row_tiles > 1 else 0) * sizes.tile_rows
    return _Item(row, tile * config.block_n, lax.rem(index, config.parts))


def _num_steps(sizes: _Sizes) -> Any:
    left = sizes.num_items - lax.axis_index("program")
    return lax.div(left + sizes.num_programs - 1, sizes.num_programs)


def _fetch(x: Any, weight: Any, x_ring: Any, w_ring: Any, full: Any, empty: Any, sizes: _Sizes) -> None:
    """The fetching warpgroup."""
    config = sizes.config

    def multicast(wanted: bool) -> str | None:
        return "cluster" if wanted else None

    def fetch_item(step: Any, fetched: Any) -> Any:
        item = _item(step, sizes)

        def fetch_block(block: Any, _: None) -> None:
            slot = lax.rem(fetched + block, config.num_stages)
            d = pl.ds((item.part * sizes.blocks + block) * config.block_d, config.block_d)
            plgpu.barrier_wait(empty.at[slot])
            for matrix in range(sizes.num_matrices):
                plgpu.copy_gmem_to_smem(
                    weight.at[matrix, pl.ds(item.column, config.block_n), d],
                    w_ring.at[slot, matrix],
                    full.at[slot],
                    collective_axes=multicast(config.row_tiles > 1),
                )
            plgpu.copy_gmem_to_smem(
                x.at[pl.ds(item.row, sizes.fetched_rows), d],
                x_ring.at[slot, pl.ds(0, sizes.fetched_rows)],
                full.at[slot],
                collective_axes=multicast(config.column_cluster > 1),
            )

        lax.fori_loop(0, sizes.blocks, fetch_block, None)
        return fetched + sizes.blocks

    lax.fori_loop(0, _num_steps(sizes), fetch_item, jnp.int32(0))
    # The ring is empty when all that was fetched is used, by the cluster's other programs too.
    for slot in range(config.num_stages):
        plgpu.barrier_wait(empty.at[slot])


def _compute(out: Any, x_ring: Any, w_ring: Any, out_smem: Any, full: Any, empty: Any, wg: Any, sizes: _Sizes) -> None:
    """A computing warpgroup."""
    stages, by_rows = sizes.config.num_stages, sizes.num_row_groups > 1
    first_row = wg * WG_ROWS if by_rows else 0
    first_column = 0 if by_rows else wg * sizes.wg_columns

    def compute_item(step: Any, done: Any) -> Any:
        item = _item(step, sizes)

        def multiply(*accs: Any) -> list[jax.Array]:
            def visit(block: Any, _: None) -> None:
                slot = lax.rem(done + block, stages)
                plgpu.barrier_wait(full.at[slot])
                rows = x_ring.at[slot, pl.ds(first_row, WG_ROWS)]
                for matrix, acc in enumerate(accs):
                    columns = w_ring.at[slot, matrix, pl.ds(first_column, sizes.wg_columns)]
                    plgpu.wgmma(acc, rows, columns.T)
                # The products of the block before are done, those of this one go on.
                plgpu.wgmma_wait(sizes.num_matrices)
                last = lax.rem(done + block + stages - 1, stages)
                pl.when(block > 0)(lambda: plgpu.barrier_arrive(empty.at[last]))

            lax.fori_loop(0, sizes.blocks, visit, None)
            plgpu.wgmma_wait(0)
            plgpu.barrier_arrive(empty.at[lax.rem(done + sizes.blocks - 1, stages)])
            return [acc[...] for acc in accs]

        acc = plgpu.ACC((WG_ROWS, sizes.wg_columns), jnp.float32)
        products = pl.run_scoped(multiply, *[acc] * sizes.num_matrices)
        if sizes.combine is None:
            (result,) = products
        else:
            result = sizes.combine(*products)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        out_smem[wg] = result.astype(out.dtype)
        plgpu.commit_smem()
        # What lies past the last row or column is not written.
        plgpu.copy_smem_to_gmem(
            out_smem.at[wg, pl.ds(0, min(WG_ROWS, sizes.fetched_rows))],
            out.at[
                item.part,
                pl.ds(item.row + first_row, min(WG_ROWS, sizes.fetched_rows)),
                pl.ds(item.column + first_column, sizes.wg_columns),
            ],
        )
        return done + sizes.blocks

    for slot in range(stages):
        plgpu.barrier_arrive(empty.at[slot])
    lax.fori_loop(0, _num_steps(sizes), compute_item, jnp.int32(0))
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _kernel(
    x: Any, weight: Any, out: Any, x_ring: Any, w_ring: Any, out_smem: Any, *barriers: Any, sizes: _Sizes
) -> None:
    wg = lax.axis_index("wg")
    launched = SM_REGISTERS // (WG_THREADS * (sizes.num_computing + 1)) // 8 * 8
    compute_registers = (launched * (sizes.num_computing + 1) - FETCH_REGISTERS) // sizes.num_computing // 8 * 8

    @pl.when(wg < sizes.num_computing)
    def _() -> None:
        plgpu.set_max_registers(compute_registers, action="increase")
        _compute(out, x_ring, w_ring, out_smem, *barriers, wg, sizes)

    @pl.when(wg == sizes.num_computing)
    def _() -> None:
        plgpu.set_max_registers(FETCH_REGISTERS, action="decrease")
        _fetch(x, weight, x_ring, w_ring, *barriers, sizes)


def stream_matmul(
    x: jax.Array,
    weight: jax.Array,
    config: StreamConfig,
    *,
    combine: Combine | None = None,
    interpret: Any = None,
) -> jax.Array:
    """x [T, D] times weight [matrices, N, D], both of one 16-bit dtype, over each of the config's parts of D.

    Args:
        config: how it is cut; D must be a multiple of parts * block_d.
        combine: what becomes of the two products [64, columns] float32 of two matrices; None with one.
        interpret: a `plgpu.InterpretGPUParams`, to run on the CPU.

    Returns:
        [parts, T, N], float32 if there are several parts, else in x's dtype.
    """
    num_rows, size = x.shape
    num_matrices, columns, _ = weight.shape
    if size % (config.parts * config.block_d):
        raise ValueError(f"D must be a multiple of {config.parts} * {config.block_d}, got {size}")
    sizes = _Sizes(num_rows, columns, size // (config.parts * config.block_d), num_matrices, config, combine)
    tiled = (plgpu.TilingTransform((8, COLUMNS)), plgpu.SwizzleTransform(128))
    empty: Any = plgpu.Barrier(num_arrivals=sizes.num_computing, num_barriers=config.num_stages)
    if sizes.cluster > 1:
        empty = plgpu.ClusterBarrier(
            collective_axes=("cluster",), num_arrivals=sizes.num_computing, num_barriers=config.num_stages
        )
    dtype = x.dtype if config.parts == 1 else jnp.float32
    call = plgpu.kernel(
        partial(_kernel, sizes=sizes),
        out_type=jax.ShapeDtypeStruct((config.parts, num_rows, columns), dtype),
        scratch_types=(
            plgpu.SMEM((config.num_stages, sizes.num_row_groups * WG_ROWS, config.block_d), x.dtype, transforms=tiled),
            plgpu.SMEM((config.num_stages, num_matrices, config.block_n, config.block_d), x.dtype, transforms=tiled),
            plgpu.SMEM((sizes.num_computing, WG_ROWS, sizes.wg_columns), dtype),
            plgpu.Barrier(num_arrivals=num_matrices + 1, num_barriers=config.num_stages),
            empty,
        ),
        grid=(sizes.num_programs,),
        grid_names=("program",),
        cluster=(sizes.cluster,),
        cluster_names=("cluster",),
        num_threads=sizes.num_computing + 1,
        thread_name="wg",
        kernel_name="stream_matmul",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )
    out: jax.Array = call(x, weight)
    return out
