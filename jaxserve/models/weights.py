"""What the tensors of a checkpoint are, and how a parameter is made of them.

A checkpoint holds Hugging Face tensors, one a product or several packed in one. A parameter may join several of them
and be laid out for the mesh: each `WeightSource` says which tensors it needs, how they are split while loading, and
where in the parameter they go, which happens on the devices (`jaxserve.models.places`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax

ParamPath = tuple[str | int, ...]
Place = Callable[..., jax.Array]


@dataclass(frozen=True)
class CheckpointTensor:
    """One tensor as checkpoints store it.

    Attributes:
        name: its Hugging Face name.
        shape: its shape there.
        axes: the logical axis of each dimension, by which it is split while loading.
        rows: first dimension after loading, if rows of zeros are added; else that of `shape`.
        scale: standard deviation of the values that the load format `dummy` gives it; None for ones (norms).
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    rows: int | None = None
    scale: float | None = 0.02

    @property
    def loaded_shape(self) -> tuple[int, ...]:
        """The shape after loading, padding included."""
        return self.shape if self.rows is None else (self.rows, *self.shape[1:])


@dataclass(frozen=True)
class WeightSource:
    """Where one parameter comes from.

    Attributes:
        tensors: what it is made of.
        places: for each tensor, a traceable function of the parameter so far and the tensor that puts it in its place;
            none if the parameter is the one tensor as it is. Functions that are equal are compiled once.
        indices: for each tensor, a number that its function takes as third argument (which expert it is of), so that
            one compiled function serves them all; none if they take two.
    """

    tensors: tuple[CheckpointTensor, ...]
    places: tuple[Place, ...] = ()
    indices: tuple[int, ...] = ()
