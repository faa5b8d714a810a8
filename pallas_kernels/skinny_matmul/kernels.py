"""The Triton kernel: products of few rows, which are as fast as the weights can be read.

Weights lie outputs first, as in checkpoints, so a program reads a few whole rows of them from end to end.
"""

# mypy: ignore-errors
# The body is Triton's language, which only looks like Python.

import triton
import triton.language as tl


@triton.jit
def matmul_kernel(
    x,
    weight,
    out,
    T: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out [PARTS, T, N] = x [T, D] @ weight [N, D].T over each of PARTS equal parts of D. Grid (N / BLOCK_N, PARTS).

    A part is a multiple of BLOCK_D.
    """
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(1)
    rows = tl.arange(0, BLOCK_T)
    SIZE: tl.constexpr = D // PARTS
    d = part * SIZE + tl.arange(0, BLOCK_D)
    x_rows = x + rows[:, None] * D + d[None, :]
    # Columns past the end are computed twice and not stored.
    weight_rows = weight + tl.minimum(columns, N - 1).to(tl.int64)[:, None] * D + d[None, :]
    acc = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    for start in range(0, SIZE, BLOCK_D):
        some_x = tl.load(x_rows + start, mask=(rows < T)[:, None], other=0.0)
        some_weights = tl.load(weight_rows + start, eviction_policy="evict_first")
        acc = tl.dot(some_x, tl.trans(some_weights), acc, input_precision=PRECISION)
    inside = (rows < T)[:, None] & (columns < N)[None, :]
    tl.store(out + (part * T + rows)[:, None] * N + columns[None, :], acc.to(out.dtype.element_ty), mask=inside)
