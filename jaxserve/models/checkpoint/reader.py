"""What a loader needs of a checkpoint, whatever its format."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxserve.errors import CheckpointError
from jaxserve.models.weights import CheckpointTensor

# Buffers that older checkpoints hold beside the weights; they follow from the config.
_IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".masked_bias", ".attn.bias", ".attention.bias")
_FLOATING = frozenset({"float32", "bfloat16", "float16"})


@dataclass(frozen=True)
class StoredTensor:
    """What a checkpoint says of one tensor.

    Attributes:
        file: where it lies, for errors.
        shape: its shape.
        dtype: the name of its dtype.
    """

    file: str
    shape: tuple[int, ...]
    dtype: str


class OnProgress(Protocol):
    """Called while loading or converting, for a progress bar."""

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` bytes are where they should be."""
        ...


class TensorReader(Protocol):
    """A checkpoint opened for reading."""

    @property
    def source(self) -> str:
        """The file or directory that lists the tensors, for errors."""
        ...

    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor it holds, by name."""
        ...

    def read(self, tensor: CheckpointTensor, mesh: Mesh, dtype: DTypeLike) -> jax.Array:
        """Load one tensor, split over the mesh by its axes and padded to its `loaded_shape`."""
        ...


def check_tensors(reader: TensorReader, expected: Iterable[CheckpointTensor], *, tied_head: str | None) -> None:
    """Compare what a checkpoint holds with what the model needs.

    Args:
        reader: the checkpoint.
        expected: the tensors of the model.
        tied_head: name of the output head where that is the embedding table; a copy of it in the checkpoint is passed
            over.

    Raises:
        CheckpointError: a tensor is missing, has another shape, is not of a floating-point dtype, or is not the
            model's; the message names the file and the tensor.
    """
    stored = reader.tensors()
    names = set()
    for tensor in expected:
        names.add(tensor.name)
        found = stored.get(tensor.name)
        if found is None:
            raise CheckpointError(f"{reader.source}: tensor {tensor.name} is missing")
        if found.shape != tensor.shape:
            raise CheckpointError(
                f"{found.file}: tensor {tensor.name} has shape {list(found.shape)}, but config.json makes it "
                f"{list(tensor.shape)}"
            )
        if found.dtype not in _FLOATING:
            raise CheckpointError(
                f"{found.file}: tensor {tensor.name} is of dtype {found.dtype}; float32, bfloat16 and float16 are "
                "supported"
            )
    for name, found in stored.items():
        if name in names or name.endswith(_IGNORED_SUFFIXES) or name == f"{tied_head}.weight":
            continue
        raise CheckpointError(f"{found.file}: tensor {name} is not part of the model that config.json describes")
