"""The Triton kernel of the choice of experts."""

# mypy: ignore-errors
# The bodies are Triton's language, which only looks like Python.

import triton
import triton.language as tl

# Below every score that counts, and above those taken already.
LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def top_k_experts_kernel(
    logits,
    num_tokens,
    expert_ids,
    expert_weights,
    E: tl.constexpr,
    K: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program: BLOCK_T tokens. K times the largest of the scores that are left."""
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    e = tl.arange(0, BLOCK_E)
    j = tl.arange(0, BLOCK_K)
    is_token = (token < num_tokens)[:, None]
    scores = tl.load(logits + token[:, None] * E + e[None, :], mask=is_token & (e < E)[None, :], other=0.0)
    scores = tl.where((e < E)[None, :], scores.to(tl.float32), float("-inf"))
    top = tl.max(scores, 1)
    total = tl.sum(tl.math.exp(scores - top[:, None]), 1)

    # A NaN is neither above nor below: as the lowest score, it cannot keep a token from having K different experts.
    left = tl.where(scores > LOWEST, scores, tl.where((e < E)[None, :], LOWEST, float("-inf")))
    ids = tl.zeros([BLOCK_T, BLOCK_K], tl.int32)
    weights = tl.zeros([BLOCK_T, BLOCK_K], tl.float32)
    for i in tl.static_range(K):
        best = tl.max(left, 1)
        index = tl.min(tl.where(left == best[:, None], e[None, :], BLOCK_E), 1)
        ids = tl.where((j == i)[None, :], index[:, None], ids)
        weights = tl.where((j == i)[None, :], (tl.math.exp(best - top) / total)[:, None], weights)
        left = tl.where(e[None, :] == index[:, None], float("-inf"), left)
    if NORMALIZE:
        weights /= tl.sum(weights, 1)[:, None]
    offsets = token[:, None] * K + j[None, :]
    kept = is_token & (j < K)[None, :]
    tl.store(expert_ids + offsets, ids, mask=kept)
    tl.store(expert_weights + offsets, weights, mask=kept)
