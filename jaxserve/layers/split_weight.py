"""A weight and how it lies on the devices, for those who are not its layer."""

from dataclasses import dataclass

import jax
from jax.sharding import PartitionSpec

from jaxserve.sharding import TENSOR_AXIS


@dataclass(frozen=True)
class SplitWeight:
    """A weight whose outputs are split over the devices.

    Attributes:
        weight: [..., D].
        split_axis: by which axis.
    """

    weight: jax.Array
    split_axis: int

    @property
    def spec(self) -> PartitionSpec:
        """How it is split, for `jax.shard_map`."""
        return PartitionSpec(*[None] * self.split_axis, TENSOR_AXIS)
