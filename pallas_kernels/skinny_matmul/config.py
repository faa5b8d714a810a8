"""Tile sizes of the kernels, and where each is worth having. Measured on an H200 with Llama-3-8B's matrices."""

from dataclasses import dataclass

from pallas_kernels.platform import NUM_SMS

# Where few weights are read at a time there is nothing to win.
MIN_WEIGHTS = 1 << 22
SHARED_BYTES = 232448 - 2048  # that a program may have, less its barriers
# XLA's products of more columns than this are as fast as the Triton kernel.
MAX_SKINNY_COLUMNS = 8192
MAX_STREAM_ROWS = 64  # that the Mosaic GPU kernel takes: wgmma's M
MAX_BLOCK_N = 128
MIN_GATED_TILE = 32  # columns of each matrix
MIN_SCORES_TILE = 96  # of scores: each tile fetches all rows of x
WIDE_BLOCK = 128  # values of each row a block
MIN_STAGES = 4  # with fewer, wide blocks are not worth their width
NARROW_BLOCKS = 0.965  # what a gated product in narrow ones reaches of its speed in wide ones
# Up to so many rows Triton's kernel is faster than Mosaic GPU's where it cuts the summed axis.
FEW_ROWS = 16
# With fewer, programs are too few for the card, and Triton's kernel cuts the summed axis in two, or in four.
NARROW_COLUMNS, VERY_NARROW_COLUMNS = 5000, 2048
# With more columns, some programs have a second tile when others have none. XLA's products are as fast then.
MAX_STREAM_COLUMNS = NUM_SMS * MAX_BLOCK_N
# Products of fewer weights than this, and gated ones of fewer in both matrices, are Triton's up to MAX_TRITON_ROWS: the
# GPU takes about as long for them, and XLA, which asks a Mosaic GPU kernel twice before each step whether it is
# ready, launches a Triton kernel as its own.
MIN_MOSAIC_WEIGHTS, MIN_MOSAIC_GATED_WEIGHTS = 1 << 23, 1 << 25
MAX_TRITON_ROWS = 32
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


@dataclass(frozen=True)
class StreamConfig:
    """How the Mosaic GPU kernel cuts a product.

    Attributes:
        block_n: columns of the result that a program computes at a time.
        num_stages: blocks that its ring holds.
        parts: equal parts that the summed axis is cut into.
        block_d: values of each row a block; a multiple of 64.
    """

    block_n: int
    num_stages: int
    parts: int = 1
    block_d: int = 64


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
    if num_rows > MAX_TRITON_ROWS or columns > MAX_SKINNY_COLUMNS or columns * size < MIN_WEIGHTS:
        return None
    narrow = columns < NARROW_COLUMNS
    if num_rows > 16:
        candidates = [SkinnyConfig(16, 256, 2, 4)]
    elif narrow and size > 8192:
        candidates = [SkinnyConfig(32, 128, 2, 6, 2)]
    elif columns < VERY_NARROW_COLUMNS:
        candidates = [SkinnyConfig(64, 128, 4, 5, 4)]
    else:
        candidates = [SkinnyConfig(64, 128, 4, 5, 2)] if narrow else [SkinnyConfig(32, 256, 4, 4)]
    return next((c for c in candidates if size % (c.parts * c.block_d) == 0), None)


def stream_config(num_rows: int, columns: int, size: int, *, one_part: bool = False) -> StreamConfig | None:
    """How the Mosaic GPU kernel computes [T, D] times [N, D]; None where it does not pay or does not fit.

    Args:
        num_rows: T.
        columns: N.
        size: D.
        one_part: the reader does not sum parts on its way, so that they would cost it a kernel of its own.
    """
    if num_rows > MAX_STREAM_ROWS or columns % 8:
        return None
    if columns > MAX_STREAM_COLUMNS or columns * size < MIN_WEIGHTS:
        return None
    few = num_rows <= FEW_ROWS and columns < NARROW_COLUMNS
    if (few or columns * size < MIN_MOSAIC_WEIGHTS) and skinny_config(num_rows, columns, size) is not None:
        return None
    if one_part:
        config = one_tile_each(columns, parts=1, block_d=128)
    elif size > 8192:
        config = one_tile_each(columns, parts=4, block_d=64)
    else:
        config = one_tile_each(columns, parts=2, block_d=128)
    return config if size % (config.parts * config.block_d) == 0 else None


def gated_config(num_rows: int, columns: int, size: int) -> StreamConfig | None:
    """How the Mosaic GPU kernel computes a gated product of [T, D] with [2, F, D]; None where it does not pay or fit.

    Args:
        num_rows: T.
        columns: F.
        size: D.
    """
    if num_rows > MAX_STREAM_ROWS or columns % 8 or size % 64 or 2 * columns * size < MIN_WEIGHTS:
        return None
    if gated_triton_config(num_rows, columns, size) is not None:
        return None
    # Of equals the widest: each tile fetches all rows of x.
    tiles = (_gated_tile(tile, size) for tile in range(MIN_GATED_TILE, MAX_BLOCK_N + 1, 8))
    config = max(tiles, key=lambda config: (round(_busy(config, columns), 2), config.block_n))
    # XLA's product and its activation are faster then.
    return None if num_rows <= FEW_ROWS and config.block_d < WIDE_BLOCK else config


