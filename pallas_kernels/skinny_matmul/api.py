"""The public operation: checks its arguments and picks an implementation."""

import jax
import jax.numpy as jnp

from pallas_kernels.platform import Implementation, pick_implementation
from pallas_kernels.skinny_matmul.config import skinny_config
from pallas_kernels.skinny_matmul.reference import skinny_matmul_reference

# Whether None may pick the Triton kernel. Alone it is faster than XLA's products (docs/benchmarks); what it brings to a
# whole step has not been measured.
SKINNY_BY_DEFAULT = False


def skinny_matmul(x: jax.Array, weight: jax.Array, *, implementation: Implementation | None = None) -> jax.Array:
    """x @ weight.T, in parts that are left to be summed by whoever reads them next.

    A product of a few rows takes as long as reading the weights, if enough programs read them. With few columns there
    are enough only if the summed axis is cut too (split-K), and then the parts must be summed: `residual_norm` does it
    on its way.

    Args:
        x: [T, D].
        weight: [N, D], outputs first as checkpoints have them, in x's dtype.
        implementation: `reference`, `triton`, or None: the reference, unless SKINNY_BY_DEFAULT is set, and then Triton
            on a GPU for few rows of 16-bit values.

    Returns:
        [parts, T, N], in x's dtype if there is one part, else in float32.

    Raises:
        ValueError: shapes or dtypes contradict each other, or the implementation is unknown or does not fit the shapes.
    """
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1] or x.dtype != weight.dtype:
        raise ValueError(
            f"x must be [T, D] and weight [N, D] of one dtype; got {x.dtype}{x.shape} and {weight.dtype}{weight.shape}"
        )
    config = skinny_config(x.shape[0], *weight.shape)
    takes_triton = SKINNY_BY_DEFAULT and config is not None and x.dtype in (jnp.bfloat16, jnp.float16)
    if pick_implementation(implementation, takes_triton=takes_triton) == "reference":
        return skinny_matmul_reference(x, weight)
    if config is None:
        raise ValueError(f"the Triton kernel does not take {x.shape} by {weight.shape}; leave implementation None")
    # Loaded only here: jax_triton is not needed where the reference runs.
    from pallas_kernels.skinny_matmul.triton import skinny_matmul_triton

    return skinny_matmul_triton(x, weight, config)
