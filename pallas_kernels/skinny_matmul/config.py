"""Tile sizes of the Triton kernel, and where it is worth having. Measured on an H200 with Llama-3-8B's matrices."""

from dataclasses import dataclass

# Where few weights are read at a time there is nothing to win.
MIN_WEIGHTS = 1 << 22


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


def skinny_config(num_rows: int, columns: int, size: int) -> SkinnyConfig | None:
    """How to compute [T, D] times [N, D]; None where XLA's product is as fast or the kernel does not fit.

    Args:
        num_rows: T.
        columns: N.
        size: D.
    """
    if num_rows > 32 or columns * size < MIN_WEIGHTS:
        return None
    # Fewer columns than this leave programs too few for the card, and D is cut.
    narrow = columns < 5000
    if num_rows > 16:
        candidates = [SkinnyConfig(64, 128, 2, 4, 4)] if narrow else [SkinnyConfig(16, 256, 2, 4)]
    elif narrow and size > 8192:
        candidates = [SkinnyConfig(32, 128, 2, 6, 2)]
    else:
        candidates = [SkinnyConfig(64, 128, 4, 5, 2)] if narrow else [SkinnyConfig(32, 256, 4, 4)]
    return next((c for c in candidates if size % (c.parts * c.block_d) == 0), None)