def gated_triton_config(num_rows: int, columns: int, size: int, *, any_size: bool = False) -> SkinnyConfig | None:
    """How the Triton kernel computes a gated product of [T, D] with [2, F, D]; None where it does not pay or fit.

    Args:
        num_rows: T.
        columns: F.
        size: D.
        any_size: also of more weights than are better left to the Mosaic GPU kernel.
    """
    config = SkinnyConfig(32, 256, 4, 3) if num_rows <= FEW_ROWS else SkinnyConfig(32, 128, 4, 6)
    if num_rows > MAX_TRITON_ROWS or size % config.block_d:
        return None
    weights = 2 * columns * size
    return config if MIN_WEIGHTS <= weights and (any_size or weights < MIN_MOSAIC_GATED_WEIGHTS) else None


def parts_at_once(num_rows: int, columns: int, size: int, *, one_part: bool) -> int:
    """Into how many parts of D a product reads its weight [N, D] at the same time.

    Args:
        num_rows: T.
        columns: N, of both matrices if the product is gated.
        size: D.
        one_part: as of `skinny_matmul`.
    """
    config = stream_config(num_rows, columns, size, one_part=one_part) or skinny_config(num_rows, columns, size)
    return 1 if config is None else config.parts


def tiled_gated_config(num_rows: int, columns: int, size: int) -> TiledConfig | None:
    """How to compute a gated product of [T, D] of many rows with [2, F, D]; None where it does not pay or does not fit.

    Args:
        num_rows: T.
        columns: F.
        size: D.
    """
    if num_rows <= MAX_STREAM_ROWS or columns % 8 or size % 64 or 2 * columns * size < MIN_WEIGHTS:
        return None
    tiles = range(MIN_GATED_TILE, MAX_BLOCK_N + 1, 16)
    tile = min(tiles, key=lambda tile: _tiled_clocks(tile, num_rows, columns, size))
    stages = (SHARED_BYTES - 2 * TILE_ROWS * tile) // (2 * 64 * (TILE_ROWS + 2 * tile))
    return TiledConfig(tile, min(6, stages))


def _tiled_clocks(tile: int, num_rows: int, columns: int, size: int) -> float:
    """What a program takes for its tiles of so many columns."""
    rounds = -(-(-(-num_rows // TILE_ROWS) * -(-columns // tile)) // NUM_SMS)
    multiplying, fetching = TILE_ROWS * 2 * tile / MACS_A_CLOCK, 2 * (TILE_ROWS + 2 * tile) / BYTES_A_CLOCK
    return rounds * (size * max(multiplying, fetching) + CLOCKS_A_TILE)


def scores_config(num_rows: int, columns: int, size: int) -> StreamConfig | None:
    """How the Mosaic GPU kernel computes [T, D] times [V, D] in float32; None where it does not pay or does not fit.

    Args:
        num_rows: T.
        columns: V, of a vocabulary or a device's share of it: many tiles for each program.
        size: D.
    """
    if num_rows > MAX_STREAM_ROWS or columns % 8 or size % WIDE_BLOCK or columns * size < MIN_WEIGHTS:
        return None
    widths = range(MIN_SCORES_TILE, MAX_BLOCK_N + 1, 16)
    shared = {block_n: SHARED_BYTES - MAX_STREAM_ROWS * block_n * 4 for block_n in widths}
    tiles = [
        StreamConfig(block_n, left // (2 * WIDE_BLOCK * (MAX_STREAM_ROWS + block_n)), block_d=WIDE_BLOCK)
        for block_n, left in shared.items()
    ]
    # Of equals the widest.
    return max(tiles, key=lambda config: (round(_busy_programs(config.block_n, columns), 2), config.block_n))


def _gated_tile(tile: int, size: int) -> StreamConfig:
    """Tiles of so many columns of each matrix, in blocks as wide as a ring of MIN_STAGES allows."""
    # The result's tile, and that of the matrix that is not the gate's.
    shared = SHARED_BYTES - MAX_STREAM_ROWS * tile * (2 + 4)
    stages = {block_d: shared // (2 * block_d * (MAX_STREAM_ROWS + 2 * tile)) for block_d in (64, WIDE_BLOCK)}
    block_d = WIDE_BLOCK if stages[WIDE_BLOCK] >= MIN_STAGES and size % WIDE_BLOCK == 0 else 64
    return StreamConfig(2 * tile, min(12, stages[block_d]), block_d=block_d)


def _busy(config: StreamConfig, columns: int) -> float:
    """`_busy_programs` of a gated product's tiles, less what narrow blocks cost."""
    busy = _busy_programs(config.block_n // 2, columns)
    return busy if config.block_d == WIDE_BLOCK else NARROW_BLOCKS * busy


def _busy_programs(tile: int, columns: int) -> float:
    """The part of the time that programs have a tile to compute."""
    rounds = -(-columns // (tile * NUM_SMS))
    return columns / (rounds * tile * NUM_SMS)


def one_tile_each(columns: int, *, parts: int, block_d: int) -> StreamConfig:
    """Tiles so wide that each program gets one, if they are not too many, and the stages that shared memory holds, at
    most 12."""
    # Two warpgroups share the columns, each a multiple of 8.
    block_n = min(MAX_BLOCK_N, -(-parts * columns // (NUM_SMS * 16)) * 16)
    result = MAX_STREAM_ROWS * block_n * (2 if parts == 1 else 4)
    stage = 2 * block_d * (MAX_STREAM_ROWS + block_n)
    return StreamConfig(block_n, min(12, (SHARED_BYTES - result) // stage), parts, block_d)
