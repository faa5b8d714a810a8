"""Attention over the paged pool, partitioned over kv heads.

The kernels stand inside `jax.shard_map`: each device writes and reads its own kv heads and no data crosses.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from jaxserve.sharding import TENSOR_AXIS
from pallas_kernels.cached_attention import cached_attention


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AttentionMetadata:
    """Where each token and sequence of a step lies. All int32.

    Attributes:
        positions: [T] position of each token in its sequence.
        slot_mapping: [T] slot that each token's key and value go to, counted from a layer's first page; past the whole
            array of the pool for padding.
        page_table: [S, max_pages] pages of each sequence, counted likewise.
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
    qkv: jax.Array,
    kv_pages: jax.Array,
    first_page: jax.Array,
    metadata: AttentionMetadata,
    *,
    mesh: Mesh,
    scale: float,
    cos_sin: jax.Array | None = None,
    window: int | None = None,
    soft_cap: float | None = None,
    alibi_slopes: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Rotate a step's queries and keys, write its keys and values into a layer's pages, attend over them.

    Args:
        qkv: [parts, T, K, G + 2, H], whose sum are the queries of each kv head, then its key and its value.
        kv_pages: [L * P, 2, page_size, K, H] the pages of all layers.
        first_page: [1] int32, where the layer's begin.
        metadata: where the tokens lie.
        mesh: the devices; K must divide by the size of its tensor axis.
        scale: factor on the scores.
        cos_sin: [T, 2, R / 2] float32, the rows of `rope_table` at the tokens' positions; the first R of each head are
            rotated. None rotates nothing.
        window: keys that each query sees, its own included; None is all.
        soft_cap: c in c * tanh(score / c); None leaves scores as they are.
        alibi_slopes: [K, G] float32, split over K like the heads; None adds no bias.
        dtype: of the sum of several parts; None is qkv's.

    Returns:
        The attended values [T, K, G, H] and the pages with the step's tokens in the layer's.
    """
    m = metadata
    scores = ("scale", scale), ("window", window), ("soft_cap", soft_cap)
    options = (*scores, ("decode_only", m.decode_only), ("dtype", jnp.dtype(dtype or qkv.dtype)))
    where = m.slot_mapping, m.page_table, m.query_start_loc, m.seq_lens
    attended: tuple[jax.Array, jax.Array] = _attend_locally(
        mesh, options, qkv, cos_sin, kv_pages, *where, first_page, alibi_slopes
    )
    return attended


@partial(jax.jit, static_argnums=(0, 1))
def _attend_locally(mesh: Mesh, options: tuple[tuple[str, Any], ...], *args: jax.Array | None) -> Any:
    """`cached_attention` on each device's heads. A function of its own, so that layers of different structure share it:
    a kernel for prompts takes a second to lower. Hence, too, the first page is an array."""
    heads, whole = P(None, TENSOR_AXIS), P()

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(None, *heads), whole, KV_PAGES_SPEC, whole, whole, whole, whole, whole, P(TENSOR_AXIS)),
        out_specs=(heads, KV_PAGES_SPEC),
        check_vma=False,
    )
    def local(*args: jax.Array) -> tuple[jax.Array, jax.Array]:
        *arguments, first_page, slopes = args
        return cached_attention(*arguments, first_page=first_page, alibi_slopes=slopes, **dict(options))

    return local(*args)
