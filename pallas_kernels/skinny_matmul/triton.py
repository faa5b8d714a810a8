"""Launching the Triton kernels through jax_triton."""

from typing import Any

import jax
import jax.numpy as jnp
from jax_triton import triton_call  # type: ignore[import-not-found, import-untyped, unused-ignore]

from pallas_kernels.platform import PTX_VERSION
from pallas_kernels.skinny_matmul import kernels
from pallas_kernels.skinny_matmul.config import SkinnyConfig


def matmul_triton(x: jax.Array, weight: jax.Array, config: SkinnyConfig) -> jax.Array:
    """x [T, D] @ weight [N, D].T, [parts, T, N] float32 if the config cuts D into parts, else [T, N] in x's dtype."""
    num_rows, size = x.shape
    columns = weight.shape[0]
    whole = config.parts == 1
    shape = (num_rows, columns) if whole else (config.parts, num_rows, columns)
    out: jax.Array = triton_call(
        x,
        weight,
        kernel=kernels.matmul_kernel,
        out_type=jax.ShapeDtypeStruct(shape, x.dtype if whole else jnp.float32),
        grid=(-(-columns // config.block_n), config.parts),
        name="skinny_matmul",
        PARTS=config.parts,
        **_options(x, columns, size, config),
    )
    return out


def gated_matmul_triton(x: jax.Array, weight: jax.Array, config: SkinnyConfig) -> jax.Array:
    """silu(x @ weight[0].T) * (x @ weight[1].T), [T, F] in x's dtype, for x [T, D] and weight [2, F, D]."""
    num_rows, size = x.shape
    columns = weight.shape[1]
    out: jax.Array = triton_call(
        x,
        weight,
        kernel=kernels.gated_kernel,
        out_type=jax.ShapeDtypeStruct((num_rows, columns), x.dtype),
        grid=(-(-columns // config.block_n),),
        name="gated_skinny_matmul",
        **_options(x, columns, size, config),
    )
    return out


def _options(x: jax.Array, columns: int, size: int, config: SkinnyConfig) -> dict[str, Any]:
    return {
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "backend_options": {"ptx_version": PTX_VERSION},
        "T": x.shape[0],
        "N": columns,
        "D": size,
        "BLOCK_T": max(16, 1 << (x.shape[0] - 1).bit_length()),
        "BLOCK_N": config.block_n,
        "BLOCK_D": config.block_d,
        # Products of 32-bit values keep their precision instead of being rounded to TF32.
        "PRECISION": "ieee" if x.dtype == jnp.float32 else "tf32",
    }
