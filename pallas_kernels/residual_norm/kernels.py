"""The Triton kernel: one row a program, held in registers."""

# mypy: ignore-errors
# The body is Triton's language, which only looks like Python.

import triton
import triton.language as tl


@triton.jit
def scale_normed(normed, scale, dtype: tl.constexpr, KIND: tl.constexpr):
    """Scale float32 values of mean square 1 by a norm's weight, rounded to `dtype` where the kind of norm does it."""
    if KIND == "rms":
        out = normed.to(dtype).to(tl.float32) * scale.to(tl.float32)
    elif KIND == "rms_plus_one":
        out = normed * (scale.to(tl.float32) + 1.0)
    else:
        out = normed * scale.to(tl.float32)
    return out.to(dtype)


@triton.jit
def load_sum(pointers, mask, dtype: tl.constexpr, PARTS: tl.constexpr, STRIDE: tl.constexpr):
    """The sum of the values of PARTS arrays, STRIDE apart, rounded as if they were one product."""
    total = tl.load(pointers, mask=mask, other=0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(pointers + part * STRIDE, mask=mask, other=0.0)
    return total.to(dtype)


@triton.jit
def residual_norm_kernel(
    x,
    delta,
    weight,
    weight_row,
    x_out,
    normed_out,
    eps: tl.constexpr,
    KIND: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
    T: tl.constexpr,
):
    """Row program_id(0): x + delta to x_out, and its norm to normed_out. Grid (T,). delta is [PARTS, T, D]; the weight
    is row weight_row [1] of weight [N, D].

    T is 0 with one part: only with several does it matter, and a kernel for each T is compiled.
    """
    row = tl.program_id(0).to(tl.int64) * D
    d = tl.arange(0, BLOCK_D)
    inside = d < D
    first = tl.load(weight_row).to(tl.int64) * D
    stream = tl.load(x + row + d, mask=inside, other=0.0)
    # In the dtype of the stream, as a product is.
    added = load_sum(delta + row + d, inside, stream.dtype, PARTS, T * D)
    scale = tl.load(weight + first + d, mask=inside, other=0.0)
    total = stream.to(tl.float32) + added.to(tl.float32)
    # The residual stream is kept in its own dtype, and what is normalised is what is kept.
    stream = total.to(x_out.dtype.element_ty)
    tl.store(x_out + row + d, stream, mask=inside)
    total = stream.to(tl.float32)
    normed = total * tl.rsqrt(tl.sum(total * total, 0) / D + eps)
    tl.store(normed_out + row + d, scale_normed(normed, scale, stream.dtype, KIND), mask=inside)
