"""Sums over the parts of a product and over the devices that hold them."""

from functools import partial

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from jaxserve.sharding import TENSOR_AXIS, tensor_parallel_size
from pallas_kernels.all_reduce import Peers, all_reduce
from pallas_kernels.residual_norm.reference import sum_parts

# Each device's own parts, whole rows, and its own row of the table of peers.
PARTS_SPEC = P(TENSOR_AXIS)


def sum_over_devices(parts: jax.Array, dtype: DTypeLike, mesh: Mesh, peers: Peers | None) -> jax.Array:
    """What `multiply_split` leaves, [parts, T, D], to the product itself.

    Args:
        parts: over several devices, those of each by the first axis.
        dtype: of the product.
        mesh: the devices.
        peers: how they reach each other's memory; None leaves the sum to XLA.

    Returns:
        [T, D] in `dtype`, whole on every device.
    """
    if tensor_parallel_size(mesh) == 1:
        return sum_parts(parts, dtype)
    local = partial(all_reduce, axis_name=TENSOR_AXIS, dtype=dtype)
    summed: jax.Array = jax.shard_map(
        local, mesh=mesh, in_specs=(PARTS_SPEC, P(TENSOR_AXIS)), out_specs=P(), check_vma=False
    )(parts, peers)
    return summed
