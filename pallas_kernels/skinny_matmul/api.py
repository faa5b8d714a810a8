"""The public operation: checks its arguments and picks an implementation."""

from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels import platform
from pallas_kernels.platform import Implementation, is_hopper, pick_implementation, triton_can_run
from pallas_kernels.residual_norm.reference import sum_parts
from pallas_kernels.skinny_matmul.config import (
    FEW_ROWS,
    gated_config,
    gated_triton_config,
    scores_config,
    skinny_config,
    stream_config,
    tiled_gated_config,
)
from pallas_kernels.skinny_matmul.reference import (
    gated_matmul_reference,
    scores_matmul_reference,
    skinny_matmul_reference,
)
from pallas_kernels.swiglu import swiglu

SkinnyImplementation = Implementation | Literal["mosaic_gpu"]

# Whether None may pick a kernel.
SKINNY_BY_DEFAULT = True


def skinny_matmul(
    x: jax.Array, weight: jax.Array, *, one_part: bool = False, implementation: SkinnyImplementation | None = None
) -> jax.Array:
    """x @ weight.T, in parts that are left to be summed by whoever reads them next.

    A product of a few rows takes as long as reading the weights, if enough programs read them. With few columns there
    are enough only if the summed axis is cut too (split-K), and then the parts must be summed: `residual_norm` does it
    on its way.

    Args:
        x: [T, D].
        weight: [N, D], outputs first as checkpoints have them, in x's dtype.
        one_part: the reader needs the sum itself, so no parts are left where there is a choice.
        implementation: `reference`; `triton`, for up to 32 rows; `mosaic_gpu`, for up to 64 rows of 16-bit values on
            Hopper GPUs; or None: on a GPU the fastest of them for 16-bit values, else the reference.

    Returns:
        [parts, T, N], in x's dtype if there is one part, else in float32.

    Raises:
        ValueError: shapes or dtypes contradict each other, or the implementation is unknown or does not fit the shapes.
    """
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1] or x.dtype != weight.dtype:
        raise ValueError(
            f"x must be [T, D] and weight [N, D] of one dtype; got {x.dtype}{x.shape} and {weight.dtype}{weight.shape}"
        )
    stream = stream_config(x.shape[0], *weight.shape, one_part=one_part)
    config = skinny_config(x.shape[0], *weight.shape)
    takes_16_bits = x.dtype in (jnp.bfloat16, jnp.float16)
    leaves_triton = config is None or not _prefers_triton(x.shape[0])
    if implementation is None and stream and takes_16_bits and leaves_triton and _picks_mosaic():
        implementation = "mosaic_gpu"
    if implementation == "mosaic_gpu":
        if stream is None or not takes_16_bits:
            raise ValueError(
                f"mosaic_gpu does not take {x.dtype}{x.shape} by {weight.shape}; leave implementation None"
            )
        # Loaded only here, as Triton's below: neither is needed where the reference runs.
        from pallas_kernels.skinny_matmul.mosaic_gpu import stream_matmul

        return stream_matmul(x, weight, stream)
    takes_triton = SKINNY_BY_DEFAULT and config is not None and takes_16_bits
    if pick_implementation(implementation, takes_triton=takes_triton) == "reference":
        return skinny_matmul_reference(x, weight)
    if config is None:
        raise ValueError(f"the Triton kernel does not take {x.shape} by {weight.shape}; leave implementation None")
    from pallas_kernels.skinny_matmul.triton import skinny_matmul_triton

    return skinny_matmul_triton(x, weight, config)


