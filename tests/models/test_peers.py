"""Models on devices that reach each other's memory: the table of addresses is loaded, kept and handed to the layers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxserve.layers import device_sum, embedding, norm
from jaxserve.models import decoder
from jaxserve.models.checkpoint import LoadedModel, load_model
from jaxserve.runner.buckets import Bucket, SamplerKind
from jaxserve.runner.kv_pool import KVPoolSpec
from jaxserve.runner.step_compiler import StepCompiler
from jaxserve.sharding import make_mesh
from pallas_kernels.all_reduce import Peers, WorkspaceLayout
from tests.models.conftest import MAX_TOKENS
from tests.support.recorded_models import Recording


@pytest.fixture
def with_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "why_no_peers", lambda mesh: None if mesh.devices.size > 1 else "there is one device")


def load(data_dir: Path, size: int, case: str = "gqa") -> LoadedModel:
    return load_model(data_dir / case, make_mesh(size), max_model_len=64)


def watched(
    module: Any, name: str, place: int, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[tuple[int, ...], Peers | None]]:
    """Of each call of a module's function from now on: the shape before the peers, and the peers, its `place`-th."""
    seen: list[tuple[tuple[int, ...], Peers | None]] = []
    original = getattr(module, name)

    def observed(*args: Any, **options: Any) -> Any:
        seen.append((args[place - 1].shape, args[place]))
        return original(*args, **options)

    monkeypatch.setattr(module, name, observed)
    return seen


def are_given(peers: Peers | None) -> bool:
    return peers is not None and peers.table.shape == (1, peers.layout.table_columns)


@pytest.mark.usefixtures("with_peers")
def test_the_addresses_of_the_workspace_are_among_the_weights(data_dir: Path) -> None:
    model = load(data_dir, 2)
    assert model.workspace is not None
    table = np.asarray(model.workspace.peers.table)
    assert [w for w in model.weights if w.shape == table.shape and np.array_equal(w, table)]
    assert model.workspace.peers.layout == WorkspaceLayout.of(32, 4, 2)


@pytest.mark.usefixtures("with_peers")
def test_one_device_has_no_workspace(data_dir: Path) -> None:
    assert load(data_dir, 1).workspace is None


def test_devices_that_cannot_reach_each_other_have_no_workspace(data_dir: Path) -> None:
    assert load(data_dir, 2).workspace is None


@pytest.mark.parametrize("case", ["gqa", "olmo2"])
@pytest.mark.usefixtures("with_peers")
def test_every_sum_over_devices_is_given_the_peers(
    case: str, data_dir: Path, forward: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OLMo 2 also sums the squares of a token's queries and keys, in one message a layer."""
    calls = [
        watched(norm, "all_reduce_residual_norm", 3, monkeypatch),
        watched(norm, "all_reduce", 1, monkeypatch),
        watched(device_sum, "all_reduce", 1, monkeypatch),
    ]
    prompts: Sequence[Sequence[int]] = [Recording.of(case).prompts[1]]
    expected = forward(load(data_dir, 1, case), prompts)
    assert not any(calls)
    jax.clear_caches()
    np.testing.assert_allclose(forward(load(data_dir, 2, case), prompts), expected, atol=1e-4)
    messages = {shape for shape, _ in calls[1] if shape[-1] == 2}
    assert messages == ({(1, MAX_TOKENS, 2)} if case == "olmo2" else set())
    assert any(calls)
    assert all(are_given(peers) for seen in calls for _, peers in seen)


@pytest.mark.usefixtures("with_peers")
@pytest.mark.parametrize("sampler", list(SamplerKind))
def test_what_brings_tokens_together_is_given_the_peers(
    sampler: SamplerKind, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchanged = watched(embedding, "all_to_all", 1, monkeypatch)
    chosen = watched(embedding, "argmax_over_devices", 2, monkeypatch)
    model = load(data_dir, 2)
    pool = KVPoolSpec(model.config.num_layers, 9, 4, model.num_kv_heads, model.config.head_dim, model.dtype)
    StepCompiler(model, model.weights, model.mesh, pool, 2, 4).compile(Bucket(2, 2, 2, sampler))
    assert [len(exchanged), len(chosen)] == [int(sampler is SamplerKind.FULL), 1]
    assert all(are_given(peers) for _, peers in exchanged + chosen)
