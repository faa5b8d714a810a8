"""The Triton kernel: a piece of one row a program."""

# mypy: ignore-errors
# The body is Triton's language, which only looks like Python.

import triton
import triton.language as tl


@triton.jit
def swiglu_kernel(gate_up, out, F: tl.constexpr, BLOCK_F: tl.constexpr):
    """out [T, F] = silu(gate_up[:, 0]) * gate_up[:, 1]. Grid (F / BLOCK_F, T)."""
    f = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    row = tl.program_id(1).to(tl.int64)
    inside = f < F
    gate = tl.load(gate_up + row * (2 * F) + f, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * (2 * F) + F + f, mask=inside, other=0.0).to(tl.float32)
    result = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * F + f, result.to(out.dtype.element_ty), mask=inside)
