"""sampling_floor by Triton kernels: no sort and no loop, so a step stays one CUDA graph.

Bytes: each pass reads the logits once. The first pass and the listing always run; the second pass reads only rows in
which many tokens are left, and rows that are greedy or keep everything read nothing. The search reads a short list.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.platform import PTX_VERSION
from pallas_kernels.sampling_floor import kernels
from pallas_kernels.sampling_floor.config import LADDER, FloorConfig
from pallas_kernels.triton_call import triton_call


def sampling_floor_triton(
    logits: jax.Array,
    best: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    min_p: jax.Array,
    *,
    config: FloorConfig | None = None,
) -> jax.Array:
    """See `sampling_floor`. `config` overrides the sizes, for tests and tuning."""
    config = config or FloorConfig()
    num_rows, vocab_size = logits.shape
    chunks = -(-vocab_size // config.chunk)
    sizes = {"V": vocab_size, "CHUNKS": chunks, "CHUNK": config.chunk}
    block_c = 1 << (chunks - 1).bit_length()
    row_inputs = (logits, best, temperature, top_k, top_p, min_p)

    def floats(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    partials = floats(num_rows, chunks, len(LADDER))
    pivots = floats(num_rows, len(LADDER))
    state = floats(num_rows, kernels.STATE.value)
    call: Any = partial(triton_call, num_stages=1, backend_options={"ptx_version": PTX_VERSION})
    call_pass: Any = partial(call, grid=(chunks, num_rows), num_warps=config.pass_warps, **sizes)

    measured = call_pass(
        *row_inputs,
        jnp.asarray(LADDER, jnp.float32),
        kernel=kernels.coarse_kernel,
        name="sampling_floor_coarse",
        out_type=(partials, pivots),
    )
    *measured, narrowed = call_pass(
        *row_inputs,
        *measured,
        kernel=kernels.fine_kernel,
        name="sampling_floor_fine",
        out_type=(partials, pivots, state),
        BLOCK_C=block_c,
        FINE_ABOVE=config.fine_above,
    )
    num_candidates = jax.new_ref(jnp.zeros(num_rows, jnp.int32))
    candidates, narrowed = call_pass(
        num_candidates,
        *row_inputs,
        *measured,
        narrowed,
        kernel=kernels.compact_kernel,
        name="sampling_floor_compact",
        out_type=(floats(num_rows, config.capacity), state),
        BLOCK_C=block_c,
        CAPACITY=config.capacity,
    )
    floor: jax.Array = call(
        *row_inputs,
        num_candidates[...],
        candidates,
        narrowed,
        kernel=kernels.search_kernel,
        name="sampling_floor_search",
        out_type=floats(num_rows),
        grid=(num_rows,),
        num_warps=config.search_warps,
        V=vocab_size,
        CAPACITY=config.capacity,
        BLOCK=config.block,
    )
    return floor
