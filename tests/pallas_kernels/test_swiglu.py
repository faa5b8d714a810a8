"""SwiGLU: the reference against its definition in float64, the Triton kernel against the same."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.swiglu import swiglu
from tests.pallas_kernels.interpreter import KernelCase, interpret_cases
from tests.references.blocks import silu

SIZES = (64, 100)  # whole blocks of 32, and a part of one


def argument(size: int) -> np.ndarray:
    """[5, 2, size], with gates far out on either side."""
    values = 3 * np.random.default_rng(size).standard_normal((5, 2, size))
    values[0, 0, :2] = (-200.0, 200.0)
    return values.astype(np.float32)


@pytest.fixture(scope="module")
def kernel_results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[np.ndarray]]:
    cases = {
        str(size): KernelCase({"gate_up": argument(size)}, {"operation": "swiglu", "block_f": 32}) for size in SIZES
    }
    return interpret_cases(tmp_path_factory.mktemp("cases"), cases)


@pytest.mark.parametrize("size", SIZES)
def test_the_gate_is_activated_and_scales_the_rest(size: int, kernel_results: dict[str, list[np.ndarray]]) -> None:
    gate, up = np.moveaxis(argument(size).astype(np.float64), 1, 0)
    expected = silu(gate) * up
    for result in (swiglu(jnp.asarray(argument(size))), kernel_results[str(size)][0]):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_another_shape_than_gate_and_up_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \[T, 2, F\]"):
        swiglu(jnp.zeros((4, 3, 8)))
