"""The residual stream split by rows over the devices, which long steps may have."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxserve.layers import norm
from jaxserve.layers.norm import HiddenNorm, HiddenNorms, add_and_norm
from jaxserve.models.checkpoint import LoadedModel, load_model
from jaxserve.sharding import make_mesh
from tests.support.recorded_models import Recording, generate_checked, greedy_params, recorded_llm

HIDDEN = 32


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The stream is split in steps of two rows or more. Layers traced without it must not be used again, nor with it
    later."""
    monkeypatch.setattr(norm, "SPLIT_STREAM_ROWS", 2)
    jax.clear_caches()
    yield
    jax.clear_caches()


def loaded_norm(devices: int) -> HiddenNorm:
    """The second of three."""
    graphdef, state = nnx.split(HiddenNorms(3, HIDDEN, eps=1e-5, mesh=make_mesh(devices), dtype="float32"))
    weights = jnp.stack([jnp.zeros(HIDDEN), jnp.linspace(0.5, 2.0, HIDDEN), jnp.zeros(HIDDEN)])
    norms: HiddenNorms = nnx.merge(graphdef, jax.tree.map(lambda w: weights, state))
    return norms[1]


def added(devices: int, rows: int) -> tuple[tuple[jax.Array, jax.Array], str]:
    """The sum and its norm, and what the step was compiled to."""
    x = jax.random.normal(jax.random.key(1), (rows, HIDDEN))
    parts = jax.random.normal(jax.random.key(2), (4, rows, HIDDEN))
    # As many parts in all, however many devices hold them; several are added on each.
    step = jax.jit(lambda x, p: add_and_norm(x, p, loaded_norm(devices), make_mesh(devices), None))
    return step(x, parts), step.lower(x, parts).compile().as_text()


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("devices", [2, 4])
def test_each_device_adds_and_normalises_its_share_of_the_rows(devices: int) -> None:
    (stream, normed), text = added(devices, 8)
    expected, _ = added(1, 8)
    np.testing.assert_allclose(stream, expected[0], atol=1e-5)
    np.testing.assert_allclose(normed, expected[1], atol=1e-5)
    assert {shard.data.shape for shard in stream.addressable_shards} == {(8 // devices, HIDDEN)}
    assert normed.sharding.is_fully_replicated
    assert "reduce-scatter" in text and "all-gather" in text and "all-reduce" not in text


@pytest.mark.usefixtures("split")
def test_rows_that_the_devices_do_not_divide_stay_whole() -> None:
    (stream, _), text = added(4, 7)
    assert stream.sharding.is_fully_replicated and "reduce-scatter" not in text


def test_short_steps_and_steps_without_the_switch_keep_the_stream_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for threshold in (None, 9):
        monkeypatch.setattr(norm, "SPLIT_STREAM_ROWS", threshold)
        (stream, _), text = added(2, 8)
        assert stream.sharding.is_fully_replicated and "reduce-scatter" not in text


# Norms before, after and around; layer norm and parallel residuals; a multiplier; experts.
@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("case", ["gqa", "olmo2", "gemma2", "falcon", "granite", "mixtral"])
def test_logits_equal_the_original_implementation(case: str, devices: int, data_dir: Path, forward: Any) -> None:
    reference = np.load(data_dir / case / "reference.npz")
    model = load_model(data_dir / case, make_mesh(devices), max_model_len=128)
    np.testing.assert_allclose(forward(model, Recording.of(case).prompts), reference["logits"], atol=1e-4, rtol=0)


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("devices", [2, 4])
def test_all_devices_have_the_same_bits(
    devices: int,
    data_dir: Path,
    hidden_on_each_device: Callable[[LoadedModel, list[list[int]]], list[np.ndarray]],
) -> None:
    model = load_model(data_dir / "gqa", make_mesh(devices), dtype="bfloat16", max_model_len=128)
    first, *others = hidden_on_each_device(model, Recording.of("gqa").prompts)
    assert len(others) == devices - 1 and all(other.tobytes() == first.tobytes() for other in others)


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("devices", [2, 4])
def test_greedy_tokens_equal_those_of_one_device(devices: int, tmp_path: Path) -> None:
    """Prompts in steps of 64 rows, decodes in steps of 4 and fewer, down to one row, which is not split."""
    recording = Recording.of("gqa")
    llm = recorded_llm("gqa", tmp_path, tensor_parallel_size=devices, num_pages=80, max_num_batched_tokens=64)
    assert generate_checked(llm, recording.prompts, greedy_params()) == recording.greedy
