"""The definition of the operations in plain jax.numpy, and what the CPU runs."""

import jax
import jax.numpy as jnp
from jax import lax

# lhs [M, D] is cut along M into groups, each of which meets one [N, D] of rhs [E, N, D].
_BY_GROUP = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
)


def grouped_matmul_reference(lhs: jax.Array, rhs: jax.Array, group_sizes: jax.Array) -> jax.Array:
    """See `grouped_matmul`."""
    out: jax.Array = lax.ragged_dot_general(
        lhs, rhs, group_sizes, _BY_GROUP, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    return out.astype(lhs.dtype)


def expert_mlp_reference(
    x: jax.Array, expert_ids: jax.Array, expert_weights: jax.Array, gate_up: jax.Array, down: jax.Array
) -> jax.Array:
    """See `expert_mlp`. Every expert computes every token, and those that did not choose it pass it over.

    One expert at a time, so that what lies between is not E times as large. A GPU would run this as a loop.
    """

    def product(subscripts: str, left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.einsum(subscripts, left, right, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)

    def add_expert(total: jax.Array, expert: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, gate_up_of_one, down_of_one = expert
        both = product("td,cfd->ctf", x, gate_up_of_one)
        hidden = (jax.nn.silu(both[0]) * both[1]).astype(x.dtype)
        chosen = expert_ids == index
        weight = jnp.sum(jnp.where(chosen, expert_weights, 0.0), axis=1)
        out = product("tf,df->td", hidden, down_of_one) * weight[:, None]
        # Not a factor of 0: what an expert makes of a token that is not its own may be infinite.
        return total + jnp.where(chosen.any(axis=1)[:, None], out, 0.0), None

    experts = (jnp.arange(gate_up.shape[0], dtype=expert_ids.dtype), gate_up, down)
    total, _ = lax.scan(add_expert, jnp.zeros(x.shape, jnp.float32), experts)
    return total.astype(x.dtype)
