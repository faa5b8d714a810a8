"""Launching the Triton kernel through jax_triton."""

import jax
from jax_triton import triton_call  # type: ignore[import-not-found, import-untyped, unused-ignore]

from pallas_kernels.platform import PTX_VERSION
from pallas_kernels.prefetch import chunks_to_fetch
from pallas_kernels.residual_norm.kernels import residual_norm_kernel
from pallas_kernels.residual_norm.reference import NormKind

VALUES_A_THREAD = 8
# More would only push out what the kernels around the product use.
FETCHED_BYTES = 16 << 20


def residual_norm_triton(
    x: jax.Array,
    delta: jax.Array,
    weight: jax.Array,
    *,
    eps: float,
    kind: NormKind,
    next_weights: jax.Array | None = None,
    num_warps: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """See `residual_norm`. `num_warps` overrides the warps of a program, for tuning."""
    num_rows, size = x.shape
    block = 1 << (size - 1).bit_length()
    num_warps = num_warps or max(1, min(16, block // (32 * VALUES_A_THREAD)))
    chunks = chunks_to_fetch(next_weights, FETCHED_BYTES)
    fetching = -(-chunks // (32 * num_warps))
    stream = jax.ShapeDtypeStruct(x.shape, x.dtype)
    results: tuple[jax.Array, jax.Array] = triton_call(
        x,
        delta,
        weight,
        weight if next_weights is None else next_weights,
        kernel=residual_norm_kernel,
        out_type=(stream, stream),
        grid=(fetching + num_rows,),
        name="residual_norm",
        num_warps=num_warps,
        num_stages=1,
        backend_options={"ptx_version": PTX_VERSION},
        eps=eps,
        KIND=kind,
        D=size,
        BLOCK_D=block,
        FETCHING=fetching,
        CHUNKS=chunks,
        THREADS=32 * num_warps,
    )
    return results
