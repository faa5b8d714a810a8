"""Orbax checkpoints: converting to them, and restoring them into any mesh.

A converted directory holds config.json, the tokenizer and whatever else stood beside the weights, and in `orbax/` the
tensors under their Hugging Face names and in their Hugging Face shapes, one Orbax checkpoint a layer. Nothing in it
depends on a mesh: padding, the copies of kv heads and the joining of matrices happen on the devices while loading, as
they do from safetensors.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxserve.errors import CheckpointError, ConfigError
from jaxserve.models.checkpoint.reader import OnProgress, StoredTensor, check_tensors
from jaxserve.models.checkpoint.safetensors import INDEX_FILE, SafetensorsReader
from jaxserve.models.config_file import read_json
from jaxserve.models.family import named_as_stored
from jaxserve.models.registry import MODEL_FAMILIES, load_config
from jaxserve.models.weights import CheckpointTensor
from jaxserve.sharding import named_sharding

ORBAX_DIR = "orbax"
SIZES_FILE = "orbax_files.json"
# A device reads whole chunks, so they are small beside its part of a large matrix.
_CHUNK_BYTES = 16 * 2**20
_COPIED_SUFFIXES = frozenset({".json", ".jinja", ".txt", ".model", ".md"})
_COPIED_PREFIXES = ("LICENSE", "NOTICE", "USE_POLICY")


def convert(source: str | Path, destination: str | Path, on_progress: OnProgress | None = None) -> None:
    """Write a Hugging Face directory's model as an Orbax checkpoint that can be served by itself.

    Args:
        source: holds config.json and safetensors.
        destination: a directory that does not exist yet; its parents are made.
        on_progress: called after each layer with the bytes of tensors written so far, and of all of them.

    Raises:
        CheckpointError: the source cannot be served; the message names the file, and the tensor or key, at fault.
        ConfigError: the destination exists.
    """
    source, destination = Path(source), Path(destination)
    config = load_config(source)
    family = MODEL_FAMILIES[config.architecture]
    names = family.weight_map(config)
    reader = SafetensorsReader(source)
    sources = named_as_stored(family.weights(config, 1), names.optional_prefix, reader.tensors())
    tensors = [tensor for weight in sources.values() for tensor in weight.tensors]
    check_tensors(reader, tensors, tied_head=names.head if config.tie_word_embeddings else None)
    if destination.exists():
        raise ConfigError(f"{destination} exists already; convert writes a directory of its own")
    destination.mkdir(parents=True)
    try:
        _save(reader, [tensor.name for tensor in tensors], destination.absolute() / ORBAX_DIR, on_progress)
        _copy_files(source, destination)
        _write_sizes(destination)
    except BaseException:
        # Half a checkpoint must not be taken for one.
        shutil.rmtree(destination, ignore_errors=True)
        raise


class OrbaxReader:
    """The tensors of a converted directory; their data is read on demand.

    Args:
        directory: what `convert` wrote.

    Raises:
        CheckpointError: it is not an Orbax checkpoint, or a file is missing or truncated.
    """

    def __init__(self, directory: Path) -> None:
        path = directory.absolute() / ORBAX_DIR
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such directory; `jaxserve convert` writes it")
        _check_sizes(directory)
        self.source = str(path)
        self._checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        self._metadata: dict[str, Any] = {}
        self._paths: dict[str, Path] = {}
        for group in sorted(path.iterdir()):
            try:
                leaves = dict(self._checkpointer.metadata(group).item_metadata.tree)
            except Exception as error:  # Orbax and what it stands on raise exceptions of many kinds.
                raise CheckpointError(f"{group}: is not an Orbax checkpoint: {error}") from error
            self._metadata |= leaves
            self._paths |= dict.fromkeys(leaves, group)

    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor, by name."""
        return {
            name: StoredTensor(str(self._paths[name]), tuple(leaf.shape), np.dtype(leaf.dtype).name)
            for name, leaf in self._metadata.items()
        }

    def read(self, tensor: CheckpointTensor, mesh: Mesh, dtype: DTypeLike) -> jax.Array:
        """Restore a tensor; each device reads the chunks of its own part. Rows past the stored ones are zeros."""
        shape, path = tensor.loaded_shape, self._paths[tensor.name]
        arguments = ocp.args.PyTreeRestore(
            item={tensor.name: jax.ShapeDtypeStruct(shape, dtype)},
            restore_args={
                tensor.name: ocp.ArrayRestoreArgs(
                    sharding=named_sharding(mesh, tensor.axes), global_shape=shape, strict=False, dtype=dtype
                )
            },
            partial_restore=True,
        )
        try:
            restored: jax.Array = self._checkpointer.restore(path, args=arguments)[tensor.name]
        except Exception as error:  # As above.
            raise CheckpointError(f"{path}: tensor {tensor.name} cannot be restored: {error}") from error
        return restored


def _save(reader: SafetensorsReader, names: Sequence[str], path: Path, on_progress: OnProgress | None) -> None:
    """Write one Orbax checkpoint a layer, because Orbax copies all it is given before it writes."""
    groups: dict[str, list[str]] = {}
    for name in names:
        layer = re.match(r".*?\.\d+(?=\.)", name)
        groups.setdefault(layer.group() if layer else name, []).append(name)
    total, done = sum(reader.view(name).nbytes for name in names), 0
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True)
    with ocp.Checkpointer(handler) as checkpointer:
        for group, members in groups.items():
            tree = {name: reader.view(name) for name in members}
            save_args = {name: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES) for name in members}
            checkpointer.save(path / group, args=ocp.args.PyTreeSave(tree, save_args=save_args))
            done += sum(array.nbytes for array in tree.values())
            for name in members:
                reader.release(name)
            if on_progress is not None:
                on_progress(done, total)


def _copy_files(source: Path, destination: Path) -> None:
    for path in sorted(source.iterdir()):
        wanted = path.suffix in _COPIED_SUFFIXES or path.name.startswith(_COPIED_PREFIXES)
        if wanted and path.is_file() and path.name != INDEX_FILE:
            shutil.copyfile(path, destination / path.name)


def _write_sizes(directory: Path) -> None:
    """Note the length of every file, so that a truncated one is found before anything is restored."""
    files = sorted(p for p in (directory / ORBAX_DIR).rglob("*") if p.is_file())
    sizes = {str(p.relative_to(directory)): p.stat().st_size for p in files}
    (directory / SIZES_FILE).write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")


def _check_sizes(directory: Path) -> None:
    path = directory / SIZES_FILE
    for name, size in read_json(path).items():
        file = directory / name
        if not file.is_file():
            raise CheckpointError(f"{file}: is missing, though {path} names it")
        if file.stat().st_size != size:
            raise CheckpointError(f"{file}: has {file.stat().st_size} bytes, but {path} notes {size}: it was damaged")
