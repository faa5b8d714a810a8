"""Long steps over several devices in two pieces of rows, so that one is summed while the other is computed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxserve.models import decoder
from jaxserve.models.checkpoint import load_model
from jaxserve.sharding import make_mesh
from tests.support.recorded_models import Recording, generate_checked, greedy_params, recorded_llm


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Steps of two rows or more are cut. Layers traced without it must not be used again, nor with it later."""
    monkeypatch.setattr(decoder, "PIECES_FROM_ROWS", 2)
    jax.clear_caches()
    yield
    jax.clear_caches()


# Norms before, after and around, of all heads together; layer norm and parallel residuals; a multiplier; experts.
@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("case", ["gqa", "olmo2", "gemma2", "falcon", "granite", "mixtral"])
def test_logits_equal_the_original_implementation(case: str, data_dir: Path, forward: Any) -> None:
    reference = np.load(data_dir / case / "reference.npz")
    model = load_model(data_dir / case, make_mesh(2), max_model_len=128)
    np.testing.assert_allclose(forward(model, Recording.of(case).prompts), reference["logits"], atol=1e-4, rtol=0)


@pytest.mark.usefixtures("in_pieces")
def test_greedy_tokens_equal_those_of_one_device(tmp_path: Path) -> None:
    """Prompts in steps of 64 rows, decodes in steps of 4 and fewer, down to one row, which is not cut."""
    recording = Recording.of("gqa")
    llm = recorded_llm("gqa", tmp_path, tensor_parallel_size=2, num_pages=80, max_num_batched_tokens=64)
    assert generate_checked(llm, recording.prompts, greedy_params()) == recording.greedy


def sums(llm: Any) -> dict[int, int]:
    """All-reduces of each compiled step, by its tokens."""
    steps = llm.core.runner.compiled_steps
    return {bucket.num_tokens: step.as_text().count(" all-reduce(") for bucket, step in steps.items()}


def test_only_long_steps_over_several_devices_are_cut(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prompts = Recording.of("gqa").prompts
    monkeypatch.setattr(decoder, "PIECES_FROM_ROWS", 16)
    counted = {}
    for devices in (1, 2):
        jax.clear_caches()
        llm = recorded_llm("gqa", tmp_path, tensor_parallel_size=devices, num_pages=80, max_num_batched_tokens=64)
        generate_checked(llm, prompts, greedy_params(2))
        counted[devices] = sums(llm)
    jax.clear_caches()
    assert not any(counted[1].values())
    long, short = (
        {count for tokens, count in counted[2].items() if (tokens >= 16) == is_long} for is_long in (True, False)
    )
    assert len(short) == 1 and min(long) > max(short)
