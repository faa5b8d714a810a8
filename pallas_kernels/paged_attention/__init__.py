"""Attention of ragged queries over a shared pool of pages (PagedAttention, Kwon et al. 2023)."""

from pallas_kernels.paged_attention.api import ScoreOptions, paged_attention

__all__ = ["ScoreOptions", "paged_attention"]
