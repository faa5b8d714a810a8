"""Parameters that are described before they are loaded."""

from typing import cast

import jax
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxserve.sharding import named_sharding


def abstract_param(mesh: Mesh, shape: tuple[int, ...], axes: tuple[str, ...], dtype: DTypeLike) -> nnx.Param[jax.Array]:
    """A parameter that takes no memory: its value is a shape, a dtype and a sharding until arrays are merged in.

    Args:
        mesh: the devices it will lie on.
        shape: its global shape.
        axes: the logical axis of each dimension (`jaxserve.sharding.AXIS_RULES`), kept as the metadata `axes`.
        dtype: of its elements.
    """
    value = jax.ShapeDtypeStruct(shape, dtype, sharding=named_sharding(mesh, axes))
    # Flax would otherwise place the value on the mesh of its own context; here the loaders do that.
    return nnx.Param(cast(jax.Array, value), eager_sharding=False, axes=axes)
