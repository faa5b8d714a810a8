"""Random weights of a model's real shapes, for measuring without a checkpoint."""

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxserve.models.checkpoint.reader import StoredTensor
from jaxserve.models.weights import CheckpointTensor
from jaxserve.sharding import named_sharding


class DummyReader:
    """Draws each tensor on the devices, each device its own part; nothing passes through the host.

    The values depend on the seed and the tensor's name alone, so they are the same on every mesh.

    Args:
        seed: of the values.
    """

    source = "dummy weights"

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def tensors(self) -> Mapping[str, StoredTensor]:
        """None: whatever is asked for is drawn."""
        return {}

    def read(self, tensor: CheckpointTensor, mesh: Mesh, dtype: DTypeLike) -> jax.Array:
        """Draw a tensor: normal values of its scale, ones for norms."""
        sharding = named_sharding(mesh, tensor.axes)
        if tensor.scale is None:
            ones: jax.Array = jnp.ones(tensor.loaded_shape, dtype, device=sharding)
            return ones
        seed, name_hash = np.uint32(self._seed % 2**32), np.uint32(zlib.crc32(tensor.name.encode()))
        draw = jax.jit(_normal, static_argnums=(2, 3, 4, 5), out_shardings=sharding)
        drawn: jax.Array = draw(seed, name_hash, tensor.shape, tensor.loaded_shape, tensor.scale, np.dtype(dtype))
        return drawn


def _normal(
    seed: np.uint32 | jax.Array,
    name_hash: np.uint32 | jax.Array,
    shape: tuple[int, ...],
    padded: tuple[int, ...],
    scale: float,
    dtype: DTypeLike,
) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(seed), name_hash)
    values = (jax.random.normal(key, shape, jnp.float32) * scale).astype(dtype)
    padded_values: jax.Array = jnp.pad(values, [(0, p - s) for p, s in zip(padded, shape, strict=True)])
    return padded_values
