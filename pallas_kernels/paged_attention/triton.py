"""Paged attention by Triton kernels: cutting the batch into work, and launching.

Sequences with one query go to the decode kernel, which splits long ones over their keys; those with more go to the
prefill kernel, tile by tile. Both have a grid of fixed size, as a compiled step needs. Which sequence a program works
for is computed on the device from query_start_loc and seq_lens, by a few small XLA operations that depend on nothing
else, so that all layers of a step share one result.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.paged_attention import kernels
from pallas_kernels.paged_attention.config import (
    DecodeConfig,
    MosaicPrefillConfig,
    PrefillConfig,
    decode_config,
    padded_head_dim,
    prefill_config,
)
from pallas_kernels.paged_attention.mosaic_gpu import prefill_mosaic_gpu
from pallas_kernels.paged_attention.work import assign
from pallas_kernels.platform import PTX_VERSION
from pallas_kernels.triton_call import triton_call

LOG2_E = math.log2(math.e)
# Values that a merging program holds at once.
MERGE_VALUES = 4096


class _Batch(NamedTuple):
    """The arguments of `paged_attention`, and what the kernels' compile-time arguments have in common."""

    q: jax.Array
    kv_pages: jax.Array
    page_table: jax.Array
    query_start_loc: jax.Array
    seq_lens: jax.Array
    scale: float
    window: int | None
    soft_cap: float | None
    alibi_slopes: jax.Array | None

    def slopes(self) -> jax.Array:
        """The slopes, or any array where there are none: a kernel's arguments are fixed."""
        return self.seq_lens if self.alibi_slopes is None else self.alibi_slopes

    def sizes(self) -> dict[str, int]:
        _, num_kv_heads, group, head_dim = self.q.shape
        return {"K": num_kv_heads, "G": group, "H": head_dim, "BLOCK_H": padded_head_dim(head_dim)}

    def options(self) -> dict[str, object]:
        return {
            "scale_log2": self.scale * LOG2_E,
            "WINDOW": self.window or 0,
            "SOFT_CAP": self.soft_cap or 0.0,
            "ALIBI": self.alibi_slopes is not None,
            "max_pages": self.page_table.shape[1],
            "PAGE_SIZE": self.kv_pages.shape[2],
            # Products of 32-bit values keep their precision instead of being rounded to TF32.
            "PRECISION": "ieee" if self.q.dtype == jnp.float32 else "tf32",
            **self.sizes(),
        }


def paged_attention_triton(
    q: jax.Array,
    kv_pages: jax.Array,
    page_table: jax.Array,
    query_start_loc: jax.Array,
    seq_lens: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    alibi_slopes: jax.Array | None = None,
    decode_only: bool = False,
    decode: DecodeConfig | None = None,
    prefill: PrefillConfig | MosaicPrefillConfig | None = None,
) -> jax.Array:
    """See `paged_attention`. `decode` and `prefill` override the tile sizes, and `prefill` picks its kernel."""
    num_tokens, num_kv_heads, group, head_dim = q.shape
    batch = _Batch(q, kv_pages, page_table, query_start_loc, seq_lens, scale, window, soft_cap, alibi_slopes)
    decode = decode or decode_config(head_dim, group, q.dtype, seq_lens.shape[0])
    if decode_only:
        return _decode(batch, decode, None)
    if isinstance(prefill, MosaicPrefillConfig):
        out = prefill_mosaic_gpu(q, kv_pages, page_table, query_start_loc, seq_lens, scale=scale, config=prefill)
        return _decode(batch, decode, out)
    prefill = prefill or prefill_config(num_tokens, num_kv_heads, group, head_dim, q.dtype)
    return _decode(batch, decode, _prefill(batch, prefill))


def _padding_rows(batch: _Batch) -> jax.Array:
    return (batch.q.shape[0] - batch.query_start_loc[-1])[None]


