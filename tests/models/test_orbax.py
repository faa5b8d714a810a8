"""Converted checkpoints."""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxserve.errors import CheckpointError, ConfigError
from jaxserve.models.checkpoint import load_model
from jaxserve.models.checkpoint.orbax import OrbaxReader, convert
from jaxserve.sharding import make_mesh


@pytest.fixture(scope="module")
def converted(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded model `gqa`, converted. Its two kv heads are copied, and its 131 tokens padded, on four devices."""
    path = tmp_path_factory.mktemp("converted") / "gqa"
    convert(data_dir / "gqa", path)
    return path


@pytest.mark.parametrize("tensor_parallel_size", [1, 2, 4])
def test_any_mesh_gets_the_same_weights_as_from_safetensors(
    converted: Path, data_dir: Path, tensor_parallel_size: int
) -> None:
    mesh = make_mesh(tensor_parallel_size)
    restored, loaded = load_model(converted, mesh), load_model(data_dir / "gqa", mesh)
    assert (restored.config, restored.graphdef, restored.treedef) == (loaded.config, loaded.graphdef, loaded.treedef)
    for a, b in zip(restored.weights, loaded.weights, strict=True):
        assert a.sharding == b.sharding
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("tensor_parallel_size", [1, 2, 4])
def test_any_mesh_gives_the_original_logits(
    converted: Path, data_dir: Path, tensor_parallel_size: int, forward: Any
) -> None:
    reference = np.load(data_dir / "gqa" / "reference.npz")
    prompts = np.split(reference["prompts"], np.cumsum(reference["prompt_lens"])[:-1])
    model = load_model(converted, make_mesh(tensor_parallel_size), max_model_len=128)
    np.testing.assert_allclose(forward(model, prompts), reference["logits"], atol=1e-4, rtol=0)


def test_each_device_is_given_its_part_and_not_the_whole(converted: Path) -> None:
    model = load_model(converted, make_mesh(4))
    gate_up = jax.tree.unflatten(model.treedef, model.weights)["layers"][0]["mlp"]["gate_up_proj"]["weight"].get_value()
    assert [shard.data.shape for shard in gate_up.addressable_shards] == [(2, 16, 32)] * 4


# gpt2 names its tensors without a prefix and lays matrices inputs first; mixtral has tensors for each expert.
@pytest.mark.parametrize("case", ["sharded", "tied", "bias", "gpt2", "gpt_neox", "mixtral"])
def test_checkpoints_of_every_layout_convert(case: str, data_dir: Path, tmp_path: Path) -> None:
    convert(data_dir / case, tmp_path / "out")
    mesh = make_mesh(1)
    restored, loaded = (
        load_model(tmp_path / "out", mesh, dtype="bfloat16"),
        load_model(data_dir / case, mesh, dtype="bfloat16"),
    )
    for a, b in zip(restored.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_stands_beside_the_weights_is_kept_and_the_weights_are_not_doubled(data_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(data_dir / "sharded", source)
    for name in ("tokenizer.json", "chat_template.jinja", "LICENSE"):
        (source / name).write_text("{}")
    convert(source, tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "LICENSE",
        "orbax",
        "orbax_files.json",
    }


def test_nothing_is_written_for_a_checkpoint_that_cannot_be_served(data_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(data_dir / "gqa", source)
    (source / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_progress_counts_every_byte_once(data_dir: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    convert(data_dir / "gqa", tmp_path / "out", lambda done, total: seen.append((done, total)))
    size = sum(tensor.nbytes for tensor in load_file(data_dir / "gqa" / "model.safetensors").values())
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (size, size)
    assert {total for _, total in seen} == {size}


def test_nothing_is_overwritten(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        convert(data_dir / "gqa", tmp_path)


def test_truncated_file_is_found_before_anything_is_restored(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(converted, tmp_path / "out")
    largest = max((tmp_path / "out" / "orbax").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    largest.write_bytes(largest.read_bytes()[:-1])
    monkeypatch.setattr(OrbaxReader, "read", None)
    with pytest.raises(CheckpointError, match=f"{largest.name}: has .* it was damaged"):
        load_model(tmp_path / "out", make_mesh(1))


def test_misshapen_tensor_is_found_before_anything_is_restored(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(converted, tmp_path / "out")
    config = tmp_path / "out" / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 131', '"vocab_size": 130'))
    monkeypatch.setattr(OrbaxReader, "read", None)
    with pytest.raises(
        CheckpointError,
        match=r"orbax/model\.embed_tokens\.weight: tensor model\.embed_tokens\.weight has shape \[131, 32\]",
    ):
        load_model(tmp_path / "out", make_mesh(1))


def test_directory_that_was_never_converted_is_refused(data_dir: Path) -> None:
    with pytest.raises(CheckpointError, match="orbax: no such directory"):
        load_model(data_dir / "gqa", make_mesh(1), load_format="orbax")
