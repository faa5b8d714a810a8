"""The activation between the products of a gated feed-forward layer, in one pass."""

from pallas_kernels.swiglu.api import swiglu

__all__ = ["swiglu"]
