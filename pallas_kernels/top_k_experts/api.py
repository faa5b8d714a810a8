"""The public operation: checks its arguments and picks an implementation."""

import jax

from pallas_kernels.platform import Implementation, pick_implementation
from pallas_kernels.top_k_experts.reference import top_k_experts_reference


def top_k_experts(
    logits: jax.Array, num_experts_per_token: int, *, normalize: bool, implementation: Implementation | None = None
) -> tuple[jax.Array, jax.Array]:
    """The experts that a router scores highest, and their probabilities (Shazeer et al. 2017).

    Probabilities are a softmax over all experts, in float32. Of equal scores the lower expert comes first.

    Args:
        logits: [T, E] a router's scores.
        num_experts_per_token: k, from 1 to E.
        normalize: divide the k probabilities by their sum, which makes them a softmax over the k scores.
        implementation: `reference` is plain jax.numpy and runs everywhere; `triton` needs jax_triton and a CUDA GPU.
            None picks the best that can run.

    Returns:
        expert_ids [T, k] int32, all different within a token, even where a score is NaN, and expert_weights [T, k]
        float32, the largest first.

    Raises:
        ValueError: logits are not [T, E], k is out of range, or the implementation is unknown.
    """
    if logits.ndim != 2 or not 1 <= num_experts_per_token <= logits.shape[1]:
        raise ValueError(f"cannot choose {num_experts_per_token} experts by logits [T, E] of shape {logits.shape}")
    if pick_implementation(implementation) == "reference":
        return top_k_experts_reference(logits, num_experts_per_token, normalize=normalize)
    # Loaded only here: jax_triton is not needed where the reference runs.
    from pallas_kernels.top_k_experts.triton import top_k_experts_triton

    return top_k_experts_triton(logits, num_experts_per_token, normalize=normalize)
