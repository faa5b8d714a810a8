"""The KV pool's array and its size."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from jaxserve.errors import ConfigError
from jaxserve.layers.attention import KV_PAGES_SPEC

# What the CPU gives the pool when nobody says: enough for tests and small models, and no surprise for the machine.
CPU_POOL_BYTES = 1 << 30
# Left over for the allocator's rounding and the small arrays of steps in flight.
MEMORY_MARGIN_BYTES = 256 << 20
# Slots of all layers are counted in int32. Padding's lie past them, in the last layer at up to twice their number plus
# the tokens of a step, for which two million are left.
MAX_SLOTS = 2**30 - 2**20


@dataclass(frozen=True)
class KVPoolSpec:
    """Shape of the pool.

    Attributes:
        num_layers: L.
        num_pages: P, pages that each layer has, page 0 (never handed out) included.
        page_size: tokens a page.
        num_kv_heads: K over all devices, replicated heads counted.
        head_dim: H.
        dtype: of keys and values.

    Raises:
        ConfigError: more than MAX_SLOTS tokens times layers.
    """

    num_layers: int
    num_pages: int
    page_size: int
    num_kv_heads: int
    head_dim: int
    dtype: jnp.dtype

    def __post_init__(self) -> None:
        most = most_pages(self.num_layers, self.page_size)
        if self.num_pages > most:
            raise ConfigError(
                f"a KV pool of {self.num_pages} pages of {self.page_size} tokens in {self.num_layers} layers is larger "
                f"than slots can be counted in 32 bits; lower num_pages to at most {most}"
            )

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """[L * P, 2, page_size, K, H], page p of layer l at l * P + p: each array more would cost the host time in
        every step."""
        return (self.num_layers * self.num_pages, 2, self.page_size, self.num_kv_heads, self.head_dim)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page in all layers, over all devices."""
        slot = 2 * self.num_kv_heads * self.head_dim * jnp.dtype(self.dtype).itemsize
        return self.num_layers * self.page_size * slot

    def abstract(self, mesh: Mesh) -> jax.ShapeDtypeStruct:
        """The pool's array by shape and sharding, for compiling before it exists."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype, sharding=NamedSharding(mesh, KV_PAGES_SPEC))

    def allocate(self, mesh: Mesh) -> jax.Array:
        """The pool, zeroed, each device making its own part."""
        sharding = NamedSharding(mesh, KV_PAGES_SPEC)
        zeros: jax.Array = jax.jit(partial(jnp.zeros, self.shape, self.dtype), out_shardings=sharding)()
        return zeros


def most_pages(num_layers: int, page_size: int) -> int:
    """Pages that a pool can have, however much memory there is."""
    return MAX_SLOTS // (num_layers * page_size)


def pages_in_memory(*, page_bytes: int, num_devices: int, limit_bytes: int, used_bytes: int, step_bytes: int) -> int:
    """How many pages fit each device's memory beside the weights that are there and the largest step's temporaries.

    Rounded down by less than one part in 128: steps are compiled for a number of pages, and those that were kept shall
    do though a little more or less memory is free than at the last start.

    Args:
        page_bytes: bytes of one page over all devices.
        num_devices: devices that share each page.
        limit_bytes: memory of a device that this process may take (gpu_memory_utilization of it).
        used_bytes: what the fullest device holds already, the weights above all.
        step_bytes: temporaries of the largest step on a device.

    Raises:
        ConfigError: nothing is left for the pool.
    """
    pages = (limit_bytes - used_bytes - step_bytes - MEMORY_MARGIN_BYTES) * num_devices // page_bytes
    if pages < 2:
        raise ConfigError(
            f"no memory is left for the KV pool: of the {limit_bytes / 2**30:.1f} GiB a device that "
            f"gpu_memory_utilization allows, weights take {used_bytes / 2**30:.1f} GiB and the largest step "
            f"{step_bytes / 2**30:.1f} GiB; raise gpu_memory_utilization or tensor_parallel_size, or lower "
            "max_num_batched_tokens or max_num_seqs"
        )
    granule = 1 << max(0, pages.bit_length() - 8)
    return pages // granule * granule
