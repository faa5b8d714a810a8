"""Launching the Triton kernels."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.platform import PTX_VERSION
from pallas_kernels.skinny_matmul.config import SkinnyConfig
from pallas_kernels.skinny_matmul.kernels import gated_matmul_kernel, matmul_kernel
from pallas_kernels.triton_call import triton_call


def skinny_matmul_triton(
    x: jax.Array, weight: jax.Array, config: SkinnyConfig, *, dtype: DTypeLike | None = None
) -> jax.Array:
    """The products over each of the config's parts of D: [parts, T, N].

    Args:
        dtype: of the result; None is float32 if there are several parts, else x's.

    Raises:
        ValueError: D is not a multiple of parts * block_d.
    """
    num_rows, size = x.shape
    columns = weight.shape[0]
    if size % (config.parts * config.block_d):
        raise ValueError(f"D must be a multiple of {config.parts} * {config.block_d}, got {size}")
    if dtype is None:
        dtype = x.dtype if config.parts == 1 else jnp.float32
    out: jax.Array = triton_call(
        x,
        weight,
        kernel=matmul_kernel,
        out_type=jax.ShapeDtypeStruct((config.parts, num_rows, columns), dtype),
        grid=(-(-columns // config.block_n), config.parts),
        name="skinny_matmul",
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        backend_options={"ptx_version": PTX_VERSION},
        N=columns,
        PARTS=config.parts,
        **_sizes(x, config),
    )
    return out


def gated_matmul_triton(x: jax.Array, weight: jax.Array, config: SkinnyConfig) -> jax.Array:
    """See `gated_matmul`; the config's block_n columns are of each matrix, and there is one part.

    Raises:
        ValueError: D is not a multiple of block_d, or there are several parts.
    """
    num_rows, size = x.shape
    columns = weight.shape[1]
    if config.parts != 1 or size % config.block_d:
        raise ValueError(f"D must be a multiple of {config.block_d} and parts 1, got {size} and {config.parts}")
    out: jax.Array = triton_call(
        x,
        weight,
        kernel=gated_matmul_kernel,
        out_type=jax.ShapeDtypeStruct((num_rows, columns), x.dtype),
        grid=(-(-columns // config.block_n),),
        name="gated_matmul",
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        backend_options={"ptx_version": PTX_VERSION},
        F=columns,
        **_sizes(x, config),
    )
    return out


def _sizes(x: jax.Array, config: SkinnyConfig) -> dict[str, int | str]:
    """What both kernels are compiled for."""
    num_rows, size = x.shape
    return {
        "T": num_rows,
        "D": size,
        "BLOCK_T": max(16, 1 << (num_rows - 1).bit_length()),
        "BLOCK_N": config.block_n,
        "BLOCK_D": config.block_d,
        # Products of 32-bit values keep their precision instead of being rounded to TF32.
        "PRECISION": "ieee" if x.dtype == jnp.float32 else "tf32",
    }
