"""The pool's size: pages for the memory there is."""

import jax.numpy as jnp
import pytest

from jaxserve.errors import ConfigError
from jaxserve.runner.kv_pool import MEMORY_MARGIN_BYTES, KVPoolSpec, most_pages, pages_in_memory
from jaxserve.sharding import make_mesh

GIB = 2**30


def spec(**changes: object) -> KVPoolSpec:
    fields = {
        "num_layers": 3,
        "num_pages": 10,
        "page_size": 16,
        "num_kv_heads": 4,
        "head_dim": 64,
        "dtype": jnp.dtype("bfloat16"),
    }
    return KVPoolSpec(**fields | changes)  # type: ignore[arg-type]


def test_a_page_holds_keys_and_values_of_its_tokens_in_all_layers() -> None:
    assert spec().page_bytes == 3 * 16 * 2 * 4 * 64 * 2
    assert spec(dtype=jnp.dtype("float32")).page_bytes == 2 * spec().page_bytes


@pytest.mark.parametrize("num_devices", [1, 4])
def test_the_pool_has_the_size_it_says_and_is_split_over_heads(num_devices: int) -> None:
    pool = spec().allocate(make_mesh(num_devices))
    assert pool.nbytes == 10 * spec().page_bytes
    assert {shard.data.shape for shard in pool.addressable_shards} == {(3 * 10, 2, 16, 4 // num_devices, 64)}
    assert not pool.any()


def test_a_pool_whose_slots_cannot_be_counted_is_refused_with_the_most_pages() -> None:
    most = most_pages(3, 16)
    # The last slot of padding: past all layers, in the last of them, at the end of a step of a million tokens.
    num_slots = spec(num_pages=most).shape[0] * 16
    assert num_slots + 2 * (num_slots // 3) + 10**6 < 2**31
    with pytest.raises(ConfigError, match=rf"lower num_pages to at most {most}"):
        spec(num_pages=most + 1)


def test_pages_fill_what_weights_step_and_margin_leave() -> None:
    def pages(num_devices: int) -> int:
        return pages_in_memory(
            page_bytes=2**20, num_devices=num_devices, limit_bytes=10 * GIB, used_bytes=4 * GIB, step_bytes=GIB
        )

    free = 5 * GIB - MEMORY_MARGIN_BYTES
    assert pages(1) == free // 2**20
    assert pages(4) == 4 * free // 2**20


def test_a_little_less_free_memory_makes_no_other_pool() -> None:
    """Steps are compiled for a number of pages, and kept."""

    def pages(used_bytes: int) -> int:
        return pages_in_memory(
            page_bytes=2**20, num_devices=1, limit_bytes=70 * GIB, used_bytes=used_bytes, step_bytes=GIB
        )

    used = 20 * GIB + 5 * 2**20
    assert pages(used) == pages(used + 60 * 2**20)
    assert 0 <= (49 * GIB - MEMORY_MARGIN_BYTES) // 2**20 - pages(used) < pages(used) / 128


@pytest.mark.parametrize("used_bytes", [9 * GIB, 12 * GIB, 10 * GIB - MEMORY_MARGIN_BYTES - 2**21 + 1])
def test_memory_without_room_for_two_pages_is_refused_with_the_figures(used_bytes: int) -> None:
    with pytest.raises(ConfigError, match="no memory is left for the KV pool") as caught:
        pages_in_memory(
            page_bytes=2**20,
            num_devices=1,
            limit_bytes=10 * GIB,
            used_bytes=used_bytes,
            step_bytes=GIB if used_bytes == 9 * GIB else 0,
        )
    for part in ("10.0 GiB", f"{used_bytes / GIB:.1f} GiB", "gpu_memory_utilization", "max_num_batched_tokens"):
        assert part in str(caught.value)
