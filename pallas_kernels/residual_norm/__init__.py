"""Adding to the residual stream and normalising it, in one pass."""

from pallas_kernels.residual_norm.api import NormKind, residual_norm

__all__ = ["NormKind", "residual_norm"]
