"""Arrays in host memory: what the host writes the step reads, and the other way round, where they lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxserve.runner.host_memory import HostArray, HostArrays, host_sharding, read
from jaxserve.sharding import make_mesh


@pytest.fixture
def mesh() -> Mesh:
    return make_mesh(4)


def add(packed: jax.Array, used: jax.Array) -> jax.Array:
    packed, used = (jax.device_put(x, jax.memory.Space.Device) for x in (packed, used))
    return packed + used


def test_a_step_reads_what_the_host_wrote_last_and_the_host_what_the_step_wrote(mesh: Mesh) -> None:
    sharding = host_sharding(mesh)
    step = jax.jit(add, donate_argnums=1, out_shardings=sharding)
    packed, total = HostArray.zeros(5, sharding), HostArray.zeros(5, sharding).array
    for values in ([1, 2, 3, 4, 5], [10, 20, 30, 40, -50]):
        packed.write(np.array(values, np.int32))
        total = step(packed.array, total)
        read(total)
    assert read(total).tolist() == [11, 22, 33, 44, -45]
    for shard in total.addressable_shards:
        assert np.asarray(shard.data).tolist() == [11, 22, 33, 44, -45]


def test_what_was_read_can_be_donated_again(mesh: Mesh) -> None:
    """A view that NumPy takes by itself would make the step write elsewhere."""
    sharding = host_sharding(mesh)
    step = jax.jit(add, donate_argnums=1, out_shardings=sharding)
    packed = HostArray.zeros(3, sharding).array
    total = step(packed, step(packed, HostArray.zeros(3, sharding).array))
    seen = {total.addressable_data(0).unsafe_buffer_pointer()}
    for _ in range(3):
        view = read(total)
        total = step(packed, total)
        seen.add(total.addressable_data(0).unsafe_buffer_pointer())
        assert view.tolist() == [0, 0, 0]
    assert len(seen) == 1


def test_arrays_are_used_again_only_after_they_were_given_back(mesh: Mesh) -> None:
    arrays = HostArrays(host_sharding(mesh))
    values = jnp.arange(4, dtype=jnp.int32)
    first, second = arrays.take(np.asarray(values)), arrays.take(np.asarray(values + 1))
    assert first is not second
    assert np.asarray(first.array).tolist() == [0, 1, 2, 3]
    arrays.give_back(first)
    other_size = arrays.take(np.zeros(5, np.int32))
    assert other_size.array.shape == (5,)
    again = arrays.take(np.asarray(values + 2))
    assert again is first
    assert [copy.tolist() for copy in again.copies] == [[2, 3, 4, 5]] * 4
