"""Tile sizes of the Triton kernels for each shape. Reasoned, not measured yet."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.platform import NUM_SMS

# Batches of so many tokens and rows at most take no sorting: a tile has room for all of the tokens.
SEARCHED_TOKENS = 16
SEARCHED_ROWS = 128


@dataclass(frozen=True)
class MatmulConfig:
    """How one grouped product is computed.

    Attributes:
        block_m: rows a program. At 64 and more 16-bit products use wgmma.
        block_n: rows of a group's matrix a program.
        block_k: columns of both a loop iteration.
        num_warps: warps a program.
        num_stages: depth of the software pipeline; all stages must fit in shared memory.
        tiles_together: tiles of rows that run side by side over the same part of a matrix.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    tiles_together: int = 8


@dataclass(frozen=True)
class SortConfig:
    """How rows are sorted by group.

    Attributes:
        chunk: rows that a program handles at once.
        chunks: how many times it does.
        num_warps: warps a program.
    """

    chunk: int
    chunks: int
    num_warps: int = 8


def tile_rows(num_rows: int, num_groups: int, dtype: DTypeLike) -> int:
    """Rows of a tile: about twice what a group has on average, so that most matrices are read by one tile only."""
    average = -(-num_rows // min(num_groups, num_rows))
    largest = 32 if jnp.dtype(dtype).itemsize == 4 else 128
    return min(largest, max(16, power_of_two(2 * average)))


def matmul_config(block_m: int, max_groups: int, n: int, k: int, dtype: DTypeLike) -> MatmulConfig:
    """Tiles of a product with matrices [n, k].

    Args:
        block_m: rows of a tile.
        max_groups: groups that can have rows.
        n: rows of a matrix.
        k: columns of a matrix.
        dtype: of both sides.
    """
    if jnp.dtype(dtype).itemsize == 4:
        return MatmulConfig(block_m, 64, 32, num_warps=4 if block_m == 16 else 8, num_stages=2)
    block_k = _divisor(k, 128 if block_m == 16 else 64)
    if block_m == 16:
        # Few groups leave few programs: smaller ones then keep all of the card reading.
        block_n = 64 if max_groups * n >= 64 * 2 * NUM_SMS else 32
        return MatmulConfig(16, block_n, block_k, num_warps=4, num_stages=4)
    if block_m < 128:
        return MatmulConfig(block_m, 128, block_k, num_warps=4, num_stages=4)
    return MatmulConfig(128, 256, block_k, num_warps=8, num_stages=3)


def sort_config(num_rows: int) -> SortConfig:
    """Chunks of rows, so many that each program sums at most 128 counts a group."""
    return SortConfig(chunk=64, chunks=-(-num_rows // (64 * 128)))


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << (n - 1).bit_length()


def _divisor(k: int, largest: int) -> int:
    """The largest tile width that divides k, for loads without a mask; `largest` halved once if none does."""
    return next((size for size in (128, 64, 32) if size <= largest and k % size == 0), 64)
