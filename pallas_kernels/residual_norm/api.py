"""The public operation: checks its arguments and picks an implementation."""

from typing import get_args

import jax

from pallas_kernels.platform import Implementation, pick_implementation
from pallas_kernels.residual_norm.reference import NormKind, residual_norm_reference


def residual_norm(
    x: jax.Array,
    delta: jax.Array,
    weight: jax.Array,
    *,
    eps: float,
    kind: NormKind = "rms",
    implementation: Implementation | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Add to the residual stream, and normalise it by its root mean square (Zhang and Sennrich 2019).

    XLA makes one kernel of the sum and one or two of the norm; here a row is read once and stays in registers.

    Args:
        x: [T, D] the residual stream.
        delta: [T, D] what is added to it, in the same dtype.
        weight: [D] of the norm.
        eps: added to the mean square.
        kind: `rms` rounds the normed values to x's dtype before the weight scales them, as Llama does;
            `rms_rounded_last` scales in float32 first, as OLMo 2 does; `rms_plus_one` likewise, by 1 + the weight, as
            Gemma does.
        implementation: `reference`, `triton`, or None for the best that can run.

    Returns:
        x + delta and its norm, both [T, D] in x's dtype.

    Raises:
        ValueError: shapes or dtypes contradict each other, or the kind or the implementation is unknown.
    """
    if x.ndim != 2 or delta.shape != x.shape or weight.shape != x.shape[1:] or delta.dtype != x.dtype:
        raise ValueError(
            f"x {x.dtype}{x.shape} and delta {delta.dtype}{delta.shape} must both be [T, D], and weight [D]; "
            f"it is {weight.shape}"
        )
    if kind not in get_args(NormKind):
        raise ValueError(f"unknown kind {kind!r}; there are: {', '.join(get_args(NormKind))}")
    if pick_implementation(implementation) == "reference":
        return residual_norm_reference(x, delta, weight, eps=eps, kind=kind)
    # Loaded only here: jax_triton is not needed where the reference runs.
    from pallas_kernels.residual_norm.triton import residual_norm_triton

    return residual_norm_triton(x, delta, weight, eps=eps, kind=kind)
