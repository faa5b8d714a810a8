"""Damaged and foreign checkpoints: one error that names the file and the tensor, before anything is loaded."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxserve.errors import CheckpointError, ConfigError
from jaxserve.models.checkpoint import load_model
from jaxserve.models.checkpoint.safetensors import SafetensorsReader
from jaxserve.models.checkpoint.safetensors_file import SafetensorsFile
from jaxserve.sharding import make_mesh

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def checkpoint(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a good checkpoint in one file. Reading any tensor of it fails the test."""

    def read(*arguments: Any) -> None:
        raise AssertionError("a tensor was read before the checkpoint was known to be good")

    monkeypatch.setattr(SafetensorsReader, "read", read)
    shutil.copytree(data_dir / "gqa", tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(checkpoint: Path, data_dir: Path) -> Path:
    """A copy of a good checkpoint in several files."""
    shutil.rmtree(checkpoint)
    shutil.copytree(data_dir / "sharded", checkpoint)
    return checkpoint


def _load(directory: Path, tensor_parallel_size: int = 1) -> None:
    load_model(directory, make_mesh(tensor_parallel_size))


def _edit_tensors(directory: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors")


def _edit_json(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_good_checkpoint_reaches_the_reading_of_tensors(checkpoint: Path) -> None:
    with pytest.raises(AssertionError, match="a tensor was read"):
        _load(checkpoint)


def test_missing_tensor(checkpoint: Path) -> None:
    _edit_tensors(checkpoint, lambda t: t.pop(Q_PROJ))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor {Q_PROJ} is missing"):
        _load(checkpoint)


def test_misshapen_tensor(checkpoint: Path) -> None:
    _edit_tensors(checkpoint, lambda t: t.update({Q_PROJ: t[Q_PROJ].T.copy()}))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor {Q_PROJ} has shape \[32, 64\]"):
        _load(checkpoint)


def test_tensor_of_another_kind_of_number(checkpoint: Path) -> None:
    _edit_tensors(checkpoint, lambda t: t.update({Q_PROJ: t[Q_PROJ].astype(np.int8)}))
    with pytest.raises(CheckpointError, match=rf"tensor {Q_PROJ} is of dtype int8"):
        _load(checkpoint)


def test_tensor_that_the_model_does_not_have(checkpoint: Path) -> None:
    bias = Q_PROJ.replace("weight", "bias")
    _edit_tensors(checkpoint, lambda t: t.update({bias: np.zeros(64, np.float32)}))
    with pytest.raises(CheckpointError, match=rf"tensor {bias} is not part of the model"):
        _load(checkpoint)


def test_buffers_of_older_checkpoints_are_passed_over(checkpoint: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    _edit_tensors(checkpoint, lambda t: t.update({name: np.zeros(8, np.float32)}))
    with pytest.raises(AssertionError, match="a tensor was read"):
        _load(checkpoint)


@pytest.mark.parametrize("keep", [0, 7, 100, 5000, -1])
def test_truncated_file(checkpoint: Path, keep: int) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated: "):
        _load(checkpoint)


def test_config_that_contradicts_the_tensors(checkpoint: Path) -> None:
    _edit_json(checkpoint / "config.json", lambda c: c.update(num_hidden_layers=3))
    with pytest.raises(CheckpointError, match=r"tensor model\.layers\.2\.\S+ is missing"):
        _load(checkpoint)


def test_untied_config_without_an_output_head(checkpoint: Path) -> None:
    _edit_tensors(checkpoint, lambda t: t.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"tensor lm_head\.weight is missing"):
        _load(checkpoint)


def test_mesh_that_does_not_divide_the_model(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size 3 and the model's 2 kv heads do not divide each other"):
        _load(checkpoint, 3)


def test_more_devices_than_there_are() -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size is 64, but there are 4 devices"):
        make_mesh(64)


def test_index_that_names_a_missing_file(sharded: Path) -> None:
    (sharded / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"index\.json: tensor \S+ is in model-00002\S+, which does not exist"):
        _load(sharded)


def test_index_that_places_a_tensor_in_the_wrong_file(sharded: Path) -> None:
    other = "model-00001-of-00004.safetensors"
    _edit_json(sharded / "model.safetensors.index.json", lambda i: i["weight_map"].update({"lm_head.weight": other}))
    with pytest.raises(CheckpointError, match=rf"{other}: tensor lm_head\.weight is missing"):
        _load(sharded)


def test_index_that_leaves_the_directory(sharded: Path) -> None:
    edit = {"lm_head.weight": "../model-00001-of-00004.safetensors"}
    _edit_json(sharded / "model.safetensors.index.json", lambda i: i["weight_map"].update(edit))
    with pytest.raises(CheckpointError, match=r"index\.json: tensor lm_head\.weight must name a file of the same"):
        _load(sharded)


def test_index_without_a_map(sharded: Path) -> None:
    _edit_json(sharded / "model.safetensors.index.json", lambda i: i.pop("weight_map"))
    with pytest.raises(CheckpointError, match=r"index\.json: weight_map"):
        _load(sharded)


def test_pickle_is_never_read(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: pickle files can run code and are never read"):
        _load(checkpoint)


def test_directory_without_weights(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor"):
        _load(checkpoint)


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ([], "is not an object"),
        ({"a": 3}, "tensor a: its header entry needs"),
        ({"a": {**GOOD, "shape": [-2]}}, "tensor a: its header entry needs"),
        ({"a": {**GOOD, "shape": 2}}, "tensor a: its header entry needs"),
        ({"a": {**GOOD, "data_offsets": [0]}}, "tensor a: its header entry needs"),
        ({"a": {**GOOD, "data_offsets": [0, 2.5]}}, "tensor a: its header entry needs"),
        ({"a": {**GOOD, "dtype": "F12"}}, "tensor a: unknown dtype 'F12'"),
        ({"a": {**GOOD, "dtype": ["F32"]}}, "tensor a: unknown dtype"),
        ({"a": {**GOOD, "shape": [3]}}, "tensor a: F32\\[3\\] takes 12 bytes"),
        ({"a": {**GOOD, "shape": [2**40, 2**40]}}, "tensor a: F32"),
        ({"a": GOOD, "b": GOOD}, "tensor b at byte [0-9]+ overlaps another"),
        ({"a": GOOD, "b": {**GOOD, "data_offsets": [12, 20]}}, "tensor b at byte [0-9]+ follows bytes of no tensor"),
        ({"a": {**GOOD, "data_offsets": [16, 24]}, "b": GOOD}, "tensor a at byte [0-9]+ follows bytes of no tensor"),
        ({"a": GOOD}, "16 bytes after the last tensor belong to none"),
    ],
)
def test_header_that_is_not_that_of_its_bytes(tmp_path: Path, header: Any, problem: str) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(24))
    with pytest.raises(CheckpointError, match=rf"a\.safetensors: .*{problem}"):
        SafetensorsFile(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "content", [struct.pack("<Q", 2**62), struct.pack("<Q", 3) + b"\xff\xfe{", struct.pack("<Q", 8) + b'{"a":1,}']
)
def test_header_that_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: "):
        SafetensorsFile(tmp_path / "a.safetensors")


def test_name_that_occurs_twice(tmp_path: Path) -> None:
    entry = json.dumps(GOOD)
    text = f'{{"a": {entry}, "a": {entry}}}'.encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(CheckpointError, match="a name occurs twice"):
        SafetensorsFile(tmp_path / "a.safetensors")
