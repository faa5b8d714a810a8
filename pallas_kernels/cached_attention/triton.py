"""The operation by Triton kernels: cutting the batch into work, and launching."""

from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from pallas_kernels.cached_attention import kernels
from pallas_kernels.cached_attention.reference import places_in_array
from pallas_kernels.paged_attention import ScoreOptions
from pallas_kernels.paged_attention.config import DecodeConfig, MosaicPrefillConfig, decode_config, padded_head_dim
from pallas_kernels.paged_attention.triton import LOG2_E, merge_sizes, paged_attention_triton
from pallas_kernels.paged_attention.work import assign
from pallas_kernels.platform import PTX_VERSION
from pallas_kernels.residual_norm.reference import sum_parts
from pallas_kernels.triton_call import triton_call

WORK_FIELDS = 8  # so that an item lies in one sector of the memory; the last is unused


def cached_attention_triton(
    qkv: jax.Array,
    cos_sin: jax.Array | None,
    kv_pages: jax.Array,
    slot_mapping: jax.Array,
    page_table: jax.Array,
    query_start_loc: jax.Array,
    seq_lens: jax.Array,
    *,
    first_page: jax.Array | None = None,
    decode_only: bool = False,
    dtype: DTypeLike | None = None,
    decode: DecodeConfig | None = None,
    prefill: MosaicPrefillConfig | None = None,
    **options: Unpack[ScoreOptions],
) -> tuple[jax.Array, jax.Array]:
    """See `cached_attention`. `decode` overrides the tile sizes of the decode kernel, `prefill` the prefill kernel."""
    parts, dtype = qkv if qkv.ndim == 5 else qkv[None], jnp.dtype(dtype or qkv.dtype)
    if decode_only:
        return _decode(parts, dtype, cos_sin, kv_pages, page_table, seq_lens, first_page, decode, options)
    qkv = sum_parts(parts, dtype)
    slot_mapping, page_table = places_in_array(slot_mapping, page_table, first_page, kv_pages.shape[2])
    q, kv_pages = _rotate_and_write(qkv, cos_sin, kv_pages, slot_mapping)
    out = paged_attention_triton(q, kv_pages, page_table, query_start_loc, seq_lens, **options, prefill=prefill)
    return out, kv_pages


