"""The step: what one call of the device computes, from packed input to sampled tokens."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxserve.layers.attention import AttentionMetadata
from jaxserve.runner.buckets import Bucket, SamplerKind
from jaxserve.runner.packing import SAMPLER_FIELDS, packed_layout
from jaxserve.runner.sampler import sample

Weights = tuple[jax.Array, ...]


class DeviceState(NamedTuple):
    """What lives on the device from step to step, besides the pool. Donated, like the pool.

    Attributes:
        last_tokens: [max_num_seqs] int32, the token each slot sampled last, read by the next step.
        page_table: [max_num_seqs, max_pages] int32, the pages of each slot.
    """

    last_tokens: jax.Array
    page_table: jax.Array


class CausalLM(Protocol):
    """What the step needs of a model."""

    def __call__(
        self, token_ids: jax.Array, metadata: AttentionMetadata, kv_pages: jax.Array
    ) -> tuple[jax.Array, jax.Array]: ...

    def greedy_tokens(self, hidden: jax.Array) -> jax.Array: ...

    def sampled_tokens(
        self, hidden: jax.Array, params: Any, draw: Callable[[jax.Array, Any], jax.Array]
    ) -> jax.Array: ...


class MergesWeights(Protocol):
    """A loaded model: a flat tuple of weights and the way back to modules."""

    @property
    def description(self) -> str:
        """All that tracing it depends on, besides its weights' shapes and where they lie."""

    def merge(self, weights: Weights) -> Any: ...


def update_page_table(page_table: jax.Array, rows: jax.Array, columns: jax.Array, pages: jax.Array) -> jax.Array:
    """Write pages [U] at (rows, columns) [U] of the table; rows out of range are dropped."""
    return page_table.at[rows, columns].set(pages, mode="drop")


def copy_pages(kv_pages: jax.Array, sources: jax.Array, targets: jax.Array, *, num_layers: int) -> jax.Array:
    """Copy pages [C] onto others in every layer (copy on write); targets from a layer's number of pages on are dropped.

    By rows of the whole array: XLA would turn a view by layers round, and copy all of it, to index its second axis.
    """
    num_rows = kv_pages.shape[0]
    num_pages = num_rows // num_layers
    first = jnp.arange(num_layers, dtype=jnp.int32)[:, None] * num_pages
    # Past a layer's pages lie those of the next, so what is dropped goes past all, each to a row of its own: 16-bit
    # values that others might write too would be written by compare and swap.
    nowhere = num_rows + jnp.arange(first.size * targets.size, dtype=jnp.int32).reshape(first.size, -1)
    target_rows = jnp.where(targets < num_pages, first + targets, nowhere)
    return kv_pages.at[target_rows].set(kv_pages[first + sources], mode="drop", unique_indices=True)


def run_step(
    model: MergesWeights,
    bucket: Bucket,
    page_size: int,
    weights: Weights,
    kv_pages: jax.Array,
    state: DeviceState,
    packed: jax.Array,
    used: jax.Array,
) -> tuple[jax.Array, DeviceState, jax.Array]:
    """Compute one step of a bucket.

    Args:
        model: merges weights into modules while tracing.
        bucket: the shapes.
        page_size: tokens a page.
        weights: the model's arrays. Kept.
        kv_pages: [L * P, 2, page_size, K, H], the pool. Donated.
        state: donated.
        packed: int32, `packed_layout(bucket)`, in host memory.
        used: [max_num_seqs] int32 in host memory, tokens of a step that were read and nobody will read any more.
            Donated: the sampled tokens take its place.

    Returns:
        The pool, the state, and the sampled tokens [max_num_seqs] int32 in host memory, those of the step's sequences
        first: -1 if a device waited in vain for another.
    """
    fields = packed_layout(bucket).unpack(jax.device_put(packed, jax.memory.Space.Device))
    slots = fields["slots"]
    page_table = update_page_table(state.page_table, *fields["page_updates"].T)
    num_slots = state.last_tokens.shape[0]
    tokens = fields["token_ids"]
    feedback = state.last_tokens[jnp.clip(~tokens, 0, num_slots - 1)]
    token_ids = jnp.where(tokens < 0, feedback, tokens)

    rows = page_table[jnp.minimum(slots, num_slots - 1)]
    metadata = _attention_metadata(fields, rows, bucket, page_size, kv_pages)
    module: CausalLM = model.merge(weights)
    hidden, kv_pages = module(token_ids, metadata, kv_pages)
    if not bucket.decode_only:
        hidden = hidden[jnp.maximum(fields["query_start_loc"][1:] - 1, 0)]
    if bucket.sampler is SamplerKind.FULL:
        params = fields["seq_lens"], {name: fields[name] for name in SAMPLER_FIELDS}
        sampled = module.sampled_tokens(hidden, params, lambda logits, params: sample(logits, *params))
    else:
        sampled = module.greedy_tokens(hidden)
    # A chunk that does not reach its prompt's end leaves a token nobody reads, until the last chunk writes over it.
    last_tokens = state.last_tokens.at[slots].set(sampled, mode="drop")
    result = _put_first(jax.device_put(used, jax.memory.Space.Device), sampled)
    # XLA copies the result to the host after all that is a CUDA graph. Without the barrier it would begin that first.
    last_tokens, result = jax.lax.optimization_barrier((last_tokens, result))
    return kv_pages, DeviceState(last_tokens, page_table), result


def _put_first(used: jax.Array, sampled: jax.Array) -> jax.Array:
    """`sampled` [S] in place of the first of `used` [N].

    By a choice of each: given a slice to write, XLA wraps the kernel that wrote the tokens to write them there.
    """
    size, (num_seqs,) = used.shape[0], sampled.shape
    return jnp.where(jnp.arange(size) < num_seqs, jnp.pad(sampled, (0, size - num_seqs)), used)


def _attention_metadata(
    fields: dict[str, jax.Array], page_table: jax.Array, bucket: Bucket, page_size: int, kv_pages: jax.Array
) -> AttentionMetadata:
    """Positions and slots of the tokens, from where their sequences begin and end."""
    token = jnp.arange(bucket.num_tokens, dtype=jnp.int32)
    seq_lens = fields["seq_lens"]
    if bucket.decode_only:
        seq, real = token, seq_lens > 0
        position = jnp.maximum(seq_lens - 1, 0)
        starts = jnp.arange(bucket.num_seqs + 1, dtype=jnp.int32)
        query_start_loc = jnp.minimum(starts, jnp.sum(real, dtype=jnp.int32))
    else:
        query_start_loc = fields["query_start_loc"]
        # Comparing with all is cheap, and the search by halves would be a loop, which no CUDA graph can hold.
        seq = jnp.searchsorted(query_start_loc, token, side="right", method="compare_all").astype(jnp.int32) - 1
        seq = jnp.clip(seq, 0, bucket.num_seqs - 1)
        real = token < query_start_loc[-1]
        position = jnp.where(real, seq_lens[seq] - query_start_loc[seq + 1] + token, 0)
    slot = page_table[seq, position // page_size] * page_size + position % page_size
    # Padding tokens get distinct slots past the pool of all layers, where each of them drops writes.
    past_pool = kv_pages.shape[0] * page_size
    return AttentionMetadata(
        positions=position,
        slot_mapping=jnp.where(real, slot, past_pool + token),
        page_table=page_table,
        query_start_loc=query_start_loc,
        seq_lens=seq_lens,
        decode_only=bucket.decode_only,
    )
