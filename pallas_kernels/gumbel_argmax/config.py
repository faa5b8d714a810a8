"""Sizes of the Triton kernel. Reasoned, not tuned."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DrawConfig:
    """How rows are cut up.

    Attributes:
        chunk: tokens a program, a power of two; few enough that one row fills a quarter of the card.
        few: of so many tokens of a chunk at most, a power of two, noise is made for these alone.
        num_warps: warps a program.
    """

    chunk: int = 4096
    few: int = 512
    num_warps: int = 8