def _prefill(batch: _Batch, config: PrefillConfig) -> jax.Array:
    """Output rows of the sequences with more than one query; zeros for padding; the others' are not written."""
    num_tokens, num_kv_heads, group, _ = batch.q.shape
    num_seqs = batch.seq_lens.shape[0]
    queries = jnp.diff(batch.query_start_loc)
    rows = jnp.concatenate([jnp.where(queries > 1, queries, 0), _padding_rows(batch)]) * group
    # Each sequence, and the padding, may end in a part of a tile.
    num_tiles = -(-num_tokens * group // config.block_m) + min(num_seqs + 1, num_tokens)
    tile_seq, first_tile = assign((rows + config.block_m - 1) // config.block_m, num_tiles)
    out: jax.Array = triton_call(
        batch.q,
        batch.kv_pages,
        batch.page_table,
        batch.query_start_loc,
        batch.seq_lens,
        tile_seq,
        first_tile,
        batch.slopes(),
        # Arguments and not compile-time constants: one compiled kernel serves all buckets.
        num_seqs,
        num_tokens,
        kernel=kernels.prefill_kernel,
        out_type=jax.ShapeDtypeStruct(batch.q.shape, batch.q.dtype),
        grid=(num_kv_heads, num_tiles),
        name="paged_attention_prefill",
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        backend_options={"ptx_version": PTX_VERSION},
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        **batch.options(),
    )
    return out


def _decode(batch: _Batch, config: DecodeConfig, out: jax.Array | None) -> jax.Array:
    """Output rows of the sequences with one query, into `out` in place; None: all others are padding, and zero."""
    num_tokens, num_kv_heads, group, head_dim = batch.q.shape
    num_seqs = batch.seq_lens.shape[0]
    target = config.num_chunks(num_kv_heads)
    visible = batch.seq_lens if batch.window is None else jnp.minimum(batch.seq_lens, batch.window)
    keys = jnp.where(jnp.diff(batch.query_start_loc) == 1, visible, 0)
    # Cut into chunks of 1/target of all keys, n sequences make fewer than target + n chunks.
    chunk = jnp.maximum((jnp.sum(keys) + target - 1) // target, 1)
    chunk = (chunk + config.block_n - 1) // config.block_n * config.block_n
    padding = _padding_rows(batch) if out is None else jnp.zeros(1, jnp.int32)
    num_items = target + (num_tokens if out is None else min(num_tokens, num_seqs))
    item_seq, first_item = assign(jnp.concatenate([(keys + chunk - 1) // chunk, padding]), num_items)
    chunk_size = chunk[None]

    chunk_out = jax.ShapeDtypeStruct((num_items, num_kv_heads, group, head_dim), jnp.float32)
    chunk_lse = jax.ShapeDtypeStruct(chunk_out.shape[:-1], jnp.float32)
    result = jax.ShapeDtypeStruct(batch.q.shape, batch.q.dtype)
    # Written by the kernel, but 0 again when it ends, so that all layers may share one array.
    arrived = jnp.zeros(num_seqs * num_kv_heads, jnp.int32)
    block_g = max(16, 1 << (group - 1).bit_length())
    return _call(
        (
            batch.q,
            batch.kv_pages,
            batch.page_table,
            batch.query_start_loc,
            batch.seq_lens,
            item_seq,
            first_item,
            chunk_size,
            arrived,
            batch.slopes(),
            num_seqs,
        ),
        out,
        (result, chunk_out, chunk_lse),
        kernel=kernels.decode_kernel,
        grid=(num_kv_heads, num_items),
        name="paged_attention_decode",
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        BLOCK_G=block_g,
        BLOCK_N=config.block_n,
        **merge_sizes(group, head_dim),
        **batch.options(),
    )[0]


def merge_sizes(group: int, head_dim: int) -> dict[str, int]:
    """How a merging program cuts the chunks of a sequence and kv head."""
    padded = 1 << (group - 1).bit_length()
    chunks = MERGE_VALUES // (padded * padded_head_dim(head_dim))
    return {"MERGE_G": padded, "MERGE_CHUNKS": max(1, min(8, chunks))}


def _call(
    inputs: tuple[jax.Array | int, ...],
    out: jax.Array | None,
    results: tuple[jax.ShapeDtypeStruct, ...],
    **options: Any,
) -> tuple[jax.Array, ...]:
    """triton_call whose first result is written into `out` in place, if there is one; its other rows stay."""
    call = partial(triton_call, *inputs, backend_options={"ptx_version": PTX_VERSION}, **options)
    if out is None:
        return tuple(call(out_type=results))
    ref = jax.new_ref(out)
    rest = call(ref, out_type=results[1:])
    return ref[...], *rest
