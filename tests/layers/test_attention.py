"""Attention over the pool: what its layers share."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxserve.layers.attention import KV_PAGES_SPEC, AttentionMetadata, attend
from jaxserve.sharding import make_mesh


def test_layers_of_one_pool_share_their_attention_s_lowering() -> None:
    """A kernel for prompts takes a second to lower; a layer's first page must not be compiled into it."""
    mesh = make_mesh(1)
    row = jnp.zeros(2, jnp.int32)
    metadata = AttentionMetadata(row, row, jnp.zeros((2, 3), jnp.int32), jnp.arange(3, dtype=jnp.int32), row)

    def run(qkv: jax.Array, kv_pages: jax.Array) -> jax.Array:
        for layer in range(3):
            first_page = jnp.full(1, layer * 5, jnp.int32)
            _, kv_pages = attend(qkv, kv_pages, first_page, metadata, mesh=mesh, scale=1.0)
        return kv_pages

    def abstract(shape: tuple[int, ...], spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, "float32", sharding=NamedSharding(mesh, spec))

    args = abstract((1, 2, 4, 3, 8), P()), abstract((15, 2, 4, 4, 8), KV_PAGES_SPEC)
    lowered = jax.jit(run).lower(*args).as_text()
    assert lowered.count("call @_attend_locally") == 3
    assert lowered.count("func.func private @_attend_locally") == 1
