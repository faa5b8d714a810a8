"""The least logit that min_p, top_k and top_p keep, without sorting the vocabulary."""

from pallas_kernels.sampling_floor.api import sampling_floor

__all__ = ["sampling_floor"]
