"""The choice of experts: the reference and the interpreted Triton kernel against NumPy."""

from pathlib import Path

import jax
import numpy as np
import pytest

from pallas_kernels.top_k_experts import top_k_experts
from tests.pallas_kernels.interpreter import KernelCase, interpret_cases

# Name -> (tokens, experts, k).
SHAPES = {
    "mixtral": (5, 8, 2),
    "qwen": (9, 128, 8),
    "one token": (1, 60, 4),
    "one expert of many": (6, 33, 1),
    "all experts": (3, 6, 6),
    "the only expert": (2, 1, 1),
}


def chosen(name: str, normalize: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits with equal scores among them, and the right experts and weights."""
    num_tokens, num_experts, k = SHAPES[name]
    logits = np.random.default_rng(0).normal(0, 3, (num_tokens, num_experts)).round(1).astype(np.float32)
    exponentials = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    weights = np.take_along_axis(exponentials / exponentials.sum(1, keepdims=True), ids, 1)
    return logits, ids, weights / weights.sum(1, keepdims=True) if normalize else weights


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_the_reference_takes_the_largest_scores_and_of_equal_ones_the_first(name: str, normalize: bool) -> None:
    logits, ids, weights = chosen(name, normalize)
    out_ids, out_weights = jax.jit(lambda a: top_k_experts(a, ids.shape[1], normalize=normalize))(logits)
    np.testing.assert_array_equal(out_ids, ids)
    np.testing.assert_allclose(out_weights, weights, rtol=1e-5)
    assert out_ids.dtype == np.int32 and out_weights.dtype == np.float32


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[np.ndarray]]:
    directory: Path = tmp_path_factory.mktemp("cases")
    cases = {}
    for name, (_, _, k) in SHAPES.items():
        for normalize in (False, True):
            options = {"operation": "top_k_experts", "num_experts_per_token": k, "normalize": normalize}
            cases[f"{name}, {normalize}"] = KernelCase({"logits": chosen(name, normalize)[0]}, options)
    logits = chosen("qwen", False)[0]
    logits[1], logits[2, ::2], logits[3] = np.nan, np.nan, -np.inf
    options = {"operation": "top_k_experts", "num_experts_per_token": 8, "normalize": False}
    cases["not numbers"] = KernelCase({"logits": logits}, options)
    return interpret_cases(directory, cases)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_the_kernel_chooses_as_the_reference_does(
    name: str, normalize: bool, outputs: dict[str, list[np.ndarray]]
) -> None:
    _, ids, weights = chosen(name, normalize)
    out_ids, out_weights = outputs[f"{name}, {normalize}"]
    np.testing.assert_array_equal(out_ids, ids)
    np.testing.assert_allclose(out_weights, weights, rtol=1e-5)


def test_a_token_has_different_experts_even_where_its_scores_are_not_numbers(
    outputs: dict[str, list[np.ndarray]],
) -> None:
    ids, _ = outputs["not numbers"]
    assert all(len(set(row)) == 8 for row in ids.tolist())
    assert ids.min() >= 0 and ids.max() < 128
    np.testing.assert_array_equal(ids[[0, 4]], chosen("qwen", False)[1][[0, 4]])


def test_more_experts_a_token_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot choose 9"):
        top_k_experts(np.zeros((2, 8), np.float32), 9, normalize=True)
    with pytest.raises(ValueError, match="unknown implementation 'sort'"):
        top_k_experts(np.zeros((2, 8), np.float32), 2, normalize=True, implementation="sort")
