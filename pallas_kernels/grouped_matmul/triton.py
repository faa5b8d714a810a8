"""Grouped products by Triton kernels: cutting the rows into tiles, and launching.

Grids are of fixed size, as a compiled step needs: a tile's group is found on the device, and tiles that the batch does
not need end at once.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.grouped_matmul import kernels
from pallas_kernels.grouped_matmul.config import (
    SEARCHED_ROWS,
    SEARCHED_TOKENS,
    MatmulConfig,
    SortConfig,
    matmul_config,
    power_of_two,
    sort_config,
    tile_rows,
)
from pallas_kernels.platform import PTX_VERSION
from pallas_kernels.triton_call import triton_call


class _Tiles(NamedTuple):
    """How rows are cut into tiles; see `grouped_matmul_kernel`. Arrays that `kind` has no use for may be any."""

    kind: Literal["sorted", "indexed", "searched"]
    num_rows: int
    num_tiles: int
    tiles: jax.Array
    row_index: jax.Array


def grouped_matmul_triton(
    lhs: jax.Array, rhs: jax.Array, group_sizes: jax.Array, *, config: MatmulConfig | None = None
) -> jax.Array:
    """See `grouped_matmul`. `config` overrides the tile sizes, for tuning."""
    num_rows, _ = lhs.shape
    num_groups, n, k = rhs.shape
    config = config or matmul_config(
        tile_rows(num_rows, num_groups, lhs.dtype), min(num_rows, num_groups), n, k, lhs.dtype
    )
    tiles = _tiles_of_sizes(group_sizes, num_rows, config.block_m)
    return _product(lhs, rhs, _Tiles("sorted", num_rows, tiles.shape[0], tiles, tiles), config)


def expert_mlp_triton(
    x: jax.Array,
    expert_ids: jax.Array,
    expert_weights: jax.Array,
    gate_up: jax.Array,
    down: jax.Array,
    *,
    up_config: MatmulConfig | None = None,
    down_config: MatmulConfig | None = None,
    sort: SortConfig | None = None,
) -> jax.Array:
    """See `expert_mlp`. The configs override tile sizes, for tuning; block_m of both products must be the same.

    Row t * k + j of what lies between the products is the j-th expert of token t. Each is written by one program, and
    those of a token are summed in a fixed order, so that results do not depend on how programs are scheduled.
    """
    num_tokens, hidden_size = x.shape
    num_experts, _, inner, _ = gate_up.shape
    num_rows = expert_ids.size
    searched = num_tokens <= SEARCHED_TOKENS and num_rows <= SEARCHED_ROWS
    block_m = SEARCHED_TOKENS if searched else tile_rows(num_rows, num_experts, x.dtype)
    max_groups = min(num_rows, num_experts)
    up_config = up_config or matmul_config(block_m, max_groups, 2 * inner, hidden_size, x.dtype)
    down_config = down_config or matmul_config(block_m, max_groups, hidden_size, inner, x.dtype)
    ids = expert_ids.reshape(-1)
    if searched:
        tiles = _Tiles("searched", num_rows, max_groups, ids, ids)
    else:
        row_index, cut = sort_rows(ids, num_experts, up_config.block_m, sort or sort_config(num_rows))
        tiles = _Tiles("indexed", num_rows, cut.shape[0], cut, row_index)
    hidden = _product(x, gate_up.reshape(num_experts, 2 * inner, hidden_size), tiles, up_config, gated=True)
    out = _product(hidden, down, tiles, down_config, row_weights=expert_weights.reshape(-1))
    return jnp.sum(out.reshape(*expert_ids.shape, hidden_size), axis=1, dtype=jnp.float32).astype(x.dtype)


def sort_rows(group_ids: jax.Array, num_groups: int, block_m: int, config: SortConfig) -> tuple[jax.Array, jax.Array]:
    """Rows sorted by group and cut into tiles: row_index [M] and tiles [num_tiles, 4] (group, first, end, unused).

    A counting sort in two kernels: XLA's own sort is several, and a cumulative sum of one-hot rows reads and writes
    M * E numbers.
    """
    (num_rows,) = group_ids.shape
    num_blocks = -(-num_rows // (config.chunk * config.chunks))
    num_tiles = max_tiles(num_rows, num_groups, block_m)
    block_e = max(16, power_of_two(num_groups))
    sizes = {"CHUNK": config.chunk, "CHUNKS": config.chunks, "BLOCK_E": block_e}
    launch: dict[str, Any] = {
        "grid": (num_blocks,),
        "num_warps": config.num_warps,
        "num_stages": 1,
        "backend_options": {"ptx_version": PTX_VERSION},
    }
    counts = triton_call(
        group_ids,
        num_rows,
        kernel=kernels.count_kernel,
        out_type=jax.ShapeDtypeStruct((num_blocks, block_e), jnp.int32),
        name="grouped_matmul_count",
        **launch,
        **sizes,
    )
    row_index, tiles = triton_call(
        group_ids,
        counts,
        num_rows,
        num_tiles,
        num_blocks,
        kernel=kernels.sort_kernel,
        out_type=(jax.ShapeDtypeStruct((num_rows,), jnp.int32), jax.ShapeDtypeStruct((num_tiles, 4), jnp.int32)),
        name="grouped_matmul_sort",
        num_groups=num_groups,
        BLOCK_M=block_m,
        **launch,
        **sizes,
    )
    return row_index, tiles


def max_tiles(num_rows: int, num_groups: int, block_m: int) -> int:
    """The most tiles that num_rows rows of num_groups groups can make; each group may end in a part of one."""
    return min(num_rows, (num_rows + num_groups * (block_m - 1)) // block_m)


def _tiles_of_sizes(group_sizes: jax.Array, num_rows: int, block_m: int) -> jax.Array:
    """tiles [num_tiles, 4] of rows that lie group by group; rows past the last group's are one more group."""
    num_groups = group_sizes.shape[0]
    sizes = jnp.concatenate([group_sizes, (num_rows - jnp.sum(group_sizes, dtype=jnp.int32))[None]])
    # Sums over a square of comparisons: a cumsum is several kernels in XLA.
    index = jnp.arange(num_groups + 1, dtype=jnp.int32)
    earlier = index[None] <= index[:, None]
    group_tiles = (sizes + block_m - 1) // block_m
    end = jnp.sum(jnp.where(earlier, sizes[None], 0), axis=1, dtype=jnp.int32)
    end_tile = jnp.sum(jnp.where(earlier, group_tiles[None], 0), axis=1, dtype=jnp.int32)
    tile = jnp.arange(max_tiles(num_rows, num_groups + 1, block_m), dtype=jnp.int32)
    group = jnp.sum(end_tile[None] <= tile[:, None], axis=1, dtype=jnp.int32)
    origin = end - sizes - (end_tile - group_tiles) * block_m
    begin = origin.at[group].get(mode="clip") + tile * block_m
    # Group num_groups is rows of zeros, and one above it is no tile.
    return jnp.stack([group, begin, end.at[group].get(mode="clip"), tile], axis=1)


