"""Loading a Hugging Face directory: model.safetensors, or several files with an index."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxserve.errors import CheckpointError
from jaxserve.models.checkpoint.reader import StoredTensor
from jaxserve.models.checkpoint.safetensors_file import SafetensorsFile
from jaxserve.models.config_file import read_json
from jaxserve.models.weights import CheckpointTensor
from jaxserve.sharding import named_sharding

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_DEVICE_ALIGNMENT = 64  # bytes
_COPY_BYTES = 4 * 2**20
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class SafetensorsReader:
    """The safetensors of a directory, memory-mapped, their headers checked.

    Args:
        directory: holds model.safetensors, or model.safetensors.index.json and the files it names.

    Raises:
        CheckpointError: there are none, or one is missing, truncated or damaged.
    """

    def __init__(self, directory: Path) -> None:
        self._files: dict[str, SafetensorsFile] = {}
        if (directory / SINGLE_FILE).exists():
            self.source = str(directory / SINGLE_FILE)
            file = SafetensorsFile(directory / SINGLE_FILE)
            self._files = dict.fromkeys(file.names, file)
        elif (directory / INDEX_FILE).exists():
            self.source = str(directory / INDEX_FILE)
            self._files = _open_index(directory)
        else:
            raise CheckpointError(_nothing_to_load(directory))

    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor, by name."""
        return {
            name: StoredTensor(str(file.path), file.shape(name), file.dtype(name)) for name, file in self._files.items()
        }

    def view(self, name: str) -> npt.NDArray[Any]:
        """A tensor as it lies in its file, not read yet."""
        return self._files[name].view(name)

    def release(self, name: str) -> None:
        """Give the pages of a tensor back; a later view reads them again."""
        self._files[name].release(name)

    def read(self, tensor: CheckpointTensor, mesh: Mesh, dtype: DTypeLike) -> jax.Array:
        """Load a tensor; each device's part goes from the mapped file straight to it."""
        file = self._files[tensor.name]
        stored = file.view(tensor.name)
        file.will_need(tensor.name)
        # A CPU device may use the host's memory as it is, and must not come to depend on the file.
        copy = mesh.devices.flat[0].platform == "cpu"

        def part(index: tuple[slice, ...] | None) -> npt.NDArray[Any]:
            """One device's part: a view of the file where that will do; rows past the stored ones are zeros."""
            found = stored[index or ()]
            shape = _part_shape(index or (), tensor.loaded_shape)
            if found.shape == shape and found.dtype == dtype and not copy:
                return found
            out = _aligned_empty(shape, np.dtype(dtype))
            out[found.shape[0] :] = 0
            for rows in _row_blocks(found):
                np.copyto(out[rows], found[rows], casting="unsafe")
                file.release(tensor.name)
            return out

        array = jax.make_array_from_callback(tensor.loaded_shape, named_sharding(mesh, tensor.axes), part)
        # The transfer must end before the pages go, and before the next tensor takes host memory.
        array.block_until_ready()
        file.release(tensor.name)
        return array


def _part_shape(index: tuple[slice, ...], loaded_shape: tuple[int, ...]) -> tuple[int, ...]:
    index += (slice(None),) * (len(loaded_shape) - len(index))
    return tuple(len(range(*s.indices(n))) for s, n in zip(index, loaded_shape, strict=True))


def _row_blocks(array: npt.NDArray[Any]) -> Iterator[slice]:
    """Rows that are copied together, few enough that their pages do not count beside a large tensor."""
    row_bytes = max(1, array.nbytes // max(1, len(array)))
    step = max(1, _COPY_BYTES // row_bytes)
    for start in range(0, len(array), step):
        yield slice(start, min(start + step, len(array)))


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """An array that a CPU device can take over as it is, instead of copying it once more."""
    num_bytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(num_bytes + _DEVICE_ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _DEVICE_ALIGNMENT
    return raw[start : start + num_bytes].view(dtype).reshape(shape)


def _open_index(directory: Path) -> dict[str, SafetensorsFile]:
    path = directory / INDEX_FILE
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{path}: weight_map must map tensor names to files")
    opened: dict[str, SafetensorsFile] = {}
    files: dict[str, SafetensorsFile] = {}
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise CheckpointError(f"{path}: tensor {name} must name a file of the same directory, got {file_name!r}")
        if file_name not in opened:
            if not (directory / file_name).exists():
                raise CheckpointError(f"{path}: tensor {name} is in {file_name}, which does not exist")
            opened[file_name] = SafetensorsFile(directory / file_name)
        if name not in opened[file_name].names:
            raise CheckpointError(f"{directory / file_name}: tensor {name} is missing, though the index places it here")
        files[name] = opened[file_name]
    return files


def _nothing_to_load(directory: Path) -> str:
    pickles = sorted(p.name for p in directory.glob("*") if p.suffix in _PICKLE_SUFFIXES)
    if pickles:
        return (
            f"{directory / pickles[0]}: pickle files can run code and are never read; save the model as safetensors "
            f"({SINGLE_FILE})"
        )
    return f"{directory}: holds neither {SINGLE_FILE} nor {INDEX_FILE}"
