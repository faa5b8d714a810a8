"""StepCall: what it gives the executable, and what comes back."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxserve.runner.step_call import StepCall, StepExecutable
from jaxserve.runner.step_function import DeviceState
from jaxserve.sharding import make_mesh

# What comes from JAX's cache is not whole when it is written again.
pytestmark = pytest.mark.usefixtures("no_jax_cache")
WEIGHTS = (2.0, 30.0, 500.0)
Place = Callable[[Any], jax.Array]
Arguments = tuple[tuple[jax.Array, ...], jax.Array, DeviceState, jax.Array, jax.Array]


@pytest.fixture(params=[1, 2])
def place(request: pytest.FixtureRequest) -> Place:
    """Puts an array on each of one or two devices."""
    whole = NamedSharding(make_mesh(request.param), PartitionSpec())

    def place(value: Any) -> jax.Array:
        placed: jax.Array = jax.device_put(np.asarray(value), whole)
        return placed

    return place


def arguments(place: Place) -> Arguments:
    state = DeviceState(place(np.arange(4, dtype=np.int32)), place(np.ones((2, 3), np.int32)))
    weights = tuple(place(np.float32(w)) for w in WEIGHTS)
    packed, used = place(np.arange(6, dtype=np.int32)), place(np.zeros(4, np.float32))
    return weights, place(np.zeros(5, np.float32)), state, packed, used


def step(weights: Any, pool: jax.Array, state: DeviceState, packed: jax.Array, used: jax.Array) -> Any:
    """Does not read the second weight."""
    pool = pool * weights[0] + weights[2] + packed[1]
    return pool, DeviceState(state.last_tokens + packed[0] + 1, state.page_table), used + packed[2]


def compiled(function: Callable[..., Any], args: Arguments) -> StepExecutable:
    return StepExecutable.of(jax.jit(function, donate_argnums=(1, 2, 4)).lower(*args).compile())


def called(executable: StepExecutable, args: Arguments) -> StepCall:
    weights, pool, state, _, used = args
    results = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for a in (pool, *state, used)]
    return StepCall(executable, weights, results)


def test_results_come_back_in_their_places_and_the_next_call_takes_them(place: Place) -> None:
    args = arguments(place)
    call = called(compiled(step, args), args)
    _, pool, state, packed, used = args
    for _ in range(3):
        pool, state, used = call(pool, state, packed, used)
    np.testing.assert_array_equal(pool, np.full(5, 501 * (1 + 2 + 4), np.float32))
    np.testing.assert_array_equal(state.last_tokens, np.arange(4) + 3)
    np.testing.assert_array_equal(state.page_table, np.ones((2, 3)))
    np.testing.assert_array_equal(used, np.full(4, 6.0))
    assert pool.sharding.is_equivalent_to(packed.sharding, 1)


def test_what_is_donated_is_given_up(place: Place) -> None:
    args = arguments(place)
    weights, pool, state, packed, used = args
    called(compiled(step, args), args)(pool, state, packed, used)
    assert pool.is_deleted() and state.last_tokens.is_deleted()
    assert not packed.is_deleted() and not any(weight.is_deleted() for weight in weights)


def test_what_was_kept_computes_the_same_and_takes_the_same_arguments(place: Place) -> None:
    args = arguments(place)
    executable = compiled(step, args)
    data, devices = executable.executable.serialize(), list(args[1].sharding.mesh.devices.flat)  # type: ignore[attr-defined]
    again = StepExecutable.restored(data, executable.kept, executable.temporary_bytes, devices)
    pool, state, sampled = called(again, args)(*args[1:])
    np.testing.assert_array_equal(pool, np.full(5, 501, np.float32))
    np.testing.assert_array_equal(state.last_tokens, np.arange(4) + 1)
    np.testing.assert_array_equal(sampled, np.full(4, 2.0))
    assert again.kept == [0, 2, 3, 4, 5, 6, 7]


def test_what_cannot_be_loaded_raises_what_the_caller_expects(place: Place) -> None:
    (device, *_) = place(0).sharding.device_set
    with pytest.raises(jax.errors.JaxRuntimeError):
        StepExecutable.restored(b"no executable", [], 0, [device])


def test_a_step_with_callbacks_is_called_by_jax(place: Place) -> None:
    """As one has who looks for a fault with jax.debug: the executable alone does not see to them."""
    args = arguments(place)
    seen: list[int] = []

    def telling(weights: Any, pool: jax.Array, state: DeviceState, packed: jax.Array, used: jax.Array) -> Any:
        jax.debug.callback(lambda value: seen.append(int(value)), packed[3])
        return pool * 2, state, used + weights[0]

    executable = compiled(telling, args)
    assert executable.compiled is not None
    *_, sampled = called(executable, args)(*args[1:])
    np.testing.assert_array_equal(sampled, np.full(4, 2.0))
    jax.effects_barrier()
    assert set(seen) == {3}