def _product(
    lhs: jax.Array,
    rhs: jax.Array,
    tiles: _Tiles,
    config: MatmulConfig,
    *,
    gated: bool = False,
    row_weights: jax.Array | None = None,
) -> jax.Array:
    """[num_rows, N] in lhs's dtype; with `gated`, [num_rows, N / 2]."""
    num_groups, n, k = rhs.shape
    out: jax.Array = triton_call(
        lhs,
        rhs,
        lhs if row_weights is None else row_weights,
        tiles.tiles,
        tiles.row_index,
        # Arguments and not compile-time constants: one compiled kernel serves all buckets.
        tiles.num_rows,
        tiles.num_tiles,
        kernel=kernels.grouped_matmul_kernel,
        out_type=jax.ShapeDtypeStruct((tiles.num_rows, n // 2 if gated else n), lhs.dtype),
        grid=(tiles.num_tiles * -(-n // config.block_n),),
        name="grouped_matmul",
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        backend_options={"ptx_version": PTX_VERSION},
        num_groups=num_groups,
        N=n,
        K=k,
        ROWS=tiles.kind,
        ROWS_PER_LHS=tiles.num_rows // lhs.shape[0],
        GATED=gated,
        WEIGHTED=row_weights is not None,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        BLOCK_A=SEARCHED_ROWS,
        TILES_TOGETHER=config.tiles_together,
        # Products of 32-bit values keep their precision instead of being rounded to TF32.
        PRECISION="ieee" if lhs.dtype == jnp.float32 else "tf32",
    )
    return out
