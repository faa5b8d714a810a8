"""gumbel_argmax by a Triton kernel: one pass over the logits, then an argmax over its chunks."""

import jax
import jax.numpy as jnp

from pallas_kernels.gumbel_argmax import kernels
from pallas_kernels.gumbel_argmax.config import DrawConfig
from pallas_kernels.platform import PTX_VERSION
from pallas_kernels.triton_call import triton_call


def gumbel_argmax_triton(
    logits: jax.Array,
    best: jax.Array,
    floor: jax.Array,
    temperature: jax.Array,
    seeds: jax.Array,
    positions: jax.Array,
    *,
    config: DrawConfig | None = None,
) -> jax.Array:
    """See `gumbel_argmax`. `config` overrides the sizes, for tests and tuning."""
    config = config or DrawConfig()
    num_rows, vocab_size = logits.shape
    chunks = -(-vocab_size // config.chunk)
    values, ids, _ = triton_call(
        logits,
        best,
        floor,
        temperature,
        seeds,
        positions,
        kernel=kernels.draw_kernel,
        name="gumbel_argmax",
        out_type=(
            jax.ShapeDtypeStruct((num_rows, chunks), jnp.float32),
            jax.ShapeDtypeStruct((num_rows, chunks), jnp.int32),
            jax.ShapeDtypeStruct((num_rows, chunks, config.few), jnp.int32),
        ),
        grid=(chunks, num_rows),
        num_warps=config.num_warps,
        num_stages=1,
        # As sampling_floor's.
        backend_options={"ptx_version": PTX_VERSION},
        V=vocab_size,
        CHUNKS=chunks,
        CHUNK=config.chunk,
        FEW=config.few,
    )
    winner = jnp.argmax(values, axis=-1)
    drawn: jax.Array = jnp.take_along_axis(ids, winner[:, None], axis=-1)[:, 0]
    return drawn
