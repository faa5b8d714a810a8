"""From a model directory to arrays on the devices."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxserve.config import DType, LoadFormat
from jaxserve.layers.rope import Float32Array
from jaxserve.models.checkpoint.dummy import DummyReader
from jaxserve.models.checkpoint.reader import OnProgress, TensorReader, check_tensors
from jaxserve.models.checkpoint.safetensors import SafetensorsReader
from jaxserve.models.config import ModelConfig, WeightDType
from jaxserve.models.decoder import Decoder
from jaxserve.models.family import named_as_stored
from jaxserve.models.registry import MODEL_FAMILIES, load_config
from jaxserve.models.weight_map import decoder_constants
from jaxserve.models.weights import ParamPath, Place, WeightSource
from jaxserve.sharding import tensor_parallel_size
from pallas_kernels.all_reduce import PeerWorkspace


@dataclass(frozen=True)
class LoadedModel:
    """A model on its devices.

    Attributes:
        config: what it is.
        max_model_len: rows of its table of positions.
        mesh: the devices.
        dtype: of weights and activations.
        num_kv_heads: K of its KV pages, with the copies that tensor parallelism makes.
        graphdef: the module's structure, without arrays.
        treedef: the structure of its state.
        weights: the leaves of that state, the order in which they cross into compiled steps.
        workspace: memory in which the devices write to each other, whose addresses are among the weights; None where
            they cannot. It must live as long as steps run.
    """

    config: ModelConfig
    max_model_len: int
    mesh: Mesh
    dtype: WeightDType
    num_kv_heads: int
    graphdef: nnx.GraphDef[Decoder]
    treedef: jax.tree_util.PyTreeDef
    weights: tuple[jax.Array, ...]
    workspace: PeerWorkspace | None = None

    def merge(self, weights: Sequence[jax.Array]) -> Decoder:
        """The module with these arrays as its parameters. For use inside a trace, where they are tracers."""
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.treedef, weights))

    @property
    def description(self) -> str:
        """All that tracing it depends on, besides its weights' shapes and where they lie."""
        return f"{self.config!r} of {self.max_model_len} positions in {self.dtype}"

    @property
    def num_bytes(self) -> int:
        """Bytes of all parameters, counted once however many devices hold them."""
        return sum(w.nbytes for w in self.weights)


def load_model(
    directory: str | Path,
    mesh: Mesh,
    *,
    dtype: DType = "auto",
    load_format: LoadFormat = "auto",
    max_model_len: int | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    on_described: Callable[[LoadedModel], None] | None = None,
) -> LoadedModel:
    """Load a model directory onto a mesh.

    Everything that can be wrong with the directory is found before any device memory is taken.

    Args:
        directory: holds config.json and the weights.
        mesh: the devices.
        dtype: of weights and activations; `auto` is the checkpoint's on a GPU and float32 on a CPU.
        load_format: `auto` takes what the directory holds; `dummy` needs config.json only.
        max_model_len: positions to prepare for; the config's context length if None.
        seed: of dummy weights.
        on_progress: called after each parameter.
        on_described: called before anything is loaded with the model as it will be, its weights shapes only, for what
            can be compiled meanwhile.

    Raises:
        CheckpointError: the directory cannot be served; the message names the file, and the tensor or key, at fault.
        ConfigError: the model cannot be divided over the mesh, or a setting contradicts the directory.
    """
    directory = Path(directory)
    config = load_config(directory)
    family = MODEL_FAMILIES[config.architecture]
    positions = max_model_len or config.context_length
    param_dtype = resolve_dtype(dtype, config, mesh)
    model = Decoder(config, mesh, param_dtype=param_dtype, max_model_len=positions)
    size = tensor_parallel_size(mesh)
    names = family.weight_map(config)
    sources = family.weights(config, size)
    reader = open_checkpoint(directory, load_format, seed)
    if not isinstance(reader, DummyReader):
        sources = named_as_stored(sources, names.optional_prefix, reader.tensors())
        expected = (tensor for source in sources.values() for tensor in source.tensors)
        check_tensors(reader, expected, tied_head=names.head if config.tie_word_embeddings else None)
    graphdef, state = nnx.split(model)
    constants: dict[ParamPath, Float32Array | jax.Array] = {**decoder_constants(config, positions, size)}
    described = LoadedModel(
        config=config,
        max_model_len=positions,
        mesh=mesh,
        dtype=param_dtype,
        num_kv_heads=config.parallel_heads(size)[0],
        graphdef=graphdef,
        treedef=jax.tree.structure(state),
        weights=tuple(jax.tree.leaves(state)),
    )
    if on_described is not None:
        on_described(described)
    workspace = None if model.peer_layout is None else PeerWorkspace(mesh, model.peer_layout)
    if workspace is not None:
        constants[("peer_table",)] = workspace.peers.table
    weights = _load_weights(state, sources, constants, reader, mesh, on_progress)
    return replace(described, weights=weights, workspace=workspace)


