"""Token embeddings and the output head, both one table split over the vocabulary; learned positions."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from jaxserve.layers.parameter import abstract_param
from jaxserve.sharding import TENSOR_AXIS, constrain, tensor_parallel_size
from pallas_kernels.all_reduce import Peers, all_reduce, all_to_all, argmax_over_devices
from pallas_kernels.skinny_matmul import scores_matmul


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

    def embed(self, token_ids: jax.Array, peers: Peers | None = None) -> jax.Array:
        """[T] int32 to [T, D]. Ids outside the vocabulary (padding) give values of no meaning.

        Over several devices `peers` is how they reach each other's memory; None leaves the sum to XLA.
        """
        table = self.weight[...]
        if tensor_parallel_size(self.mesh) == 1:
            return jnp.take(table, token_ids, axis=0, mode="clip")

        @partial(
            jax.shard_map,
            mesh=self.mesh,
            in_specs=(P(TENSOR_AXIS), P(), P(TENSOR_AXIS)),
            out_specs=P(),
            check_vma=False,
        )
        def lookup(rows: jax.Array, token_ids: jax.Array, peers: Peers | None) -> jax.Array:
            # Every row lies on one device; the others add zeros, so the sum is exact.
            local = token_ids - jax.lax.axis_index(TENSOR_AXIS) * rows.shape[0]
            found = (local >= 0) & (local < rows.shape[0])
            values = jnp.take(rows, local, axis=0, mode="clip")
            return all_reduce(jnp.where(found[:, None], values, 0)[None], peers, axis_name=TENSOR_AXIS)

        embedded: jax.Array = lookup(table, token_ids, peers)
        return embedded

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[S, D] to the scores of the tokens [S, V], float32, whole on every device."""
        # Over several devices jit divides XLA's product, and could not divide a kernel's.
        implementation: Literal["reference"] | None = None if tensor_parallel_size(self.mesh) == 1 else "reference"
        scores = scores_matmul(hidden, self.weight[...], implementation=implementation)
        # Each device scores its own rows of the table. Without saying so, jit gathers the whole table in every step.
        scores = constrain(scores, self.mesh, ("replicated", "vocab"))
        return constrain(scores, self.mesh)[:, : self.vocab_size]

    def best_tokens(
        self, hidden: jax.Array, peers: Peers | None, finish: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        """[S, D] to the token of the highest score of each row [S] int32, the lower id of equal ones.

        Over several devices the scores never come together: each sends its best one.

        Args:
            hidden: whole on every device.
            peers: how the devices reach each other's memory; None leaves it to XLA.
            finish: what is made of scores before they are compared.
        """
        if tensor_parallel_size(self.mesh) == 1:
            return jnp.argmax(finish(self.logits(hidden)), axis=-1).astype(jnp.int32)
        # To mask what is not there takes a pass over the scores.
        padded = self.weight.shape[0] > self.vocab_size

        @partial(
            jax.shard_map,
            mesh=self.mesh,
            in_specs=(P(), P(TENSOR_AXIS), P(TENSOR_AXIS)),
            out_specs=P(),
            check_vma=False,
        )
        def choose(hidden: jax.Array, rows: jax.Array, peers: Peers | None) -> jax.Array:
            first = jax.lax.axis_index(TENSOR_AXIS) * rows.shape[0]
            scores = finish(scores_matmul(hidden, rows))
            if padded:
                real = first + jnp.arange(rows.shape[0], dtype=jnp.int32) < self.vocab_size
                scores = jnp.where(real, scores, -jnp.inf)
            ids = first + jnp.argmax(scores, axis=-1).astype(jnp.int32)
            return argmax_over_devices(scores.max(axis=-1), ids, peers, axis_name=TENSOR_AXIS)

        chosen: jax.Array = choose(hidden, self.weight[...], peers)
        return chosen

    def drawn_tokens(
        self,
        hidden: jax.Array,
        params: Any,
        peers: Peers | None,
        finish: Callable[[jax.Array], jax.Array],
        draw: Callable[[jax.Array, Any], jax.Array],
    ) -> jax.Array:
        """[S, D] to a token of each row [S] int32, drawn from its scores.

        Over several devices each gets the whole scores of its share of the rows, and draws for these.

        Args:
            hidden: whole on every device.
            params: a tree of arrays [S, ...], what is to be known of each row to draw for it.
            peers: how the devices reach each other's memory; None leaves it to XLA.
            finish: what is made of scores first.
            draw: scores [R, V] float32 and the params of these rows to tokens [R] int32.
        """
        size, num_rows = tensor_parallel_size(self.mesh), hidden.shape[0]
        if size == 1:
            return draw(finish(self.logits(hidden)), params)
        share = -(-num_rows // size)

        def fill_up(rows: jax.Array) -> jax.Array:
            return jnp.pad(rows, [(0, share * size - num_rows), *((0, 0) for _ in rows.shape[1:])])

        @partial(
            jax.shard_map,
            mesh=self.mesh,
            in_specs=(P(), P(TENSOR_AXIS), P(), P(TENSOR_AXIS)),
            out_specs=P(),
            check_vma=False,
        )
        def choose(hidden: jax.Array, rows: jax.Array, params: Any, peers: Peers | None) -> jax.Array:
            scores = all_to_all(fill_up(finish(scores_matmul(hidden, rows))), peers, axis_name=TENSOR_AXIS)
            rank = jax.lax.axis_index(TENSOR_AXIS)
            own = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(fill_up(a), rank * share, share), params)
            tokens = draw(scores[:, : self.vocab_size], own)
            # Of each row, the device that drew for it has the largest value.
            owner = jnp.arange(share * size, dtype=jnp.int32) // share
            mine = (owner == rank).astype(jnp.float32)
            return argmax_over_devices(mine, jnp.tile(tokens, size), peers, axis_name=TENSOR_AXIS)[:num_rows]

        drawn: jax.Array = choose(hidden, self.weight[...], params, peers)
        return drawn


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
