"""The public operation: checks its arguments and picks an implementation."""

import jax
import jax.numpy as jnp

from pallas_kernels.platform import Implementation, pick_implementation
from pallas_kernels.sampling_floor.reference import sampling_floor_reference


def sampling_floor(
    logits: jax.Array,
    best: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    min_p: jax.Array,
    *,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Where min_p, top_k and top_p together cut each row: tokens whose logit is at least the floor are kept.

    Tokens are dropped in this order, each step on what the last one left, with probabilities softmax(logits /
    temperature). min_p keeps tokens at least min_p times as probable as the best. top_k keeps the k largest. top_p
    keeps each token before which, in descending order, less than top_p of the mass lies (nucleus sampling, Holtzman et
    al. 2020). Tokens that tie with the last one kept are kept too, so a floor says it all. The best token is always
    kept, and -inf never, unless the row has nothing else.

    Args:
        logits: [S, V] float32. -inf for tokens that may not be taken.
        best: [S] float32, the largest logit of each row, which callers have at hand.
        temperature: [S] float32. Rows below the smallest normal number are greedy: their floor is `best`.
        top_k: [S] int32. V or more keeps all; below 1 counts as 1.
        top_p: [S] float32. 1 or more keeps all.
        min_p: [S] float32, 0 to 1. 0 keeps all.
        implementation: `reference` sorts in plain jax.numpy and runs everywhere; `triton` needs jax_triton and a CUDA
            GPU. None picks the best that can run.

    Returns:
        [S] float32. Where no token lies between them, implementations may give different floors of one and the same
        set of tokens. Sums of masses are rounded: a token before which top_p of the mass lies to within a millionth may
        fall either way, but always the same way on one device.

    Raises:
        ValueError: shapes or dtypes contradict what is said here, or the implementation is unknown.
    """
    _check(logits, best, temperature, top_k, top_p, min_p)
    if pick_implementation(implementation) == "triton":
        # Loaded only here: jax_triton is not needed where the reference runs.
        from pallas_kernels.sampling_floor.triton import sampling_floor_triton

        return sampling_floor_triton(logits, best, temperature, top_k, top_p, min_p)
    return sampling_floor_reference(logits, best, temperature, top_k, top_p, min_p)


def _check(logits: jax.Array, *rows: jax.Array) -> None:
    if logits.ndim != 2 or logits.dtype != jnp.float32 or 0 in logits.shape:
        raise ValueError(f"logits must be [S, V] float32, neither of them 0; got {logits.shape} {logits.dtype}")
    names = ("best", "temperature", "top_k", "top_p", "min_p")
    for name, row in zip(names, rows, strict=True):
        dtype = jnp.int32 if name == "top_k" else jnp.float32
        if row.shape != logits.shape[:1] or row.dtype != dtype:
            raise ValueError(f"{name} must be [{logits.shape[0]}] {jnp.dtype(dtype).name}; got {row.shape} {row.dtype}")
