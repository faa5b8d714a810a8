"""What loading gives, whatever the format."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxserve.models.checkpoint import LoadedModel, load_model
from jaxserve.sharding import make_mesh

MEMORY_SCRIPT = Path(__file__).with_name("measure_load_memory.py")


def _dummy(directory: Path, tensor_parallel_size: int = 1, seed: int = 0) -> LoadedModel:
    return load_model(directory, make_mesh(tensor_parallel_size), load_format="dummy", seed=seed)


@pytest.mark.parametrize(("tensor_parallel_size", "dtype"), [(1, "float32"), (2, "float32"), (1, "bfloat16")])
def test_host_memory_peaks_under_twice_the_largest_tensor(
    tmp_path: Path, tensor_parallel_size: int, dtype: str
) -> None:
    """Measured in a process of its own; the arrays of the (simulated) devices are not counted."""
    # Freed memory goes back to the system at once, so that what is resident is what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, str(MEMORY_SCRIPT), str(tmp_path), str(tensor_parallel_size), dtype]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    measured = json.loads(output)
    assert measured["total_bytes"] > 5 * measured["largest_bytes"]
    assert measured["peak_bytes"] < 2 * measured["largest_bytes"]


def test_progress_counts_every_byte_once(data_dir: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = load_model(data_dir / "gqa", make_mesh(1), on_progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == np.cumsum([w.nbytes for w in model.weights]).tolist()
    assert {total for _, total in seen} == {model.num_bytes}


def test_auto_dtype_is_float32_on_a_cpu(data_dir: Path) -> None:
    model = load_model(data_dir / "mqa", make_mesh(1))
    assert (model.config.dtype, model.dtype) == ("bfloat16", "float32")
    assert {w.dtype.name for w in model.weights} == {"float32"}


def test_dtype_asked_for_is_that_of_all_but_the_rotary_table(data_dir: Path) -> None:
    model = load_model(data_dir / "gqa", make_mesh(1), dtype="bfloat16")
    others = [w for w in model.weights if w.dtype != jax.numpy.bfloat16]
    assert [(w.shape, w.dtype.name) for w in others] == [((128, 2, 8), "float32")]


def test_weights_do_not_depend_on_the_file_once_loaded(data_dir: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((data_dir / "gqa" / name).read_bytes())
    model = load_model(tmp_path, make_mesh(1))
    before = [np.array(w) for w in model.weights]
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(4096)
        file.write(bytes(100_000))
    for weight, kept in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, kept)


def test_dummy_weights_need_no_weights_and_follow_their_seed(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((data_dir / "gqa" / "config.json").read_bytes())
    first, again, other = _dummy(tmp_path), _dummy(tmp_path), _dummy(tmp_path, seed=1)
    # All but the norms' weights, which are ones, and the table of rotations.
    tree = jax.tree.unflatten(first.treedef, range(len(first.weights)))
    others = {tree["norms"]["weight"].get_value(), tree["cos_sin"].get_value()}
    matrices = [i for i in range(len(first.weights)) if i not in others]
    assert all(np.array(first.weights[tree["norms"]["weight"].get_value()]).ravel() == 1)
    for i in matrices:
        np.testing.assert_array_equal(first.weights[i], again.weights[i])
        assert not np.array_equal(first.weights[i], other.weights[i])
        assert 0.015 < float(np.std(first.weights[i])) < 0.025


def test_a_layer_brings_its_four_matrices_and_no_other_array(data_dir: Path) -> None:
    model = load_model(data_dir / "gqa", make_mesh(1))
    # The embedding, the head, all norms' weights and the table of rotations are of no layer. Each array costs the host
    # time in every step.
    assert len(model.weights) == 4 * model.config.num_layers + 4


def test_dummy_weights_are_the_same_model_on_every_mesh(data_dir: Path, forward: Any) -> None:
    prompts = [[1, 2, 3, 130], [7]]
    expected = forward(_dummy(data_dir / "gqa"), prompts)
    np.testing.assert_allclose(forward(_dummy(data_dir / "gqa", 4), prompts), expected, atol=1e-5)


def test_max_model_len_sets_the_rows_of_the_rotary_table(data_dir: Path) -> None:
    model = load_model(data_dir / "gqa", make_mesh(1), max_model_len=40)
    assert model.max_model_len == 40
    assert (40, 2, 8) in [w.shape for w in model.weights]
