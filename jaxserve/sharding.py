"""The device mesh, and the table from logical axes to mesh axes.

Weights and activations name their axes by what they mean; this module alone decides which of them are split.
"""

from collections.abc import Sequence
from types import MappingProxyType

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxserve.errors import ConfigError

TENSOR_AXIS = "tensor"

# Logical axis -> mesh axis; None is held whole on every device. Megatron's scheme (Shoeybi et al. 2019): the first
# product of attention and of the feed-forward is split over its outputs, the second over its inputs.
AXIS_RULES: MappingProxyType[str, str | None] = MappingProxyType(
    {
        "vocab": TENSOR_AXIS,
        "embed": None,
        "norm": None,  # the norms of hidden states
        "heads": TENSOR_AXIS,  # query heads, flattened with their head_dim as checkpoints store them
        "kv_heads": TENSOR_AXIS,
        "group": None,  # query heads of one kv head, or those with its key and value
        "head_dim": None,
        "mlp": TENSOR_AXIS,
        "experts": None,  # each device holds a part of every one
        "gate_up": None,
        "position": None,
        "cos_sin": None,
        "device": TENSOR_AXIS,  # an entry for each
        "address": None,
        "replicated": None,
    }
)


def make_mesh(tensor_parallel_size: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of one axis, `tensor`.

    Args:
        tensor_parallel_size: number of devices that each hold a part of every layer.
        devices: those to take the first ones of; all of this process if None.

    Raises:
        ConfigError: there are fewer devices than asked for.
    """
    available = jax.local_devices() if devices is None else list(devices)
    if tensor_parallel_size > len(available):
        raise ConfigError(
            f"tensor_parallel_size is {tensor_parallel_size}, but there are {len(available)} devices of kind "
            f"{available[0].platform}; lower it or make more devices visible"
        )
    return Mesh(np.array(available[:tensor_parallel_size]), (TENSOR_AXIS,), axis_types=(AxisType.Auto,))


def tensor_parallel_size(mesh: Mesh) -> int:
    """Number of devices along the mesh's tensor axis."""
    return int(mesh.shape[TENSOR_AXIS])


def partition_spec(axes: Sequence[str]) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes."""
    return PartitionSpec(*(AXIS_RULES[axis] for axis in axes))


def named_sharding(mesh: Mesh, axes: Sequence[str] = ()) -> NamedSharding:
    """The sharding of an array with these logical axes; with none, whole on every device."""
    return NamedSharding(mesh, partition_spec(axes))


def constrain(x: jax.Array, mesh: Mesh, axes: Sequence[str] = ()) -> jax.Array:
    """Inside a trace: hold `x` to the sharding of these logical axes; with none, whole on every device."""
    constrained: jax.Array = jax.lax.with_sharding_constraint(x, named_sharding(mesh, axes))
    return constrained
