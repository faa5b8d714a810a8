"""The choice of experts by a Triton kernel.

XLA sorts for `lax.top_k`, or reduces k times, each a kernel of its own; here a decode step's layer spends one.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.platform import PTX_VERSION
from pallas_kernels.top_k_experts import kernels
from pallas_kernels.triton_call import triton_call

TOKENS_PER_PROGRAM = 4


def top_k_experts_triton(
    logits: jax.Array, num_experts_per_token: int, *, normalize: bool
) -> tuple[jax.Array, jax.Array]:
    """See `top_k_experts`."""
    num_tokens, num_experts = logits.shape
    shape = (num_tokens, num_experts_per_token)
    expert_ids, expert_weights = triton_call(
        logits,
        num_tokens,  # not a compile-time constant: one compiled kernel serves all buckets
        kernel=kernels.top_k_experts_kernel,
        out_type=(jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.float32)),
        grid=(-(-num_tokens // TOKENS_PER_PROGRAM),),
        name="top_k_experts",
        num_warps=TOKENS_PER_PROGRAM,
        num_stages=1,
        backend_options={"ptx_version": PTX_VERSION},
        E=num_experts,
        K=num_experts_per_token,
        NORMALIZE=normalize,
        BLOCK_T=TOKENS_PER_PROGRAM,
        BLOCK_E=max(2, _power_of_two(num_experts)),
        BLOCK_K=_power_of_two(num_experts_per_token),
    )
    return expert_ids, expert_weights


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