def decode_work(
    seq_lens: jax.Array, page_table: jax.Array, page_size: int, window: int | None, config: DecodeConfig, slots: int
) -> jax.Array:
    """The work list [items, WORK_FIELDS] of `decode_kernel` for [S] sequences of one query each.

    The keys written before this step are cut into chunks that run at the same time: as small as they can be while
    there are no more of them than fill the card `slots` programs at a time, in as many rounds as there must be. So one
    long sequence is spread over many programs while short ones take one each, and no round is left half empty. The
    chunks of one sequence are of equal size, and every sequence has at least one, padding too.
    """
    num_seqs = seq_lens.shape[0]
    num_items = slots * -(-num_seqs // slots)
    last = seq_lens - 1
    old = jnp.maximum(last if window is None else jnp.minimum(last, window - 1), 0)
    sizes = np.array(_chunk_sizes(config.block_n, config.min_chunk, page_table.shape[1] * page_size), np.int32)
    counts = jnp.maximum((old[None] + sizes[:, None] - 1) // sizes[:, None], 1)
    # The largest size holds a whole sequence and always fits.
    too_many = jnp.sum(jnp.sum(counts, axis=1, dtype=jnp.int32) > num_items, dtype=jnp.int32)
    num_chunks = counts[too_many]
    chunk = (old + num_chunks - 1) // num_chunks
    chunk = (chunk + config.block_n - 1) // config.block_n * config.block_n
    owner, first = assign(num_chunks, num_items)
    seq = jnp.minimum(owner, num_seqs - 1)
    index = jnp.arange(num_items, dtype=jnp.int32) - first[seq]
    begin = jnp.maximum(last, 0)[seq] - old[seq] + index * chunk[seq]
    end = jnp.minimum(begin + chunk[seq], last[seq])
    new_page = page_table[seq, jnp.maximum(last, 0)[seq] // page_size]
    fields = [jnp.where(owner < num_seqs, owner, -1), begin, end, index, num_chunks[seq], seq_lens[seq], new_page]
    unused = [jnp.zeros_like(begin)] * (WORK_FIELDS - len(fields))
    return jnp.stack([*fields, *unused], axis=1)


def _chunk_sizes(block_n: int, smallest: int, max_keys: int) -> list[int]:
    """Sizes to choose from: multiples of block_n, each about a fifth above the last, up to max_keys."""
    sizes = [-(-smallest // block_n) * block_n]
    while sizes[-1] < max_keys:
        sizes.append(sizes[-1] + max(1, sizes[-1] // (5 * block_n)) * block_n)
    return sizes


def _rotated(cos_sin: jax.Array | None, otherwise: jax.Array) -> tuple[jax.Array, int]:
    """The table and R; without one any array, for a kernel's arguments are fixed, and 0."""
    return (otherwise, 0) if cos_sin is None else (cos_sin, 2 * cos_sin.shape[-1])


def _rotate_and_write(
    qkv: jax.Array, cos_sin: jax.Array | None, kv_pages: jax.Array, slot_mapping: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The rotated queries [T, K, G, H], and the pool with keys and values."""
    num_tokens, num_kv_heads, rows, head_dim = qkv.shape
    table, rotated = _rotated(cos_sin, slot_mapping)
    pool = jax.new_ref(kv_pages)
    q = triton_call(
        qkv,
        table,
        pool,
        slot_mapping,
        kernel=kernels.rotate_and_write_kernel,
        out_type=jax.ShapeDtypeStruct((num_tokens, num_kv_heads, rows - 2, head_dim), qkv.dtype),
        grid=(num_kv_heads, num_tokens),
        name="rotate_and_write",
        num_warps=max(1, min(4, _power_of_two(rows) * padded_head_dim(head_dim) // 256)),
        num_stages=1,
        backend_options={"ptx_version": PTX_VERSION},
        num_slots=kv_pages.shape[0] * kv_pages.shape[2],
        K=num_kv_heads,
        G=rows - 2,
        H=head_dim,
        ROTATED=rotated,
        PAGE_SIZE=kv_pages.shape[2],
        BLOCK_ROWS=_power_of_two(rows),
        BLOCK_H=padded_head_dim(head_dim),
    )
    return q, pool[...]


def _decode(
    qkv: jax.Array,
    dtype: Any,
    cos_sin: jax.Array | None,
    kv_pages: jax.Array,
    page_table: jax.Array,
    seq_lens: jax.Array,
    first_page: jax.Array | None,
    config: DecodeConfig | None,
    options: ScoreOptions,
) -> tuple[jax.Array, jax.Array]:
    num_parts, num_seqs, num_kv_heads, rows, head_dim = qkv.shape
    group = rows - 2
    config = config or decode_config(head_dim, group, dtype, num_seqs)
    slots = config.num_chunks(num_kv_heads)
    work = decode_work(seq_lens, page_table, kv_pages.shape[2], options["window"], config, slots)
    num_items = work.shape[0]
    slopes = options["alibi_slopes"]
    table, rotated = _rotated(cos_sin, seq_lens)
    partial_out = jax.ShapeDtypeStruct((num_items, num_kv_heads, group, head_dim), jnp.float32)
    pool = jax.new_ref(kv_pages)
    results: Any = triton_call(
        qkv,
        table,
        pool,
        page_table,
        work,
        jnp.zeros(1, jnp.int32) if first_page is None else first_page,
        # Written by the kernel, but 0 again when it ends, so that all layers may share one array.
        jnp.zeros(num_seqs * num_kv_heads, jnp.int32),
        seq_lens if slopes is None else slopes,
        kernel=kernels.decode_kernel,
        out_type=(
            jax.ShapeDtypeStruct((num_seqs, num_kv_heads, group, head_dim), dtype),
            partial_out,
            jax.ShapeDtypeStruct(partial_out.shape[:-1], jnp.float32),
        ),
        grid=(num_kv_heads, num_items),
        name="cached_attention_decode",
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        backend_options={"ptx_version": PTX_VERSION},
        scale_log2=options["scale"] * LOG2_E,
        WINDOW=options["window"] or 0,
        SOFT_CAP=options["soft_cap"] or 0.0,
        ALIBI=slopes is not None,
        max_pages=page_table.shape[1],
        K=num_kv_heads,
        G=group,
        H=head_dim,
        ROTATED=rotated,
        PAGE_SIZE=kv_pages.shape[2],
        BLOCK_G=max(16, _power_of_two(group)),
        BLOCK_H=padded_head_dim(head_dim),
        BLOCK_N=config.block_n,
        **merge_sizes(group, head_dim),
        # Products of 32-bit values keep their precision instead of being rounded to TF32.
        PRECISION="ieee" if dtype == jnp.float32 else "tf32",
        PARTS=num_parts,
        # Only several parts need it, and a kernel for each number of sequences is compiled.
        STRIDE=qkv[0].size if num_parts > 1 else 0,
    )
    return results[0], pool[...]


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
