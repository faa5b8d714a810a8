"""The public operations: they check their arguments and pick an implementation."""

import jax
import jax.numpy as jnp

from pallas_kernels.grouped_matmul.reference import expert_mlp_reference, grouped_matmul_reference
from pallas_kernels.platform import Implementation, pick_implementation


def grouped_matmul(
    lhs: jax.Array, rhs: jax.Array, group_sizes: jax.Array, *, implementation: Implementation | None = None
) -> jax.Array:
    """Multiply each row by the matrix of its group, the rows lying group by group.

    Args:
        lhs: [M, D] rows; the first group_sizes[0] are of group 0, and so on.
        rhs: [E, N, D] a matrix a group, outputs first.
        group_sizes: [E] int32, rows of each group, of sum M at most.
        implementation: `reference` is plain jax.numpy and runs everywhere; `triton` needs jax_triton and a CUDA GPU
            (lhs and rhs of one dtype: bfloat16, float16 or float32). None picks the best that can run.

    Returns:
        [M, N] in lhs's dtype, summed in float32. Rows past the last group's are zero.

    Raises:
        ValueError: shapes contradict each other, or the implementation is unknown or does not take these dtypes.
    """
    if lhs.ndim != 2 or rhs.ndim != 3 or lhs.shape[1] != rhs.shape[2] or group_sizes.shape != rhs.shape[:1]:
        raise ValueError(
            f"lhs must be [M, D], rhs [E, N, D] and group_sizes [E]; got {lhs.shape}, {rhs.shape}, {group_sizes.shape}"
        )
    if _pick(implementation, lhs.dtype, rhs.dtype) == "reference":
        return grouped_matmul_reference(lhs, rhs, group_sizes)
    # Loaded only here: jax_triton is not needed where the reference runs.
    from pallas_kernels.grouped_matmul.triton import grouped_matmul_triton

    return grouped_matmul_triton(lhs, rhs, group_sizes)


def expert_mlp(
    x: jax.Array,
    expert_ids: jax.Array,
    expert_weights: jax.Array,
    gate_up: jax.Array,
    down: jax.Array,
    *,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Run each token through the feed-forward networks of its experts, and add up what they make of it.

    Expert e computes `down[e] @ (silu(gate_up[e, 0] @ x) * (gate_up[e, 1] @ x))` (SwiGLU, Shazeer 2020); a token gets
    the sum over its k experts, each times its weight (Shazeer et al. 2017). A token's result does not depend on the
    other tokens beyond the rounding of products of another shape.

    Args:
        x: [T, D] tokens.
        expert_ids: [T, k] int32, the experts of each token, all different, each within 0..E - 1.
        expert_weights: [T, k] float32.
        gate_up: [E, 2, F, D] the gate and the up matrix of each expert, outputs first.
        down: [E, D, F] the down matrix of each expert.
        implementation: `reference` is plain jax.numpy and runs everywhere; `triton` needs jax_triton and a CUDA GPU
            (x, gate_up and down of one dtype: bfloat16, float16 or float32). None picks the best that can run.

    Returns:
        [T, D] in x's dtype.

    Raises:
        ValueError: shapes contradict each other, or the implementation is unknown or does not take these dtypes.
    """
    _check_experts(x, expert_ids, expert_weights, gate_up, down)
    if _pick(implementation, x.dtype, gate_up.dtype, down.dtype) == "reference":
        return expert_mlp_reference(x, expert_ids, expert_weights, gate_up, down)
    # As above.
    from pallas_kernels.grouped_matmul.triton import expert_mlp_triton

    return expert_mlp_triton(x, expert_ids, expert_weights, gate_up, down)


def _pick(asked: Implementation | None, *dtypes: jnp.dtype) -> Implementation:
    takes_triton = len(set(dtypes)) == 1 and dtypes[0] in (jnp.bfloat16, jnp.float16, jnp.float32)
    picked = pick_implementation(asked, takes_triton=takes_triton)
    if picked == "triton" and not takes_triton:
        names = ", ".join(map(str, dtypes))
        raise ValueError(f"triton needs both sides in one dtype, bfloat16, float16 or float32; got {names}")
    return picked


def _check_experts(
    x: jax.Array, expert_ids: jax.Array, expert_weights: jax.Array, gate_up: jax.Array, down: jax.Array
) -> None:
    if gate_up.ndim != 4 or gate_up.shape[1] != 2 or down.shape != (gate_up.shape[0], *gate_up.shape[:1:-1]):
        raise ValueError(f"gate_up must be [E, 2, F, D] and down [E, D, F]; got {gate_up.shape} and {down.shape}")
    if x.ndim != 2 or x.shape[1] != gate_up.shape[3]:
        raise ValueError(f"x must be [T, D] with the D of gate_up {gate_up.shape}; got {x.shape}")
    if expert_ids.ndim != 2 or expert_ids.shape[0] != x.shape[0] or expert_weights.shape != expert_ids.shape:
        raise ValueError(
            f"expert_ids and expert_weights must both be [T, k] for x {x.shape}; "
            f"got {expert_ids.shape} and {expert_weights.shape}"
        )
    if not 1 <= expert_ids.shape[1] <= gate_up.shape[0]:
        raise ValueError(f"a token can have 1 to {gate_up.shape[0]} experts, got {expert_ids.shape[1]}")
