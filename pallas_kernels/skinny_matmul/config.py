"""Tile sizes of the kernels, and where each is worth having. Measured with the matrices of Llama 3 8B and 70B."""

from collections.abc import Sequence
from dataclasses import dataclass

from pallas_kernels.platform import NUM_SMS

# Where few weights are read at a time there is nothing to win.
MIN_WEIGHTS = 1 << 22
# With more rows XLA's products are as fast, and gated ones are another kernel's.
MAX_SKINNY_ROWS = 64
# With fewer programs than this the card is not full, and the summed axis is cut in two, or in four.
MIN_PROGRAMS = 80
MAX_PARTS = 4
# Kernels of more rows, in Mosaic GPU.
SHARED_BYTES = 232448 - 2048  # that a program may have, less its barriers
MIN_GATED_TILE, MAX_GATED_TILE = 32, 128  # columns of each matrix
TILE_ROWS = 128  # of the kernel for gated products of many rows
# What a multiprocessor does in a clock, of such a tile: multiplications and additions that it reaches of 2,048, and
# bytes that arrive from the cache; and clocks that each tile takes besides. Estimates, good enough to choose by.
MACS_A_CLOCK, BYTES_A_CLOCK, CLOCKS_A_TILE = 1860, 47, 1500


@dataclass(frozen=True)
class SkinnyConfig:
    """How a product of few rows is cut.

    Attributes:
        block_n: rows of the weight (columns of the result) a program.
        block_d: values of each row a loop iteration.
        num_warps: warps a program.
        num_stages: depth of the software pipeline.
        parts: equal parts that the summed axis is cut into, so that there are programs enough to fill the card.
    """

    block_n: int
    block_d: int
    num_warps: int
    num_stages: int
    parts: int = 1

    def shared_bytes(self, num_rows: int, num_weights: int = 1) -> int:
        """Of a program's shared memory: its blocks of x and of each weight, of 16 bits."""
        return self.num_stages * 2 * self.block_d * (max(16, num_rows) + num_weights * self.block_n)


@dataclass(frozen=True)
class TiledConfig:
    """How the kernel for gated products of many rows cuts them.

    Attributes:
        tile_columns: columns of the result that a program computes at a time, a multiple of 8.
        num_stages: blocks that its ring holds.
    """

    tile_columns: int
    num_stages: int


def skinny_config(num_rows: int, columns: int, size: int) -> SkinnyConfig | None:
    """How to compute [T, D] times [N, D]; None where XLA's product is as fast or the kernel does not fit.

    Args:
        num_rows: T.
        columns: N.
        size: D.
    """
    if num_rows > MAX_SKINNY_ROWS or columns * size < MIN_WEIGHTS:
        return None
    parts = 1
    while parts < MAX_PARTS and parts * columns < MIN_PROGRAMS * 64:
        parts *= 2
    # Fewer parts where D has not so many.
    fitting = (p for p in (parts, parts // 2, 1) if p)
    cuts = [SkinnyConfig(64, d, 4, stages, p) for p in fitting for d, stages in ((128, 5), (64, 8))]
    return _first_that_divides(cuts, size)


def gated_config(num_rows: int, columns: int, size: int) -> SkinnyConfig | None:
    """How to compute a gated product of [T, D] with [2, F, D]; None where the kernel does not pay or does not fit.

    Args:
        num_rows: T.
        columns: F.
        size: D.
    """
    if num_rows > MAX_SKINNY_ROWS or 2 * columns * size < MIN_WEIGHTS:
        return None
    return _first_that_divides((SkinnyConfig(64, 128, 4, 4), SkinnyConfig(64, 64, 4, 6)), size)


def scores_config(num_rows: int, columns: int, size: int) -> SkinnyConfig | None:
    """How to compute [T, D] times [V, D] in float32; None where the kernel does not pay or does not fit.

    Args:
        num_rows: T.
        columns: V, of a vocabulary or a device's share of it.
        size: D.
    """
    if num_rows > MAX_SKINNY_ROWS or columns * size < MIN_WEIGHTS:
        return None
    return _first_that_divides((SkinnyConfig(128, 128, 8, 4), SkinnyConfig(128, 64, 8, 5)), size)


def _first_that_divides(candidates: Sequence[SkinnyConfig], size: int) -> SkinnyConfig | None:
    return next((c for c in candidates if size % (c.parts * c.block_d) == 0), None)


def tiled_gated_config(num_rows: int, columns: int, size: int) -> TiledConfig | None:
    """How to compute a gated product of [T, D] of many rows with [2, F, D]; None where it does not pay or does not fit.

    Args:
        num_rows: T.
        columns: F.
        size: D.
    """
    if num_rows <= MAX_SKINNY_ROWS or columns % 8 or size % 64 or 2 * columns * size < MIN_WEIGHTS:
        return None
    tiles = range(MIN_GATED_TILE, MAX_GATED_TILE + 1, 16)
    tile = min(tiles, key=lambda tile: _tiled_clocks(tile, num_rows, columns, size))
    stages = (SHARED_BYTES - 2 * TILE_ROWS * tile) // (2 * 64 * (TILE_ROWS + 2 * tile))
    return TiledConfig(tile, min(6, stages))


def _tiled_clocks(tile: int, num_rows: int, columns: int, size: int) -> float:
    """What a program takes for its tiles of so many columns."""
    rounds = -(-(-(-num_rows // TILE_ROWS) * -(-columns // tile)) // NUM_SMS)
    multiplying, fetching = TILE_ROWS * 2 * tile / MACS_A_CLOCK, 2 * (TILE_ROWS + 2 * tile) / BYTES_A_CLOCK
    return rounds * (size * max(multiplying, fetching) + CLOCKS_A_TILE)