def gated_matmul(x: jax.Array, weight: jax.Array, *, implementation: SkinnyImplementation | None = None) -> jax.Array:
    """silu(x @ weight[0].T) * (x @ weight[1].T): the first half of a SwiGLU layer (Shazeer 2020).

    Args:
        x: [T, D].
        weight: [2, F, D], the gate's matrix and the other, in x's dtype.
        implementation: `reference`; for 16-bit values `triton`, for up to 32 rows, and `mosaic_gpu`, on Hopper GPUs; or
            None: on these the better of both, else `skinny_matmul` and `swiglu`, one after the other.

    Returns:
        [T, F] in x's dtype.

    Raises:
        ValueError: shapes or dtypes contradict each other, or the implementation is unknown or does not fit the shapes.
    """
    if x.ndim != 2 or weight.ndim != 3 or weight.shape[::2] != (2, x.shape[1]) or x.dtype != weight.dtype:
        raise ValueError(
            f"x must be [T, D] and weight [2, F, D] of one dtype; got {x.dtype}{x.shape} and "
            f"{weight.dtype}{weight.shape}"
        )
    if implementation not in (None, "reference", "triton", "mosaic_gpu"):
        raise ValueError(f"unknown implementation {implementation!r}; there are: reference, triton, mosaic_gpu")
    if implementation == "reference":
        return gated_matmul_reference(x, weight)
    sizes = (x.shape[0], *weight.shape[1:])
    if x.dtype in (jnp.bfloat16, jnp.float16) and (implementation is not None or _picks_mosaic()):
        # Each is loaded only here: none is needed where the reference runs.
        config = gated_triton_config(*sizes, any_size=_prefers_triton(x.shape[0]))
        if implementation != "mosaic_gpu" and config is not None:
            from pallas_kernels.skinny_matmul.triton import gated_matmul_triton

            return gated_matmul_triton(x, weight, config)
        if implementation != "triton" and (few := gated_config(*sizes)) is not None:
            from pallas_kernels.skinny_matmul.mosaic_gpu import stream_gated_matmul

            return stream_gated_matmul(x, weight, few)
        if implementation != "triton" and (many := tiled_gated_config(*sizes)) is not None:
            from pallas_kernels.skinny_matmul.tiled import tiled_gated_matmul

            return tiled_gated_matmul(x, weight, many)
    if implementation is not None:
        raise ValueError(
            f"{implementation} does not take {x.dtype}{x.shape} by {weight.shape}; leave implementation None"
        )
    parts = skinny_matmul(x, weight.reshape(-1, weight.shape[2]), one_part=True)
    return swiglu(sum_parts(parts, x.dtype).reshape(x.shape[0], *weight.shape[:2]))


def scores_matmul(
    x: jax.Array, weight: jax.Array, *, implementation: Literal["reference", "mosaic_gpu"] | None = None
) -> jax.Array:
    """x @ weight.T in float32, of a vocabulary's many columns: the scores of the next token.

    Args:
        x: [T, D].
        weight: [V, D], in x's dtype.
        implementation: `reference`; `mosaic_gpu`, for up to 64 rows of 16-bit values on Hopper GPUs; or None: that one
            where it can run, else the reference.

    Returns:
        [T, V] float32.

    Raises:
        ValueError: shapes or dtypes contradict each other, or the implementation is unknown or does not fit the shapes.
    """
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1] or x.dtype != weight.dtype:
        raise ValueError(
            f"x must be [T, D] and weight [V, D] of one dtype; got {x.dtype}{x.shape} and {weight.dtype}{weight.shape}"
        )
    if implementation not in (None, "reference", "mosaic_gpu"):
        raise ValueError(f"unknown implementation {implementation!r}; there are: reference, mosaic_gpu")
    config = scores_config(x.shape[0], *weight.shape)
    fits = config is not None and x.dtype in (jnp.bfloat16, jnp.float16)
    if implementation == "reference" or (implementation is None and not (fits and _picks_mosaic())):
        return scores_matmul_reference(x, weight)
    if config is None or not fits:
        raise ValueError(f"mosaic_gpu does not take {x.dtype}{x.shape} by {weight.shape}; leave implementation None")
    from pallas_kernels.skinny_matmul.mosaic_gpu import stream_matmul

    return stream_matmul(x, weight, config, dtype=jnp.float32)[0]


def _picks_mosaic() -> bool:
    return SKINNY_BY_DEFAULT and triton_can_run() and is_hopper()


def _prefers_triton(num_rows: int) -> bool:
    """Whether products of so few rows are better not Mosaic GPU's, which XLA cannot begin early as it can what it
    compiled."""
    return platform.TRITON_BY_XLA and num_rows <= FEW_ROWS
