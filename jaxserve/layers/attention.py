"""Attention over the paged pool, partitioned over kv heads.

The kernels stand inside `jax.shard_map`: each device writes and reads its own kv heads and no data crosses.
"""

from dataclasses import dataclass, field
from functools import partial

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxserve.sharding import TENSOR_AXIS
from pallas_kernels.kv_cache_update import kv_cache_update
from pallas_kernels.paged_attention import paged_attention


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AttentionMetadata:
    """Where each token and sequence of a step lies. All int32.

    Attributes:
        positions: [T] position of each token in its sequence.
        slot_mapping: [T] slot of the pool that each token's key and value go to; out of range for padding.
        page_table: [S, max_pages] pages of each sequence.
        query_start_loc: [S + 1] first row of each sequence's tokens.
        seq_lens: [S] tokens of each sequence, this step's included.
        decode_only: every sequence has at most one token in the step, T == S, token i of sequence i. Static.
    """

    positions: jax.Array
    slot_mapping: jax.Array
    page_table: jax.Array
    query_start_loc: jax.Array
    seq_lens: jax.Array
    decode_only: bool = field(default=False, metadata={"static": True})


KV_PAGES_SPEC = P(None, None, None, TENSOR_AXIS, None)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    kv_pages: jax.Array,
    metadata: AttentionMetadata,
    *,
    mesh: Mesh,
    scale: float,
) -> tuple[jax.Array, jax.Array]:
    """Write a step's keys and values into one layer's pages, then attend over them.

    Args:
        q: [T, K, G, H] rotated queries, grouped by kv head.
        k: [T, K, H] rotated keys.
        v: [T, K, H] values.
        kv_pages: [P, 2, page_size, K, H] the layer's pages.
        metadata: where the tokens lie.
        mesh: the devices; K must divide by the size of its tensor axis.
        scale: factor on the scores.

    Returns:
        The attended values [T, K, G, H] and the pages with the step's tokens in them.
    """
    heads = P(None, TENSOR_AXIS)
    everywhere = P()

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(heads, heads, heads, KV_PAGES_SPEC, everywhere, everywhere, everywhere, everywhere),
        out_specs=(heads, KV_PAGES_SPEC),
        check_vma=False,
    )
    def local(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        kv_pages: jax.Array,
        slot_mapping: jax.Array,
        page_table: jax.Array,
        query_start_loc: jax.Array,
        seq_lens: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        kv_pages = kv_cache_update(kv_pages, k, v, slot_mapping)
        out = paged_attention(
            q, kv_pages, page_table, query_start_loc, seq_lens, scale=scale, decode_only=metadata.decode_only
        )
        return out, kv_pages

    m = metadata
    attended: tuple[jax.Array, jax.Array] = local(
        q, k, v, kv_pages, m.slot_mapping, m.page_table, m.query_start_loc, m.seq_lens
    )
    return attended
