"""The public operations: check their arguments and pick an implementation."""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.platform import Implementation, is_hopper, triton_can_run
from pallas_kernels.residual_norm.reference import sum_parts
from pallas_kernels.skinny_matmul.config import (
    SkinnyConfig,
    TiledConfig,
    gated_config,
    scores_config,
    skinny_config,
    tiled_gated_config,
)
from pallas_kernels.skinny_matmul.reference import (
    gated_matmul_reference,
    scores_matmul_reference,
    skinny_matmul_reference,
)
from pallas_kernels.swiglu import swiglu

GatedImplementation = Implementation | Literal["mosaic_gpu"]

# Whether None may pick a kernel.
SKINNY_BY_DEFAULT = True


def skinny_matmul(x: jax.Array, weight: jax.Array, *, implementation: Implementation | None = None) -> jax.Array:
    """x @ weight.T, in parts that are left to be summed by whoever reads them next.

    A product of a few rows takes as long as reading the weights, if enough programs read them. With few columns there
    are enough only if the summed axis is cut too (split-K), and then the parts must be summed: `residual_norm` does it
    on its way.

    Args:
        x: [T, D].
        weight: [N, D], outputs first as checkpoints have them, in x's dtype.
        implementation: `reference`; `triton`, for up to 64 rows of 16-bit values; or None: Triton's on a Hopper GPU
            where it takes these shapes, else the reference.

    Returns:
        [parts, T, N], in x's dtype if there is one part, else in float32.

    Raises:
        ValueError: shapes or dtypes contradict each other, or the implementation is unknown or does not fit the shapes.
    """
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1] or x.dtype != weight.dtype:
        raise ValueError(
            f"x must be [T, D] and weight [N, D] of one dtype; got {x.dtype}{x.shape} and {weight.dtype}{weight.shape}"
        )
    config = _pick(implementation, {"triton": skinny_config(x.shape[0], *weight.shape)}, x, weight)
    if config is None:
        return skinny_matmul_reference(x, weight)
    # Loaded only here: it is not needed where the reference runs.
    from pallas_kernels.skinny_matmul.triton import skinny_matmul_triton

    return skinny_matmul_triton(x, weight, config)


def gated_matmul(x: jax.Array, weight: jax.Array, *, implementation: GatedImplementation | None = None) -> jax.Array:
    """silu(x @ weight[0].T) * (x @ weight[1].T): the first half of a SwiGLU layer (Shazeer 2020).

    Args:
        x: [T, D].
        weight: [2, F, D], the gate's matrix and the other, in x's dtype.
        implementation: `reference`; for 16-bit values `triton`, for up to 64 rows, and `mosaic_gpu`, for more; or None:
            on a Hopper GPU that of them which takes these shapes, else `skinny_matmul` and `swiglu`, one after the
            other.

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
    sizes = (x.shape[0], *weight.shape[1:])
    configs = {"triton": gated_config(*sizes), "mosaic_gpu": tiled_gated_config(*sizes)}
    config = _pick(implementation, configs, x, weight)
    # Each is loaded only here: neither is needed where the reference runs.
    if isinstance(config, SkinnyConfig):
        from pallas_kernels.skinny_matmul.triton import gated_matmul_triton

        return gated_matmul_triton(x, weight, config)
    if isinstance(config, TiledConfig):
        from pallas_kernels.skinny_matmul.tiled import tiled_gated_matmul

        return tiled_gated_matmul(x, weight, config)
    if implementation == "reference":
        return gated_matmul_reference(x, weight)
    parts = skinny_matmul(x, weight.reshape(-1, weight.shape[2]))
    return swiglu(sum_parts(parts, x.dtype).reshape(x.shape[0], *weight.shape[:2]))


def scores_matmul(x: jax.Array, weight: jax.Array, *, implementation: Implementation | None = None) -> jax.Array:
    """x @ weight.T in float32, of a vocabulary's many columns: the scores of the next token.

    Args:
        x: [T, D].
        weight: [V, D], in x's dtype.
        implementation: `reference`; `triton`, for up to 64 rows of 16-bit values; or None: Triton's on a Hopper GPU
            where it takes these shapes, else the reference.

    Returns:
        [T, V] float32.

    Raises:
        ValueError: shapes or dtypes contradict each other, or the implementation is unknown or does not fit the shapes.
    """
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1] or x.dtype != weight.dtype:
        raise ValueError(
            f"x must be [T, D] and weight [V, D] of one dtype; got {x.dtype}{x.shape} and {weight.dtype}{weight.shape}"
        )
    config = _pick(implementation, {"triton": scores_config(x.shape[0], *weight.shape)}, x, weight)
    if config is None:
        return scores_matmul_reference(x, weight)
    from pallas_kernels.skinny_matmul.triton import skinny_matmul_triton

    return skinny_matmul_triton(x, weight, config, dtype=jnp.float32)[0]


def _pick[Config](
    asked: str | None, configs: Mapping[str, Config | None], x: jax.Array, weight: jax.Array
) -> Config | None:
    """How the kernel that is asked for cuts these arrays, or that which None stands for; None for the reference.

    Args:
        asked: by the caller.
        configs: by the kernel's name, how it would cut them; None if it does not take them.
        x: [T, D].
        weight: [..., D].

    Raises:
        ValueError: there is no such implementation, or it does not take these arrays.
    """
    is_16_bit = x.dtype in (jnp.bfloat16, jnp.float16)
    fitting = {name: config for name, config in configs.items() if config is not None and is_16_bit}
    if asked is None:
        # On other GPUs they were never measured, and may not find the shared memory they need.
        by_default = SKINNY_BY_DEFAULT and triton_can_run() and is_hopper()
        return next(iter(fitting.values()), None) if by_default else None
    if asked not in ("reference", *configs):
        raise ValueError(f"unknown implementation {asked!r}; there are: reference, {', '.join(configs)}")
    if asked not in ("reference", *fitting):
        raise ValueError(f"{asked} does not take {x.dtype}{x.shape} by {weight.shape}; leave implementation None")
    return fitting.get(asked)
