"""Choosing the experts of each token."""

from pallas_kernels.top_k_experts.api import Implementation, top_k_experts

__all__ = ["Implementation", "top_k_experts"]
