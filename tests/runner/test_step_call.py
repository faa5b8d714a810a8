"""StepCall: what it gives the executable, and what comes back."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxserve.runner.step_call import StepCall
from jaxserve.runner.step_function import DeviceState
from jaxserve.sharding import make_mesh

WEIGHTS = (2.0, 30.0, 500.0)
Arrays = tuple[jax.Array, ...]


@pytest.fixture(params=[1, 2])
def place(request: pytest.FixtureRequest) -> Callable[[Any], jax.Array]:
    """Puts an array on each of one or two devices."""
    whole = NamedSharding(make_mesh(request.param), PartitionSpec())

    def place(value: Any) -> jax.Array:
        placed: jax.Array = jax.device_put(np.asarray(value), whole)
        return placed

    return place


def compiled(function: Callable[..., Any], *args: Any) -> Any:
    return jax.jit(function, donate_argnums=(1, 2, 4)).lower(*args).compile()


def arguments(place: Callable[[Any], jax.Array]) -> tuple[Arrays, jax.Array, DeviceState, jax.Array, jax.Array]:
    state = DeviceState(place(np.arange(4, dtype=np.int32)), place(np.ones((2, 3), np.int32)))
    weights = tuple(place(np.float32(w)) for w in WEIGHTS)
    return weights, place(np.zeros(5, np.float32)), state, place(np.arange(6, dtype=np.int32)), place(np.zeros(4))


def step(
    weights: Arrays, pool: jax.Array, state: DeviceState, packed: jax.Array, used: jax.Array
) -> tuple[jax.Array, DeviceState, jax.Array]:
    """Reads neither the second weight nor the page table."""
    pool = pool * weights[0] + weights[2] + packed[1]
    return pool, DeviceState(state.last_tokens + packed[0] + 1, state.page_table), used + packed[2]


def test_results_come_back_in_their_places_and_the_next_call_takes_them(place: Callable[[Any], jax.Array]) -> None:
    weights, pool, state, packed, used = arguments(place)
    call = StepCall(compiled(step, weights, pool, state, packed, used), weights)
    for _ in range(3):
        pool, state, used = call(pool, state, packed, used)
    np.testing.assert_array_equal(pool, np.full(5, 501 * (1 + 2 + 4), np.float32))
    np.testing.assert_array_equal(state.last_tokens, np.arange(4) + 3)
    np.testing.assert_array_equal(state.page_table, np.ones((2, 3)))
    np.testing.assert_array_equal(used, np.full(4, 6.0))
    assert pool.sharding.is_equivalent_to(packed.sharding, 1)


def test_what_is_donated_is_given_up(place: Callable[[Any], jax.Array]) -> None:
    weights, pool, state, packed, used = arguments(place)
    StepCall(compiled(step, weights, pool, state, packed, used), weights)(pool, state, packed, used)
    assert pool.is_deleted() and state.last_tokens.is_deleted()
    assert not packed.is_deleted() and not any(weight.is_deleted() for weight in weights)


def test_the_executable_is_called_and_not_what_checks_each_argument(place: Callable[[Any], jax.Array]) -> None:
    args = arguments(place)

    class Watched:
        """What was compiled, whose own call must not be needed."""

        def __init__(self, inner: Any) -> None:
            self._executable, self._params = inner._executable, inner._params

        def __call__(self, *_: Any) -> Any:
            raise AssertionError("JAX's own call was made")

    StepCall(Watched(compiled(step, *args)), args[0])(*args[1:])


def test_a_step_with_more_than_plain_arrays_is_called_by_jax(place: Callable[[Any], jax.Array]) -> None:
    """A callback to the host is something that the executable alone does not see to."""
    args = arguments(place)
    seen: list[int] = []

    def telling(weights: Arrays, pool: jax.Array, state: DeviceState, packed: jax.Array, used: jax.Array) -> Any:
        jax.debug.callback(lambda value: seen.append(int(value)), packed[3])
        return pool * 2, state, used + jnp.float32(weights[0])

    call = StepCall(compiled(telling, *args), args[0])
    *_, sampled = call(*args[1:])
    np.testing.assert_array_equal(sampled, np.full(4, 2.0))
    jax.effects_barrier()
    assert set(seen) == {3}
