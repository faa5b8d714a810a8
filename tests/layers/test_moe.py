"""Routed experts against NumPy, one token and expert at a time."""

import jax
import numpy as np
import pytest
from flax import nnx

from jaxserve.layers.moe import RoutedExperts
from jaxserve.sharding import make_mesh
from tests.references.blocks import silu

HIDDEN, INNER, EXPERTS, CHOSEN = 12, 8, 6, 2
TOKENS = 9


def build(tensor_parallel_size: int, normalize: bool, arrays: dict[str, np.ndarray]) -> RoutedExperts:
    layer = RoutedExperts(
        HIDDEN,
        INNER,
        EXPERTS,
        CHOSEN,
        normalize_weights=normalize,
        mesh=make_mesh(tensor_parallel_size),
        dtype="float32",
    )
    graphdef, state = nnx.split(layer)
    flat = nnx.to_flat_state(state)
    leaves = [jax.device_put(arrays[path[0]], param.get_value().sharding) for path, param in flat]
    return nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(state), leaves))


def random_arrays() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    shapes = {
        "router": (EXPERTS, HIDDEN),
        "gate_up_proj": (EXPERTS, 2, INNER, HIDDEN),
        "down_proj": (EXPERTS, HIDDEN, INNER),
    }
    x = rng.standard_normal((TOKENS, HIDDEN)).astype(np.float32)
    return x, {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def dense(x: np.ndarray, arrays: dict[str, np.ndarray], normalize: bool) -> np.ndarray:
    x = x.astype(np.float64)
    scores = x @ arrays["router"].T
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    out = np.zeros_like(x)
    for token in range(TOKENS):
        chosen = np.argsort(-probabilities[token])[:CHOSEN]
        weights = probabilities[token, chosen]
        if normalize:
            weights = weights / weights.sum()
        for expert, weight in zip(chosen, weights, strict=True):
            gate, up = arrays["gate_up_proj"][expert] @ x[token]
            out[token] += weight * (arrays["down_proj"][expert] @ (silu(gate) * up))
    return out


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("tensor_parallel_size", [1, 2])
def test_each_token_is_the_weighted_sum_of_its_best_experts_on_every_mesh(
    tensor_parallel_size: int, normalize: bool
) -> None:
    x, arrays = random_arrays()
    layer = build(tensor_parallel_size, normalize, arrays)
    np.testing.assert_allclose(jax.jit(layer)(x), dense(x, arrays, normalize), atol=1e-4)


def test_each_device_holds_a_part_of_every_expert_and_only_results_cross() -> None:
    x, arrays = random_arrays()
    layer = build(2, True, arrays)
    part = layer.gate_up_proj.weight[...].addressable_shards[0].data
    assert part.shape == (EXPERTS, 2, INNER // 2, HIDDEN)
    assert layer.down_proj.weight[...].addressable_shards[0].data.shape == (EXPERTS, HIDDEN, INNER // 2)
    text = jax.jit(layer).lower(x).compile().as_text()
    assert "all-reduce" in text and "all-gather" not in text


@pytest.mark.parametrize("padding", [np.nan, np.inf, 1e30])
def test_what_stands_in_padding_rows_does_not_reach_the_others(padding: float) -> None:
    x, arrays = random_arrays()
    layer = jax.jit(build(1, True, arrays))
    alone = np.asarray(layer(x))
    x[6:] = padding
    np.testing.assert_array_equal(np.asarray(layer(x))[:6], alone[:6])
