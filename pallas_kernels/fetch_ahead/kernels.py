"""The Triton function that kernels call in programs of their own."""

# mypy: ignore-errors
# The body is Triton's language, which only looks like Python.

import triton
import triton.language as tl

from pallas_kernels import fetch_ahead

PROGRAMS = tl.constexpr(fetch_ahead.PROGRAMS)
LINE_BYTES = tl.constexpr(fetch_ahead.LINE_BYTES)
# It ends before anything has come.
FETCH = tl.constexpr(f"cp.async.bulk.prefetch.L2.global [$1], {fetch_ahead.LINE_BYTES}; mov.u32 $0, 0;")


@triton.jit
def fetch(address):
    """Ask for the line at each address [B] int64 to come into the L2 cache."""
    tl.inline_asm_elementwise(FETCH, "=r,l", [address], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def fetch_rows(weight, program, ROWS: tl.constexpr, STRIDE: tl.constexpr, BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """As `program` of PROGRAMS, ask for a share of the first BYTES of each of ROWS rows that begin STRIDE bytes apart.

    BLOCK is the threads of a program: with fewer lines at a time, several threads would ask for the same one.
    """
    LINES: tl.constexpr = BYTES // LINE_BYTES
    first = weight.to(tl.int64, bitcast=True)
    for start in range(program * BLOCK, ROWS * LINES, PROGRAMS * BLOCK):
        # Past the end the last one is asked for again.
        line = tl.minimum(start + tl.arange(0, BLOCK), ROWS * LINES - 1)
        fetch(first + (line // LINES).to(tl.int64) * STRIDE + line % LINES * LINE_BYTES)
