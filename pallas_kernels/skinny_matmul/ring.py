"""The ring of the Mosaic GPU kernel: blocks of two operands go through it in shared memory, from a warpgroup that
fetches to two that multiply. `full` and `empty` are its barriers, one of each for a slot."""

from collections.abc import Callable
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

COLUMNS = 64  # of a 16-bit type, make the 128 bytes that shared memory is swizzled over
NUM_COMPUTING = 2  # warpgroups
# Registers of a thread. A program is launched with 168 for each of its 384 threads, and would wait forever if it asked
# for more than that in all.
COMPUTE_REGISTERS, FETCH_REGISTERS = 232, 40


def num_steps(num_items: int, num_programs: int) -> Any:
    """How many of so many pieces of work are this program's, dealt in turns."""
    left = num_items - lax.axis_index("program")
    return lax.div(left + num_programs - 1, num_programs)


def multiply_blocks(
    shape: tuple[int, int],
    operands: Callable[[Any], tuple[Any, Any]],
    full: Any,
    empty: Any,
    *,
    done: Any,
    num_blocks: int,
    num_stages: int,
) -> jax.Array:
    """The sum [M, N] float32 of the products of a stretch of blocks, each of whose slots is given back.

    Args:
        shape: M, N.
        operands: what lies in a slot: [M, columns] and [columns, N].
        full: barriers of what has been fetched.
        empty: barriers of what may be fetched over.
        done: blocks that went through the ring before.
        num_blocks: of this stretch.
        num_stages: slots.
    """

    def multiply(acc: Any) -> jax.Array:
        def visit(block: Any, _: None) -> None:
            slot = lax.rem(done + block, num_stages)
            plgpu.barrier_wait(full.at[slot])
            plgpu.wgmma(acc, *operands(slot))
            # The product of the block before is done, that of this one goes on.
            plgpu.wgmma_wait(1)
            last = lax.rem(done + block + num_stages - 1, num_stages)
            pl.when(block > 0)(lambda: plgpu.barrier_arrive(empty.at[last]))

        lax.fori_loop(0, num_blocks, visit, None)
        plgpu.wgmma_wait(0)
        plgpu.barrier_arrive(empty.at[lax.rem(done + num_blocks - 1, num_stages)])
        return acc[...]

    product: jax.Array = pl.run_scoped(multiply, plgpu.ACC(shape, jnp.float32))
    return product
