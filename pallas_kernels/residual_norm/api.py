"""The public operation: checks its arguments and picks an implementation."""

from typing import get_args

import jax
import jax.numpy as jnp

from pallas_kernels.platform import Implementation, pick_implementation
from pallas_kernels.residual_norm.reference import NormKind, residual_norm_reference

# On an H200, steps of one row became slower with the kernel, and those of 128 and more faster (docs/benchmarks).
FEW_ROWS = 64


def residual_norm(
    x: jax.Array,
    delta: jax.Array,
    weight: jax.Array,
    weight_row: jax.Array | None = None,
    *,
    eps: float,
    kind: NormKind = "rms",
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Add to the residual stream, and normalise it by its root mean square (Zhang and Sennrich 2019).

    XLA makes one kernel of the sum and one or two of the norm; here a row is read once and stays in registers. With few
    rows XLA does better, since it sums the parts of its own products in the same kernels.

    Args:
        x: [T, D] the residual stream.
        delta: [T, D] what is added to it, in the same dtype; or [parts, T, D], whose parts are summed first, in float32
            if there are several (`skinny_matmul` makes them).
        weight: [D] of the norm, or [N, D] of several.
        weight_row: [1] int32, which of several. An array and no number, so that layers may share what is compiled.
        eps: added to the mean square.
        kind: `rms` rounds the normed values to x's dtype before the weight scales them, as Llama does;
            `rms_rounded_last` scales in float32 first, as OLMo 2 does; `rms_plus_one` likewise, by 1 + the weight, as
            Gemma does.
        implementation: `reference`, `triton`, or None for the best: Triton on a GPU for more than FEW_ROWS rows, or
            several parts.

    Returns:
        x + delta and its norm, both [T, D] in x's dtype.

    Raises:
        ValueError: shapes or dtypes contradict each other, or the kind or the implementation is unknown.
    """
    if x.ndim != 2 or delta.shape[-2:] != x.shape or delta.ndim not in (2, 3):
        raise ValueError(f"x {x.shape} must be [T, D], and delta {delta.shape} the same or [parts, T, D]")
    check_norm_weight(weight, weight_row, x.shape[1])
    num_parts = delta.shape[0] if delta.ndim == 3 else 1
    if delta.dtype != (x.dtype if num_parts == 1 else jnp.float32):
        raise ValueError(f"delta is {delta.dtype}; it must be x's {x.dtype}, or float32 in several parts")
    if kind not in get_args(NormKind):
        raise ValueError(f"unknown kind {kind!r}; there are: {', '.join(get_args(NormKind))}")
    takes_triton = num_parts > 1 or x.shape[0] > FEW_ROWS
    if pick_implementation(implementation, takes_triton=takes_triton) == "reference":
        return residual_norm_reference(x, delta, weight, weight_row, eps=eps, kind=kind)
    # Loaded only here: jax_triton is not needed where the reference runs.
    from pallas_kernels.residual_norm.triton import residual_norm_triton

    return residual_norm_triton(x, delta, *stacked(weight, weight_row), eps=eps, kind=kind)


def check_norm_weight(weight: jax.Array, weight_row: jax.Array | None, size: int) -> None:
    """Refuse weights that are neither one [D] nor several [N, D] with a row.

    Raises:
        ValueError: they are neither.
    """
    several = weight_row is not None
    if weight.shape[-1:] != (size,) or weight.ndim != 1 + several:
        raise ValueError(
            f"weight {weight.shape} must be [D], D being {size}, or [N, D] with a weight_row; "
            f"weight_row is {'given' if several else 'None'}"
        )
    if weight_row is not None and (weight_row.shape != (1,) or weight_row.dtype != jnp.int32):
        raise ValueError(f"weight_row must be [1] int32, got {weight_row.shape} {weight_row.dtype}")


def stacked(weight: jax.Array, weight_row: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Weights [N, D] and a row, of one weight too."""
    return (weight[None], jnp.zeros(1, jnp.int32)) if weight_row is None else (weight, weight_row)
