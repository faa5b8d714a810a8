"""The operations by XLA's collectives, which run on any devices."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.residual_norm.reference import sum_parts


def all_reduce_reference(parts: jax.Array, dtype: DTypeLike, axis_name: str) -> jax.Array:
    """See `all_reduce`."""
    summed: jax.Array = jax.lax.psum(sum_parts(parts, dtype), axis_name)
    return summed


def argmax_over_devices_reference(values: jax.Array, ids: jax.Array, axis_name: str) -> jax.Array:
    """See `argmax_over_devices`."""
    all_values, all_ids = jax.lax.all_gather((values, ids), axis_name)
    # The first device of those with the largest value: ids rise from device to device.
    winner = jnp.argmax(all_values, axis=0)
    chosen: jax.Array = jnp.take_along_axis(all_ids, winner[None], axis=0)[0]
    return chosen


def all_to_all_reference(values: jax.Array, axis_name: str) -> jax.Array:
    """See `all_to_all`."""
    shares: jax.Array = jax.lax.all_to_all(values, axis_name, split_axis=0, concat_axis=1, tiled=True)
    return shares
