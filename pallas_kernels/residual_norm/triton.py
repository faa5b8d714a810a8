"""Launching the Triton kernel."""

import jax

from pallas_kernels.platform import PTX_VERSION
from pallas_kernels.residual_norm.kernels import residual_norm_kernel
from pallas_kernels.residual_norm.reference import NormKind
from pallas_kernels.triton_call import triton_call

VALUES_A_THREAD = 8


def residual_norm_triton(
    x: jax.Array,
    delta: jax.Array,
    weight: jax.Array,
    weight_row: jax.Array,
    *,
    eps: float,
    kind: NormKind,
    num_warps: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """See `residual_norm`; `weight` is [N, D] here. `num_warps` overrides the warps of a program, for tuning."""
    num_rows, size = x.shape
    num_parts = delta.shape[0] if delta.ndim == 3 else 1
    block = 1 << (size - 1).bit_length()
    stream = jax.ShapeDtypeStruct(x.shape, x.dtype)
    results: tuple[jax.Array, jax.Array] = triton_call(
        x,
        delta,
        weight,
        weight_row,
        kernel=residual_norm_kernel,
        out_type=(stream, stream),
        grid=(num_rows,),
        name="residual_norm",
        num_warps=num_warps or max(1, min(16, block // (32 * VALUES_A_THREAD))),
        num_stages=1,
        backend_options={"ptx_version": PTX_VERSION},
        eps=eps,
        KIND=kind,
        D=size,
        BLOCK_D=block,
        PARTS=num_parts,
        T=num_rows if num_parts > 1 else 0,
    )
    return results
