"""Recorded models and a forward pass over whole prompts."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from flax import nnx

from jaxserve.layers.attention import KV_PAGES_SPEC, AttentionMetadata
from jaxserve.models.checkpoint import LoadedModel

PAGE_SIZE = 8
MAX_TOKENS = 80  # of one forward pass, padding included
MAX_SEQS = 4
MAX_PAGES = 12  # of one sequence

Forward = Callable[[LoadedModel, Sequence[Sequence[int]]], npt.NDArray[np.float32]]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The recorded checkpoints, one directory each."""
    return Path(__file__).parents[1] / "data"


@partial(jax.jit, static_argnums=(0, 1))
def _hidden_and_logits(
    graphdef: nnx.GraphDef[Any],
    treedef: jax.tree_util.PyTreeDef,
    weights: tuple[jax.Array, ...],
    token_ids: jax.Array,
    metadata: AttentionMetadata,
    kv_pages: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    model = nnx.merge(graphdef, jax.tree.unflatten(treedef, weights))
    hidden, _ = model(token_ids, metadata, kv_pages)
    return hidden, model.compute_logits(hidden)


def _metadata(lengths: Sequence[int]) -> AttentionMetadata:
    """Whole prompts one after the other, padded to MAX_TOKENS; their pages lie scattered over the pool."""
    page_table = np.zeros((MAX_SEQS, MAX_PAGES), np.int32)
    positions = np.zeros(MAX_TOKENS, np.int32)
    slots = np.full(MAX_TOKENS, 2**30, np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    for s, length in enumerate(lengths):
        page_table[s] = 1 + np.arange(MAX_PAGES) * MAX_SEQS + s
        own = np.arange(length)
        positions[starts[s] : starts[s + 1]] = own
        slots[starts[s] : starts[s + 1]] = page_table[s][own // PAGE_SIZE] * PAGE_SIZE + own % PAGE_SIZE
    pad = MAX_SEQS - len(lengths)
    return AttentionMetadata(
        positions=jnp.asarray(positions),
        slot_mapping=jnp.asarray(slots),
        page_table=jnp.asarray(page_table),
        query_start_loc=jnp.asarray(np.pad(starts, (0, pad), mode="edge"), jnp.int32),
        seq_lens=jnp.asarray([*lengths, *([0] * pad)], jnp.int32),
    )


def _run(model: LoadedModel, prompts: Sequence[Sequence[int]]) -> tuple[jax.Array, jax.Array]:
    """Hidden states and scores of up to four prompts, computed in one pass over a paged pool; padding at the end."""
    lengths = [len(p) for p in prompts]
    token_ids = np.zeros(MAX_TOKENS, np.int32)
    token_ids[: sum(lengths)] = np.concatenate(prompts)
    rows = model.config.num_layers * (1 + MAX_SEQS * MAX_PAGES)
    shape = (rows, 2, PAGE_SIZE, model.num_kv_heads, model.config.head_dim)
    sharding = jax.sharding.NamedSharding(model.mesh, KV_PAGES_SPEC)
    args = jnp.asarray(token_ids), _metadata(lengths), jnp.zeros(shape, model.dtype, device=sharding)
    return _hidden_and_logits(model.graphdef, model.treedef, model.weights, *args)


@pytest.fixture(scope="session")
def forward() -> Forward:
    """Scores [sum of lengths, V] after every token of up to four prompts."""

    def run(model: LoadedModel, prompts: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        return np.asarray(_run(model, prompts)[1])[: sum(map(len, prompts))]

    return run


@pytest.fixture(scope="session")
def hidden_on_each_device() -> Callable[[LoadedModel, Sequence[Sequence[int]]], list[np.ndarray]]:
    """The normalised hidden states [sum of lengths, D] that each device has."""

    def run(model: LoadedModel, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        hidden, _ = _run(model, prompts)
        assert hidden.sharding.is_fully_replicated
        return [np.asarray(shard.data)[: sum(map(len, prompts))] for shard in hidden.addressable_shards]

    return run
