"""One memory-mapped safetensors file.

The format: eight bytes with the header's length N (little-endian), N bytes of JSON that map each name to a dtype, a
shape and the range of its bytes, then the bytes of all tensors without gaps.
"""

import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from jaxserve.errors import CheckpointError

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class _Entry:
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int  # from the start of the file
    end: int


class SafetensorsFile:
    """A file whose header has been checked and whose tensors are read on demand.

    Args:
        path: the file.

    Raises:
        CheckpointError: it is missing, truncated, or its header is not that of its bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                if size < 8:
                    raise CheckpointError(f"{path}: truncated: {size} bytes hold no safetensors header")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from error
        self._bytes: npt.NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)
        self._entries = _read_header(path, self._map, size)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, in the order of the header."""
        return tuple(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._entries[name].shape

    def dtype(self, name: str) -> str:
        """The name of a tensor's dtype."""
        return self._entries[name].dtype.name

    def view(self, name: str) -> npt.NDArray[Any]:
        """A tensor's bytes as an array, without reading them."""
        entry = self._entries[name]
        return self._bytes[entry.start : entry.end].view(entry.dtype).reshape(entry.shape)

    def will_need(self, name: str) -> None:
        """Begin to read a tensor from the disk, since all of it is wanted soon."""
        self._advise(mmap.MADV_WILLNEED, self._entries[name])

    def release(self, name: str) -> None:
        """Give a tensor's pages back; a later view reads them again."""
        self._advise(mmap.MADV_DONTNEED, self._entries[name])

    def _advise(self, advice: int, entry: _Entry) -> None:
        start = entry.start - entry.start % mmap.PAGESIZE
        if entry.end > start:
            self._map.madvise(advice, start, entry.end - start)


def _read_header(path: Path, data: mmap.mmap, size: int) -> dict[str, _Entry]:
    length = int.from_bytes(data[:8], "little")
    if length > _MAX_HEADER_BYTES:
        raise CheckpointError(f"{path}: not a safetensors file: its header would have {length} bytes")
    if 8 + length > size:
        raise CheckpointError(f"{path}: truncated: the header has {length} bytes, the file {size}")
    try:
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the safetensors header cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the safetensors header is not an object")
    header.pop("__metadata__", None)
    entries = {name: _read_entry(path, name, value, 8 + length) for name, value in header.items()}
    _check_ranges(path, entries, 8 + length, size)
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name occurs twice")
    return values


def _read_entry(path: Path, name: str, value: Any, data_start: int) -> _Entry:
    def count(x: Any) -> bool:
        return isinstance(x, int) and not isinstance(x, bool) and x >= 0

    try:
        dtype_name, shape, (start, end) = value["dtype"], value["shape"], value["data_offsets"]
        well_formed = isinstance(shape, list) and all(map(count, [*shape, start, end]))
    except (KeyError, TypeError, ValueError):
        well_formed = False
    if not well_formed:
        raise CheckpointError(f"{path}: tensor {name}: its header entry needs dtype, shape and data_offsets")
    dtype = _DTYPES.get(dtype_name) if isinstance(dtype_name, str) else None
    if dtype is None:
        raise CheckpointError(f"{path}: tensor {name}: unknown dtype {dtype_name!r}")
    num_bytes = dtype.itemsize
    for length in shape:
        num_bytes *= length
    if end - start != num_bytes:
        raise CheckpointError(
            f"{path}: tensor {name}: {dtype_name}{shape} takes {num_bytes} bytes, but it lies at {start} to {end}"
        )
    return _Entry(dtype, tuple(shape), data_start + start, data_start + end)


def _check_ranges(path: Path, entries: dict[str, _Entry], data_start: int, size: int) -> None:
    """The tensors' ranges must follow one another and fill the file."""
    position = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.end > size:
            raise CheckpointError(f"{path}: truncated: tensor {name} ends at byte {entry.end}, the file at {size}")
        if entry.start != position:
            problem = "overlaps another" if entry.start < position else "follows bytes of no tensor"
            raise CheckpointError(f"{path}: tensor {name} at byte {entry.start} {problem}")
        position = entry.end
    if position != size:
        raise CheckpointError(f"{path}: {size - position} bytes after the last tensor belong to none")
