"""What an attention layer does between its products: rotate, write keys and values into the pool, attend."""

from pallas_kernels.cached_attention.api import cached_attention
from pallas_kernels.cached_attention.reference import rotate

__all__ = ["cached_attention", "rotate"]
