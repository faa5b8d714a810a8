"""Arrays in the host's memory that the devices reach by themselves, so that no transfer has to be begun for them."""

import ctypes
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def host_sharding(mesh: Mesh) -> NamedSharding:
    """Page-locked host memory of its own for each device, all of the same content."""
    return NamedSharding(mesh, PartitionSpec(), memory_kind="pinned_host")


@dataclass(frozen=True)
class HostArray:
    """An array that a step reads where the host has written it.

    Attributes:
        array: [size] int32, as a step takes it.
        copies: [size] int32 each, the memory of each device.
    """

    array: jax.Array
    copies: tuple[np.ndarray, ...]

    @classmethod
    def zeros(cls, size: int, sharding: NamedSharding) -> "HostArray":
        """Zeros, with a `host_sharding`."""
        array = jax.make_array_from_callback((size,), sharding, lambda _: np.zeros(size, np.int32))
        array.block_until_ready()
        return cls(array, tuple(_view(shard.data) for shard in array.addressable_shards))

    def write(self, values: np.ndarray) -> None:
        """Take `values` [size] int32. No step in flight may be reading it."""
        for copy in self.copies:
            copy[:] = values


class HostArrays:
    """HostArrays that steps take by size, and that are used again once those steps have ended."""

    def __init__(self, sharding: NamedSharding) -> None:
        self._sharding = sharding
        self._free: dict[int, list[HostArray]] = {}

    def take(self, values: np.ndarray) -> HostArray:
        """One that holds `values` [size] int32."""
        free = self._free.get(values.size)
        taken = free.pop() if free else HostArray.zeros(values.size, self._sharding)
        taken.write(values)
        return taken

    def give_back(self, array: HostArray) -> None:
        """One that no step will read any more."""
        self._free.setdefault(array.array.size, []).append(array)


def read(array: jax.Array) -> np.ndarray:
    """What a step wrote to an array [size] int32 with a `host_sharding`. Waits until all devices have ended the step.

    The memory of the first device itself: it changes once the array is donated.

    Raises:
        jax.errors.JaxRuntimeError: the step failed.
    """
    return _view(array.block_until_ready().addressable_data(0))


def _view(shard: jax.Array) -> np.ndarray:
    """The memory of an array that lies on one device. NumPy's own way would keep it from being donated."""
    memory = (ctypes.c_int32 * shard.size).from_address(shard.unsafe_buffer_pointer())
    return np.ctypeslib.as_array(memory)
