"""Where the tensors of a checkpoint go in a parameter.

Each of these is a traceable function of the parameter so far and a tensor. They compare by value, so that those of all
layers are compiled once. Outputs come first in parameters and, but for `transposed`, in tensors.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from jaxserve.models.head_layout import HeadLayout

Packing = Literal["stacked", "grouped"]


@dataclass(frozen=True)
class Queries:
    """[N * H, ...] into the first G of each group of [K, G + 2, H, ...]."""

    layout: HeadLayout

    def __call__(self, param: jax.Array, tensor: jax.Array) -> jax.Array:
        heads = tensor.reshape(self.layout.query_heads, *param.shape[2:])
        return param.at[:, : self.layout.group_size].set(self.layout.queries(heads))


@dataclass(frozen=True)
class KeysOrValues:
    """[K * H, ...] into one entry of each group of [K, G + 2, H, ...]: G for keys, G + 1 for values."""

    layout: HeadLayout
    index: int

    def __call__(self, param: jax.Array, tensor: jax.Array) -> jax.Array:
        heads = tensor.reshape(self.layout.kv_heads, *param.shape[2:])
        return param.at[:, self.index].set(self.layout.keys_or_values(heads))


@dataclass(frozen=True)
class PackedQKV:
    """Queries, keys and values in one tensor, as [K, G + 2, H, ...].

    Attributes:
        layout: the heads.
        packing: `stacked` has all queries, then all keys, then all values; `grouped` has, for each kv head, its
            queries, its key and its value.
        transposed: the tensor's outputs are its last axis.
    """

    layout: HeadLayout
    packing: Packing
    transposed: bool = False

    def __call__(self, param: jax.Array, tensor: jax.Array) -> jax.Array:
        tensor = tensor.T if self.transposed else tensor
        heads, kv_heads, rest = self.layout.query_heads, self.layout.kv_heads, param.shape[2:]
        if self.packing == "stacked":
            all_heads = tensor.reshape(heads + 2 * kv_heads, *rest)
            queries, keys, values = jnp.split(all_heads, [heads, heads + kv_heads])
        else:
            groups = tensor.reshape(kv_heads, -1, *rest)
            queries, keys, values = groups[:, :-2].reshape(heads, *rest), groups[:, -2], groups[:, -1]
        group_size = self.layout.group_size
        param = param.at[:, :group_size].set(self.layout.queries(queries))
        param = param.at[:, group_size].set(self.layout.keys_or_values(keys))
        return param.at[:, group_size + 1].set(self.layout.keys_or_values(values))


@dataclass(frozen=True)
class AttentionOut:
    """[D, N * H] as [D, K, G, H]."""

    layout: HeadLayout
    transposed: bool = False

    def __call__(self, param: jax.Array, tensor: jax.Array) -> jax.Array:
        head_dim = param.shape[-1]
        by_input = tensor if self.transposed else tensor.T
        heads = self.layout.queries(by_input.reshape(self.layout.query_heads, head_dim, -1))
        return param.at[...].set(jnp.moveaxis(heads, -1, 0))


@dataclass(frozen=True)
class QueryVector:
    """[N * H] as [K, G, H]."""

    layout: HeadLayout

    def __call__(self, param: jax.Array, tensor: jax.Array) -> jax.Array:
        return param.at[...].set(self.layout.queries(tensor.reshape(self.layout.query_heads, -1)))


@dataclass(frozen=True)
class KeyVector:
    """[K * H] as [K, H]."""

    layout: HeadLayout

    def __call__(self, param: jax.Array, tensor: jax.Array) -> jax.Array:
        return param.at[...].set(self.layout.keys_or_values(tensor.reshape(self.layout.kv_heads, -1)))


@dataclass(frozen=True)
class Row:
    """[...] as one row of [n, ...]."""

    index: int

    def __call__(self, param: jax.Array, tensor: jax.Array) -> jax.Array:
        return param.at[self.index].set(tensor)


def reshaped(param: jax.Array, tensor: jax.Array) -> jax.Array:
    """[2 * F, ...] as [2, F, ...]."""
    return param.at[...].set(tensor.reshape(param.shape))


def transposed(param: jax.Array, tensor: jax.Array) -> jax.Array:
    """[F, D] as [D, F], or the other way round."""
    return param.at[...].set(tensor.T)


def unit_rows(param: jax.Array, tensor: jax.Array) -> jax.Array:
    """[V, D], each row divided by its length."""
    rows = tensor.astype(jnp.float32)
    lengths = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return param.at[...].set((rows / jnp.maximum(lengths, 1e-12)).astype(param.dtype))


def indexed(param: jax.Array, tensor: jax.Array, index: jax.Array) -> jax.Array:
    """[...] of one expert, or norm, into [N, ...] of them all."""
    return param.at[index].set(tensor)


@dataclass(frozen=True)
class ExpertRow:
    """[F, D] of one expert into one row of [E, 2, F, D]."""

    row: int

    def __call__(self, param: jax.Array, tensor: jax.Array, index: jax.Array) -> jax.Array:
        return param.at[index, self.row].set(tensor)
