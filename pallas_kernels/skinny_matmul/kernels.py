"""The Triton kernels: products of few rows, which are as fast as the weights can be read.

Weights lie outputs first, as in checkpoints, so a program reads a few whole rows of them from end to end.
"""

# mypy: ignore-errors
# The bodies are Triton's language, which only looks like Python.

import triton
import triton.language as tl


@triton.jit
def _multiply(
    x, weight, rows, columns, begin, acc, T: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, PART: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + x[rows, begin : begin + PART] @ weight[columns, the same].T"""
    d = begin + tl.arange(0, BLOCK_D)
    for start in range(0, PART, BLOCK_D):
        if D % BLOCK_D == 0:
            a = tl.load(x + rows[:, None] * D + (start + d)[None, :], mask=(rows < T)[:, None], other=0.0)
        else:
            inside = (start + d < D)[None, :]
            a = tl.load(x + rows[:, None] * D + (start + d)[None, :], mask=(rows < T)[:, None] & inside, other=0.0)
        w_ptrs = weight + columns.to(tl.int64)[:, None] * D + (start + d)[None, :]
        if D % BLOCK_D == 0:
            w = tl.load(w_ptrs, eviction_policy="evict_first")
        else:
            w = tl.load(w_ptrs, mask=(start + d < D)[None, :], other=0.0, eviction_policy="evict_first")
        acc = tl.dot(a, tl.trans(w), acc, input_precision=PRECISION)
    return acc


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
    """out [PARTS, T, N] = x [T, D] @ weight [N, D].T over each of PARTS equal parts of D. Grid (N / BLOCK_N, PARTS)."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(1)
    rows = tl.arange(0, BLOCK_T)
    SIZE: tl.constexpr = (D + PARTS - 1) // PARTS
    acc = _multiply(
        x, weight, rows, tl.minimum(columns, N - 1), part * SIZE, tl.zeros([BLOCK_T, BLOCK_N], tl.float32),
        T, N, D, BLOCK_D, SIZE, PRECISION,
    )  # fmt: skip
    inside = (rows < T)[:, None] & (columns < N)[None, :]
    tl.store(out + (part * T + rows)[:, None] * N + columns[None, :], acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gated_kernel(
    x,
    weight,
    out,
    T: tl.constexpr,
    N: tl.constexpr,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out [T, N] = silu(x @ weight[0].T) * (x @ weight[1].T) for weight [2, N, D]. Grid (N / BLOCK_N,).

    Rows of both matrices are taken in one product of twice the columns.
    """
    first = tl.program_id(0) * BLOCK_N
    # Columns of gate and up alternate, so that splitting the product's last axis in pairs parts them.
    index = tl.arange(0, 2 * BLOCK_N)
    columns = tl.minimum(first + index // 2, N - 1) + (index % 2) * N
    rows = tl.arange(0, BLOCK_T)
    acc = _multiply(
        x, weight, rows, columns, 0, tl.zeros([BLOCK_T, 2 * BLOCK_N], tl.float32),
        T, N, D, BLOCK_D, D, PRECISION,
    )  # fmt: skip
    gate, up = tl.split(tl.reshape(acc, [BLOCK_T, BLOCK_N, 2]))
    value = gate / (1.0 + tl.exp(-gate)) * up
    out_columns = first + tl.arange(0, BLOCK_N)
    inside = (rows < T)[:, None] & (out_columns < N)[None, :]
    tl.store(out + rows[:, None] * N + out_columns[None, :], value.to(out.dtype.element_ty), mask=inside)
