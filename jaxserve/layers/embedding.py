"""Token embeddings and the output head, both one table split over the vocabulary; learned positions."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from jaxserve.layers.parameter import abstract_param
from jaxserve.sharding import TENSOR_AXIS, constrain, tensor_parallel_size


class VocabTable(nnx.Module):
    """One row of D values a token, used to embed tokens, to score them, or (tied embeddings) for both.

    The rows are padded to a multiple of the devices. Padding is never embedded and never scored.

    Args:
        vocab_size: V.
        hidden_size: D.
        mesh: the devices.
        dtype: of the table.
    """

    def __init__(self, vocab_size: int, hidden_size: int, *, mesh: Mesh, dtype: DTypeLike) -> None:
        shards = tensor_parallel_size(mesh)
        rows = -(-vocab_size // shards) * shards
        self.weight = abstract_param(mesh, (rows, hidden_size), ("vocab", "embed"), dtype)
        self.vocab_size = vocab_size
        self.mesh = mesh

    def embed(self, token_ids: jax.Array) -> jax.Array:
        """[T] int32 to [T, D]. Ids outside the vocabulary (padding) give values of no meaning."""
        table = self.weight[...]
        if tensor_parallel_size(self.mesh) == 1:
            return jnp.take(table, token_ids, axis=0, mode="clip")

        @partial(jax.shard_map, mesh=self.mesh, in_specs=(P(TENSOR_AXIS), P()), out_specs=P())
        def lookup(rows: jax.Array, token_ids: jax.Array) -> jax.Array:
            # Every row lies on one device; the others add zeros, so the sum is exact.
            local = token_ids - jax.lax.axis_index(TENSOR_AXIS) * rows.shape[0]
            found = (local >= 0) & (local < rows.shape[0])
            values = jnp.take(rows, local, axis=0, mode="clip")
            summed: jax.Array = jax.lax.psum(jnp.where(found[:, None], values, 0), TENSOR_AXIS)
            return summed

        embedded: jax.Array = lookup(table, token_ids)
        return embedded

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[S, D] to the scores of the tokens [S, V], float32, whole on every device."""
        precision = jax.lax.Precision.HIGHEST if hidden.dtype == jnp.float32 else None
        scores = jnp.einsum(
            "sd,vd->sv", hidden, self.weight[...], precision=precision, preferred_element_type=jnp.float32
        )
        # Each device scores its own rows of the table. Without saying so, jit gathers the whole table in every step.
        scores = constrain(scores, self.mesh, ("replicated", "vocab"))
        return constrain(scores, self.mesh)[:, : self.vocab_size]


class PositionTable(nnx.Module):
    """One learned row of D values a position, whole on every device.

    Args:
        num_positions: rows.
        hidden_size: D.
        mesh: the devices.
        dtype: of the table.
    """

    def __init__(self, num_positions: int, hidden_size: int, *, mesh: Mesh, dtype: DTypeLike) -> None:
        self.weight = abstract_param(mesh, (num_positions, hidden_size), ("position", "embed"), dtype)

    def embed(self, positions: jax.Array) -> jax.Array:
        """[T] int32 to [T, D]."""
        return jnp.take(self.weight[...], positions, axis=0, mode="clip")
