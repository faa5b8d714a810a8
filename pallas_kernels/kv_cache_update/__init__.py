"""Writing a step's keys and values into the pool of pages."""

from pallas_kernels.kv_cache_update.api import kv_cache_update

__all__ = ["kv_cache_update"]
