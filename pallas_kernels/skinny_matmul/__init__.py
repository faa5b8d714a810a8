"""Products of few rows, as fast as the weights can be read, and gated products of any number of rows."""

from pallas_kernels.skinny_matmul.api import gated_matmul, scores_matmul, skinny_matmul

__all__ = ["gated_matmul", "scores_matmul", "skinny_matmul"]
