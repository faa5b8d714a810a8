"""The public operation: checks its arguments and picks an implementation."""

import jax
import jax.numpy as jnp

from pallas_kernels.gumbel_argmax.reference import gumbel_argmax_reference
from pallas_kernels.platform import Implementation, pick_implementation


def gumbel_argmax(
    logits: jax.Array,
    best: jax.Array,
    floor: jax.Array,
    temperature: jax.Array,
    seeds: jax.Array,
    positions: jax.Array,
    *,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Draw a token of each row from softmax(logits / temperature), restricted to the logits from `floor` up.

    The token is argmax((logits - best) / temperature + noise), with Gumbel-distributed noise (Gumbel 1954):
    `jax.random.gumbel(jax.random.fold_in(key, position), (V,))`, where key is the Threefry key of the row's seed. So it
    depends on nothing but the row's own seed, position and logits.

    Args:
        logits: [S, V] float32.
        best: [S] float32, the largest logit of each row.
        floor: [S] float32, at most `best`.
        temperature: [S] float32. Rows below the smallest normal number get a token of no meaning, and cost nothing.
        seeds: [S, 2] int32, the high and the low half of each row's seed.
        positions: [S] int32, the position of the token to be drawn.
        implementation: `reference` is plain jax.numpy and runs everywhere; `triton` needs jax_triton and a CUDA GPU.
            None picks the best that can run. The random bits are the same in all. Logarithms may differ between
            devices and implementations by a rounding, so a tie to within that may be drawn differently.

    Returns:
        [S] int32 token ids. Of equal values the lower id is taken.

    Raises:
        ValueError: shapes or dtypes contradict what is said here, or the implementation is unknown.
    """
    _check(logits, seeds, best=best, floor=floor, temperature=temperature, positions=positions)
    if pick_implementation(implementation) == "triton":
        # Loaded only here: jax_triton is not needed where the reference runs.
        from pallas_kernels.gumbel_argmax.triton import gumbel_argmax_triton

        return gumbel_argmax_triton(logits, best, floor, temperature, seeds, positions)
    return gumbel_argmax_reference(logits, best, floor, temperature, seeds, positions)


def _check(logits: jax.Array, seeds: jax.Array, **rows: jax.Array) -> None:
    if logits.ndim != 2 or logits.dtype != jnp.float32 or 0 in logits.shape:
        raise ValueError(f"logits must be [S, V] float32, neither of them 0; got {logits.shape} {logits.dtype}")
    num_rows = logits.shape[0]
    if seeds.shape != (num_rows, 2) or seeds.dtype != jnp.int32:
        raise ValueError(f"seeds must be [{num_rows}, 2] int32; got {seeds.shape} {seeds.dtype}")
    for name, row in rows.items():
        dtype = jnp.int32 if name == "positions" else jnp.float32
        if row.shape != (num_rows,) or row.dtype != dtype:
            raise ValueError(f"{name} must be [{num_rows}] {jnp.dtype(dtype).name}; got {row.shape} {row.dtype}")
