"""Tile sizes of the Triton kernels."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SkinnyConfig:
    """How a product of few rows is cut.

    Attributes:
        block_n: rows of the weight (columns of the result) a program.
        block_d: values of each row a loop iteration.
        num_warps: warps a program.
        num_stages: depth of the software pipeline.
        parts: equal parts that the summed axis is cut into; more than one leaves their sum to the caller.
    """

    block_n: int
    block_d: int
    num_warps: int
    num_stages: int
    parts: int = 1
