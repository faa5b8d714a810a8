"""Fetching weights into the second-level cache while a kernel that reads little runs.

Between products the memory would lie idle for the few microseconds that attention over a short context, or a norm,
takes. Programs that do nothing else ask for the beginning of the next product's weights, and are gone before it
arrives.
"""

# mypy: ignore-errors
# The body is Triton's language, which only looks like Python.

import math

import jax
import triton
import triton.language as tl

CHUNK_BYTES = 4096  # what one thread asks for


@triton.jit
def prefetch(weights, program, CHUNKS: tl.constexpr, THREADS: tl.constexpr):
    """Ask for the program-th THREADS chunks of the first CHUNKS of `weights`. THREADS is that of the program."""
    chunk = program * THREADS + tl.arange(0, THREADS)
    address = weights.to(tl.int64) + tl.minimum(chunk, CHUNKS - 1).to(tl.int64) * 4096
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], 4096; mov.u32 $0, 0;",
        "=r,l",
        [address],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


def chunks_to_fetch(weights: jax.Array | None, max_bytes: int) -> int:
    """Whole chunks in the first max_bytes of an array; 0 for None."""
    if weights is None:
        return 0
    return min(max_bytes, math.prod(weights.shape) * weights.dtype.itemsize) // CHUNK_BYTES
