"""Launching the Triton kernel."""

import jax

from pallas_kernels.platform import PTX_VERSION
from pallas_kernels.swiglu.kernels import swiglu_kernel
from pallas_kernels.triton_call import triton_call

BLOCK_F = 2048
# 16 bytes of 16-bit values a load.
VALUES_A_THREAD = 16


def swiglu_triton(gate_up: jax.Array, *, block_f: int = BLOCK_F) -> jax.Array:
    """See `swiglu`. `block_f` overrides the columns of a program, a power of two, for tests and tuning."""
    num_rows, _, size = gate_up.shape
    block = min(block_f, 1 << (size - 1).bit_length())
    out: jax.Array = triton_call(
        gate_up,
        kernel=swiglu_kernel,
        out_type=jax.ShapeDtypeStruct((num_rows, size), gate_up.dtype),
        grid=(-(-size // block), num_rows),
        name="swiglu",
        num_warps=max(1, min(8, block // (32 * VALUES_A_THREAD))),
        num_stages=1,
        backend_options={"ptx_version": PTX_VERSION},
        F=size,
        BLOCK_F=block,
    )
    return out
