"""Products of rows with the matrix of their group, as routed experts need (MegaBlocks, Gale et al. 2022)."""

from pallas_kernels.grouped_matmul.api import Implementation, expert_mlp, grouped_matmul

__all__ = ["Implementation", "expert_mlp", "grouped_matmul"]
