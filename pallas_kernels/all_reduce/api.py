"""The public operations: they check their arguments and pick an implementation.

All are called inside `jax.shard_map` over one mesh axis, by all of its devices.
"""

from typing import get_args

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.all_reduce.reference import (
    all_reduce_reference,
    all_to_all_reference,
    argmax_over_devices_reference,
)
from pallas_kernels.all_reduce.workspace import Peers
from pallas_kernels.platform import Implementation, pick_implementation
from pallas_kernels.residual_norm import NormKind, residual_norm
from pallas_kernels.residual_norm.api import check_norm_weight, stacked

_KERNEL_DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)


def all_reduce(
    parts: jax.Array,
    peers: Peers | None,
    *,
    axis_name: str,
    dtype: DTypeLike | None = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Sum over a device's own parts, and over the devices.

    Args:
        parts: [parts, T, D] of this device, in `dtype` if there is one part, else in float32. Their sum is rounded to
            `dtype` before it is sent.
        peers: how to reach the other devices; None where they cannot be.
        axis_name: the mesh axis.
        dtype: of the sum; that of `parts` if None.
        implementation: `reference` is XLA's collective; `triton` writes into the other GPUs' memory. None picks Triton
            where there are peers and their workspace takes the rows. Kernels add in float32, in the order of ranks:
            all devices get the same bits, whether each of them adds or one does and sends the sum (`config.py`).

    Returns:
        [T, D] in `dtype`, the same on every device.

    Raises:
        ValueError: shapes or dtypes contradict what is said here, or the implementation is unknown or cannot take them.
    """
    wanted = jnp.dtype(parts.dtype if dtype is None else dtype)
    _check_parts(parts, wanted)
    if _pick(implementation, peers, parts.shape[1], parts.shape[2], wanted) == "reference":
        return all_reduce_reference(parts, wanted, axis_name)
    # Loaded only here: jax_triton is not needed where the reference runs.
    from pallas_kernels.all_reduce.triton import all_reduce_triton

    assert peers is not None
    return all_reduce_triton(parts, wanted, peers)


def all_reduce_residual_norm(
    x: jax.Array,
    parts: jax.Array,
    weight: jax.Array,
    peers: Peers | None,
    weight_row: jax.Array | None = None,
    *,
    axis_name: str,
    eps: float,
    kind: NormKind = "rms",
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`all_reduce`, with `residual_norm` of what comes of it in the same kernel.

    Args:
        x: [T, D] the residual stream, whole on every device.
        parts: [parts, T, D] of this device, in x's dtype if there is one part, else in float32.
        weight: [D] of the norm, or [N, D] of several.
        peers: as in `all_reduce`.
        weight_row: [1] int32, which of several.
        axis_name: the mesh axis.
        eps: added to the mean square.
        kind: as in `residual_norm`.
        implementation: as in `all_reduce`; after XLA's collective, `residual_norm` picks its own.

    Returns:
        x + the sum, rounded to x's dtype as if one product had given it, and its norm: both [T, D] in x's dtype, the
        same on every device.

    Raises:
        ValueError: shapes or dtypes contradict each other, or the kind or the implementation is unknown or cannot take
            them.
    """
    _check_parts(parts, x.dtype)
    if x.ndim != 2 or parts.shape[1:] != x.shape:
        raise ValueError(f"x {x.shape} must be [T, D], and parts {parts.shape} [parts, T, D]")
    check_norm_weight(weight, weight_row, x.shape[1])
    if kind not in get_args(NormKind):
        raise ValueError(f"unknown kind {kind!r}; there are: {', '.join(get_args(NormKind))}")
    if _pick(implementation, peers, *x.shape, x.dtype) == "reference":
        summed = all_reduce_reference(parts, x.dtype, axis_name)
        return residual_norm(x, summed, weight, weight_row, eps=eps, kind=kind, implementation=implementation)
    # As above.
    from pallas_kernels.all_reduce.triton import all_reduce_residual_norm_triton

    assert peers is not None
    return all_reduce_residual_norm_triton(x, parts, *stacked(weight, weight_row), peers, eps=eps, kind=kind)


def argmax_over_devices(
    values: jax.Array,
    ids: jax.Array,
    peers: Peers | None,
    *,
    axis_name: str,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Of each row, the id that the device with the largest value has.

    It also tells of devices that did not arrive: with kernels, the result is -1 on every device that hears of a wait
    that was given up, in this call or in any before it.

    Args:
        values: [S] float32 of this device.
        ids: [S] int32, 0 or more; those of a device are above those of all devices before it, or the same.
        peers: as in `all_reduce`.
        axis_name: the mesh axis.
        implementation: as in `all_reduce`.

    Returns:
        [S] int32, the same on every device. Of equal values, the first device's id is taken.

    Raises:
        ValueError: shapes or dtypes contradict what is said here, or the implementation is unknown or cannot take them.
    """
    if values.ndim != 1 or ids.shape != values.shape or values.dtype != jnp.float32 or ids.dtype != jnp.int32:
        raise ValueError(
            f"values and ids must be [S], float32 and int32; got {values.dtype}{values.shape}, {ids.dtype}{ids.shape}"
        )
    takes_triton = peers is not None and values.shape[0] <= peers.layout.max_exchange_rows
    if _checked_pick(implementation, takes_triton=takes_triton) == "reference":
        return argmax_over_devices_reference(values, ids, axis_name)
    # As above.
    from pallas_kernels.all_reduce.triton import argmax_over_devices_triton

    assert peers is not None
    return argmax_over_devices_triton(values, ids, peers)


def all_to_all(
    values: jax.Array, peers: Peers | None, *, axis_name: str, implementation: Implementation | None = None
) -> jax.Array:
    """From columns to rows: each device gives its columns of all rows, and gets all columns of its share of the rows.

    Args:
        values: [N * R, D] of this device, one of N: D columns of every row. float32, bfloat16 or float16.
        peers: as in `all_reduce`.
        axis_name: the mesh axis.
        implementation: as in `all_reduce`. Kernels take as many rows as fit an inbox, where a long row takes the room
            of several, and no more than `config.MAX_EXCHANGE_BYTES` of them.

    Returns:
        [R, N * D]: rows R * rank and on, the columns in the order of ranks.

    Raises:
        ValueError: shapes or dtypes contradict what is said here, or the implementation is unknown or cannot take them.
    """
    num_devices = jax.lax.axis_size(axis_name)
    if values.ndim != 2 or values.shape[0] % num_devices or values.dtype not in _KERNEL_DTYPES:
        raise ValueError(
            f"values must be [N * R, D] over {num_devices} devices, of 16 or 32 bit floats; got "
            f"{values.dtype}{values.shape}"
        )
    rows, row_bytes = values.shape[0] // num_devices, values.shape[1] * values.dtype.itemsize
    takes_triton = peers is not None and peers.layout.takes_columns(rows, row_bytes)
    if _checked_pick(implementation, takes_triton=takes_triton) == "reference":
        return all_to_all_reference(values, axis_name)
    # As above.
    from pallas_kernels.all_reduce.triton import all_to_all_triton

    assert peers is not None
    return all_to_all_triton(values, peers)


def _check_parts(parts: jax.Array, dtype: jnp.dtype) -> None:
    if parts.ndim != 3 or parts.shape[0] < 1:
        raise ValueError(f"parts must be [parts, T, D]; got {parts.shape}")
    if parts.dtype != (dtype if parts.shape[0] == 1 else jnp.float32):
        raise ValueError(f"parts are {parts.dtype}; they must be {dtype.name}, or float32 if there are several")


def _pick(
    asked: Implementation | None, peers: Peers | None, num_rows: int, size: int, dtype: jnp.dtype
) -> Implementation:
    takes_triton = peers is not None and dtype in _KERNEL_DTYPES and peers.layout.takes(num_rows, size * dtype.itemsize)
    return _checked_pick(asked, takes_triton=takes_triton)


def _checked_pick(asked: Implementation | None, *, takes_triton: bool) -> Implementation:
    picked = pick_implementation(asked, takes_triton=takes_triton)
    if picked == "triton" and not takes_triton:
        raise ValueError("triton needs peers whose workspace takes these rows; leave implementation None")
    return picked
