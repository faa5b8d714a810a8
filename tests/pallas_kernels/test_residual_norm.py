"""Residual sum and norm: the reference against its definition in float64, the Triton kernel against the reference."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.residual_norm import residual_norm
from tests.pallas_kernels.interpreter import KernelCase, interpret_cases

KINDS = ("rms", "rms_rounded_last", "rms_plus_one")
SIZES = (64, 100)  # a power of two and none
EPS = 1e-5


def arguments(size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(size)
    x, delta = rng.standard_normal((2, 5, size)).astype(np.float32)
    return {"x": x, "delta": delta, "weight": rng.standard_normal(size).astype(np.float32)}


def parts_of(delta: np.ndarray) -> np.ndarray:
    """[3, T, D] that sum to delta."""
    first, second = np.random.default_rng(9).standard_normal((2, *delta.shape)).astype(np.float32)
    return np.stack([first, second, delta - first - second])


@pytest.fixture(scope="module")
def kernel_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[np.ndarray]]:
    cases = {
        f"{kind} {size}": KernelCase(arguments(size), {"operation": "residual_norm", "eps": EPS, "kind": kind})
        for kind in KINDS
        for size in SIZES
    }
    args = arguments(64)
    cases["parts"] = KernelCase(
        {**args, "delta": parts_of(args["delta"])}, {"operation": "residual_norm", "eps": EPS, "kind": "rms"}
    )
    return interpret_cases(tmp_path_factory.mktemp("cases"), cases)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_is_kept_and_its_norm_scaled_by_the_weight(
    kind: str, size: int, kernel_results: dict[str, list[np.ndarray]]
) -> None:
    args = arguments(size)
    x, delta, weight = (a.astype(np.float64) for a in args.values())
    stream = x + delta
    scale = weight + 1 if kind == "rms_plus_one" else weight
    normed = stream / np.sqrt((stream**2).mean(-1, keepdims=True) + EPS) * scale
    reference = residual_norm(*map(jnp.asarray, args.values()), eps=EPS, kind=kind)
    for results in (reference, kernel_results[f"{kind} {size}"]):
        np.testing.assert_allclose(results[0], stream, atol=1e-6)
        np.testing.assert_allclose(results[1], normed, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_may_be_a_row_of_several(kind: str) -> None:
    x, delta, weight = (jnp.asarray(a) for a in arguments(64).values())
    weights = jnp.stack([jnp.full_like(weight, jnp.nan), weight])
    wanted = residual_norm(x, delta, weight, eps=EPS, kind=kind)
    for result, expected in zip(
        residual_norm(x, delta, weights, jnp.ones(1, jnp.int32), eps=EPS, kind=kind), wanted, strict=True
    ):
        np.testing.assert_array_equal(result, expected)


def test_parts_are_summed_before_they_are_added(kernel_results: dict[str, list[np.ndarray]]) -> None:
    args = arguments(64)
    whole = residual_norm(*map(jnp.asarray, args.values()), eps=EPS)
    in_parts = {**args, "delta": parts_of(args["delta"])}
    for results in (residual_norm(*map(jnp.asarray, in_parts.values()), eps=EPS), kernel_results["parts"]):
        for result, expected in zip(results, whole, strict=True):
            np.testing.assert_allclose(result, expected, atol=1e-5)


def test_shapes_dtypes_and_kinds_that_do_not_fit_are_refused() -> None:
    x, delta, weight = (jnp.asarray(a) for a in arguments(64).values())
    with pytest.raises(ValueError, match=r"must be \[T, D\]"):
        residual_norm(x, delta[:, :32], weight, eps=EPS)
    with pytest.raises(ValueError, match="delta is bfloat16"):
        residual_norm(x, delta.astype(jnp.bfloat16), weight, eps=EPS)
    with pytest.raises(ValueError, match="unknown kind 'layer'"):
        residual_norm(x, delta, weight, eps=EPS, kind="layer")
    with pytest.raises(ValueError, match="weight_row is None"):
        residual_norm(x, delta, weight[None], eps=EPS)
    with pytest.raises(ValueError, match="weight_row is given"):
        residual_norm(x, delta, weight, jnp.ones(1, jnp.int32), eps=EPS)
    with pytest.raises(ValueError, match=r"must be \[1\] int32"):
        residual_norm(x, delta, weight[None], jnp.ones(2, jnp.int32), eps=EPS)
