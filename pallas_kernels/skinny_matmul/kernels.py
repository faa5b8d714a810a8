"""The Triton kernels: products of few rows, which are as fast as the weights can be read.

Weights lie outputs first, as in checkpoints, so a program reads a few whole rows of them from end to end. They are the
first operand, and x transposed is the second: an operand of 64 rows the tensor cores read where it arrives, in shared
memory (wgmma), and no thread has to carry it to them. The other way around x has too few.
"""

# mypy: ignore-errors
# The bodies are Triton's language, which only looks like Python.

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
    acc = tl.zeros([BLOCK_N, BLOCK_T], tl.float32)
    for start in range(0, SIZE, BLOCK_D):
        some_x = tl.load(x_rows + start, mask=(rows < T)[:, None], other=0.0)
        some_weights = tl.load(weight_rows + start, eviction_policy="evict_first")
        acc = tl.dot(some_weights, tl.trans(some_x), acc, input_precision=PRECISION)
    inside = (rows < T)[:, None] & (columns < N)[None, :]
    product = tl.trans(acc).to(out.dtype.element_ty)
    tl.store(out + (part * T + rows)[:, None] * N + columns[None, :], product, mask=inside)


@triton.jit
def gated_matmul_kernel(
    x,
    weight,
    out,
    T: tl.constexpr,
    F: tl.constexpr,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out [T, F] = silu(x [T, D] @ weight[0].T) * (x @ weight[1].T), weight [2, F, D]. Grid (F / BLOCK_N,).

    D is a multiple of BLOCK_D.
    """
    first = tl.program_id(0) * BLOCK_N
    # Eight columns of the gate's matrix, then the same ones of the other, and so on: wgmma gives both products to the
    # same thread.
    r = tl.arange(0, 2 * BLOCK_N)
    column = first + r // 16 * 8 + r % 8
    # Columns past the end are computed twice and not stored.
    weight_row = r // 8 % 2 * F + tl.minimum(column, F - 1)
    rows = tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    x_rows = x + rows[:, None] * D + d[None, :]
    weight_rows = weight + weight_row.to(tl.int64)[:, None] * D + d[None, :]
    acc = tl.zeros([2 * BLOCK_N, BLOCK_T], tl.float32)
    for start in range(0, D, BLOCK_D):
        some_x = tl.load(x_rows + start, mask=(rows < T)[:, None], other=0.0)
        some_weights = tl.load(weight_rows + start, eviction_policy="evict_first")
        acc = tl.dot(some_weights, tl.trans(some_x), acc, input_precision=PRECISION)
    gate, up = tl.split(tl.permute(tl.reshape(acc, (BLOCK_N // 8, 2, 8, BLOCK_T)), (0, 2, 3, 1)))
    value = tl.trans(tl.reshape(gate / (1.0 + tl.exp(-gate)) * up, (BLOCK_N, BLOCK_T)))
    columns = first + tl.arange(0, BLOCK_N)
    inside = (rows < T)[:, None] & (columns < F)[None, :]
    tl.store(out + rows[:, None] * F + columns[None, :], value.to(out.dtype.element_ty), mask=inside)