def resolve_dtype(dtype: DType, config: ModelConfig, mesh: Mesh) -> WeightDType:
    """The dtype that a setting means: `auto` is the checkpoint's on a GPU and float32 on a CPU."""
    if dtype != "auto":
        return dtype
    return "float32" if mesh.devices.flat[0].platform == "cpu" else config.dtype


def open_checkpoint(directory: Path, load_format: LoadFormat, seed: int = 0) -> TensorReader:
    """Open a directory's weights for reading, checked for what can be checked without the model's config.

    Raises:
        CheckpointError: there are none, or they are damaged.
    """
    if load_format == "dummy":
        return DummyReader(seed)
    if load_format == "orbax" or (load_format == "auto" and (directory / "orbax").is_dir()):
        # Orbax takes a second to import, which other formats need not wait for.
        from jaxserve.models.checkpoint.orbax import OrbaxReader

        return OrbaxReader(directory)
    return SafetensorsReader(directory)


def _load_weights(
    state: nnx.State[Any, Any],
    sources: Mapping[ParamPath, WeightSource],
    constants: Mapping[ParamPath, Float32Array | jax.Array],
    reader: TensorReader,
    mesh: Mesh,
    on_progress: OnProgress | None,
) -> tuple[jax.Array, ...]:
    """The arrays of a state, in its own order. One parameter at a time, so that the host never holds two."""
    params = cast(Sequence[tuple[ParamPath, nnx.Variable[Any]]], nnx.to_flat_state(state))
    specs = [(path, cast(jax.ShapeDtypeStruct, param.get_value())) for path, param in params]
    total = sum(spec.size * spec.dtype.itemsize for _, spec in specs)
    done = 0
    arrays = []
    load = _ParamLoader(reader, mesh)
    for path, spec in specs:
        if path in constants:
            array = jax.device_put(constants[path], spec.sharding)
        else:
            array = load(sources[path], spec)
        if array.shape != spec.shape or array.dtype != spec.dtype:
            raise AssertionError(f"{path} became {array.shape} {array.dtype}, not {spec.shape} {spec.dtype}")
        arrays.append(array.block_until_ready())
        done += array.nbytes
        if on_progress is not None:
            on_progress(done, total)
    return tuple(arrays)


class _ParamLoader:
    """Reads the tensors of a parameter and puts them in their places, compiling each way of it once."""

    def __init__(self, reader: TensorReader, mesh: Mesh) -> None:
        self._reader = reader
        self._mesh = mesh
        self._compiled: dict[tuple[Place, tuple[int, ...]], Place] = {}

    def __call__(self, source: WeightSource, spec: jax.ShapeDtypeStruct) -> jax.Array:
        if not source.places:
            return self._reader.read(source.tensors[0], self._mesh, spec.dtype)
        param = jnp.zeros(spec.shape, spec.dtype, device=spec.sharding)
        for i, (tensor, place) in enumerate(zip(source.tensors, source.places, strict=True)):
            key = (place, spec.shape)
            if key not in self._compiled:
                self._compiled[key] = jax.jit(place, donate_argnums=0, out_shardings=spec.sharding)
            part = self._reader.read(tensor, self._mesh, spec.dtype)
            # One part at a time: it is freed before the next is read.
            index = (np.int32(source.indices[i]),) if source.indices else ()
            param = self._compiled[key](param, part, *index).block_until_ready()
        return param
