"""Launching the Triton kernels."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.all_reduce import kernels
from pallas_kernels.all_reduce.config import EXCHANGE_BLOCK, POLLS, WORD_BYTES, is_two_shot, row_config
from pallas_kernels.all_reduce.workspace import Peers, WorkspaceLayout
from pallas_kernels.platform import PTX_VERSION
from pallas_kernels.residual_norm.reference import NormKind
from pallas_kernels.triton_call import triton_call


def _call(*args: jax.Array, **settings: Any) -> Any:
    # For jax_triton: Triton's assembler would sooner spill than use all the registers that large programs can have.
    options = {"ptx_version": PTX_VERSION, "maxnreg": 64}
    return triton_call(*args, num_stages=1, backend_options=options, **settings)


def row_settings(shape: tuple[int, ...], itemsize: int, layout: WorkspaceLayout, polls: int) -> dict[str, Any]:
    """What the kernels over rows are compiled for; parts are [parts, T, D] of `shape`."""
    num_parts, num_rows, size = shape
    config = row_config(size * itemsize)
    return {
        "TWO_SHOT": is_two_shot(num_rows, size * itemsize, layout.num_devices),
        "D": size,
        "PARTS": num_parts,
        # Only several parts need it, and a kernel for each number of rows is compiled.
        "STRIDE": num_rows * size if num_parts > 1 else 0,
        "WORDS": config.words,
        "CHUNKS": config.chunks,
        "TOGETHER": config.together,
        "N": layout.num_devices,
        "COUNTERS": layout.row_counters,
        "INBOX": layout.row_inbox,
        "MAX_ROWS": layout.max_rows,
        "ROW_WORDS": layout.row_bytes // WORD_BYTES,
        "POLLS": polls,
    }


def all_reduce_triton(parts: jax.Array, dtype: DTypeLike, peers: Peers, *, polls: int = POLLS) -> jax.Array:
    """See `all_reduce`. `polls` bounds the waits, for tests."""
    _, num_rows, size = parts.shape
    itemsize = jnp.dtype(dtype).itemsize
    summed: jax.Array = _call(
        parts,
        peers.table,
        kernel=kernels.all_reduce_kernel,
        out_type=jax.ShapeDtypeStruct((num_rows, size), dtype),
        grid=(num_rows,),
        name="all_reduce",
        num_warps=row_config(size * itemsize).num_warps,
        **row_settings(parts.shape, itemsize, peers.layout, polls),
    )
    return summed


def all_reduce_residual_norm_triton(
    x: jax.Array,
    parts: jax.Array,
    weight: jax.Array,
    weight_row: jax.Array,
    peers: Peers,
    *,
    eps: float,
    kind: NormKind,
    polls: int = POLLS,
) -> tuple[jax.Array, jax.Array]:
    """See `all_reduce_residual_norm`; `weight` is [N, D] here. `polls` bounds the waits, for tests."""
    num_rows, size = x.shape
    itemsize = x.dtype.itemsize
    stream = jax.ShapeDtypeStruct(x.shape, x.dtype)
    results: tuple[jax.Array, jax.Array] = _call(
        x,
        parts,
        weight,
        weight_row,
        peers.table,
        kernel=kernels.all_reduce_residual_norm_kernel,
        out_type=(stream, stream),
        grid=(num_rows,),
        name="all_reduce_residual_norm",
        num_warps=row_config(size * itemsize).num_warps,
        eps=eps,
        KIND=kind,
        **row_settings(parts.shape, itemsize, peers.layout, polls),
    )
    return results


def argmax_over_devices_triton(
    values: jax.Array, ids: jax.Array, peers: Peers, *, polls: int = POLLS, block: int = EXCHANGE_BLOCK
) -> jax.Array:
    """See `argmax_over_devices`. `polls` bounds the waits and `block` is rows a program, for tests."""
    (num_rows,) = values.shape
    layout = peers.layout
    chosen: jax.Array = _call(
        values,
        ids,
        peers.table,
        kernel=kernels.argmax_kernel,
        out_type=jax.ShapeDtypeStruct((num_rows,), jnp.int32),
        grid=(-(-num_rows // block),),
        name="argmax_over_devices",
        num_warps=max(1, block // 32),
        S=num_rows,
        BLOCK=block,
        N=layout.num_devices,
        COUNTERS=layout.exchange_counters,
        INBOX=layout.exchange_inbox,
        MAX_ROWS=layout.max_exchange_rows,
        POLLS=polls,
    )
    return chosen


def all_to_all_triton(values: jax.Array, peers: Peers, *, polls: int = POLLS) -> jax.Array:
    """See `all_to_all`. `polls` bounds the waits, for tests."""
    layout = peers.layout
    rows, size = values.shape[0] // layout.num_devices, values.shape[1]
    # Whole words of an inbox's row are a piece.
    piece_bytes = layout.row_bytes // WORD_BYTES * WORD_BYTES
    pieces = layout.pieces(size * values.dtype.itemsize)
    settings = row_settings((1, rows, piece_bytes // values.dtype.itemsize), values.dtype.itemsize, layout, polls)
    for name in ("TWO_SHOT", "D", "PARTS", "STRIDE"):
        del settings[name]
    shares: jax.Array = _call(
        values,
        peers.table,
        kernel=kernels.all_to_all_kernel,
        out_type=jax.ShapeDtypeStruct((rows, layout.num_devices * size), values.dtype),
        grid=(rows, pieces),
        name="all_to_all",
        num_warps=row_config(piece_bytes).num_warps,
        ROWS=rows,
        D=size,
        PIECES=pieces,
        **settings,
    )
    return shares
