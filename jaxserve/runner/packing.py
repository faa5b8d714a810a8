"""The one int32 array that carries a step to the device: where each field lies, written by host and read by step.

One array a step, because each argument costs host time and a changed address re-records the step's CUDA graph.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cache, cached_property

import jax
import jax.numpy as jnp
import numpy as np

from jaxserve.request import MAX_STOP_TOKEN_IDS
from jaxserve.runner.buckets import Bucket, SamplerKind

_FLOAT_FIELDS = frozenset({"temperature", "top_p", "min_p"})
# What the full sampler is to know of each sequence.
SAMPLER_FIELDS = ("temperature", "top_p", "min_p", "top_k", "seed_high", "seed_low", "suppress", "suppressed_ids")


@dataclass(frozen=True)
class PackedLayout:
    """Shape of each field of a bucket's packed array, in order."""

    fields: tuple[tuple[str, tuple[int, ...]], ...]

    @cached_property
    def size(self) -> int:
        """Entries of the packed array."""
        return sum(math.prod(shape) for _, shape in self.fields)

    @cached_property
    def _places(self) -> tuple[tuple[str, slice, tuple[int, ...]], ...]:
        """Each field's name, where it lies in the array, and its shape."""
        ends = itertools.accumulate(math.prod(shape) for _, shape in self.fields)
        return tuple(
            (name, slice(end - math.prod(shape), end), shape)
            for (name, shape), end in zip(self.fields, ends, strict=True)
        )

    def views(self, packed: np.ndarray) -> dict[str, np.ndarray]:
        """Each field as a writable view into the host array [size] int32; float fields as float32."""
        views = {name: packed[place].reshape(shape) for name, place, shape in self._places}
        return {name: view.view(np.float32) if name in _FLOAT_FIELDS else view for name, view in views.items()}

    def unpack(self, packed: jax.Array) -> dict[str, jax.Array]:
        """Each field of the device array [size] int32; float fields as float32."""
        pieces = {name: packed[place].reshape(shape) for name, place, shape in self._places}
        fields = {
            name: jax.lax.bitcast_convert_type(piece, jnp.float32) if name in _FLOAT_FIELDS else piece
            for name, piece in pieces.items()
        }
        # The barrier makes the pieces values of their own: without it XLA hands the whole array to every kernel that
        # reads a piece, and each is re-recorded when the array's address changes.
        return jax.lax.optimization_barrier(fields)  # type: ignore[no-any-return]


@cache
def packed_layout(bucket: Bucket) -> PackedLayout:
    """The fields of a bucket's packed array.

    token_ids: [T] ids to compute; ~slot (negative) stands for the last token that slot sampled.
    query_start_loc: [S + 1], in buckets that do not only decode. seq_lens: [S] with this step's tokens, 0 for padding.
    slots: [S] row of the device state; max_num_seqs, which is out of range, for padding.
    page_updates: [U, 3] rows and columns of the page table and the pages that join it there; rows out of range for
    padding.
    Sampler FULL only, each [S]: temperature, top_p, min_p (float32), top_k, seed_high, seed_low, suppress (0 or 1),
    and suppressed_ids [S, MAX_STOP_TOKEN_IDS], padded out of the vocabulary.
    """
    t, s, u = bucket.num_tokens, bucket.num_seqs, bucket.num_page_updates
    fields: list[tuple[str, tuple[int, ...]]] = [
        ("token_ids", (t,)),
        *(() if bucket.decode_only else [("query_start_loc", (s + 1,))]),
        ("seq_lens", (s,)),
        ("slots", (s,)),
        ("page_updates", (u, 3)),
    ]
    if bucket.sampler is SamplerKind.FULL:
        fields += [(name, (s, MAX_STOP_TOKEN_IDS) if name == "suppressed_ids" else (s,)) for name in SAMPLER_FIELDS]
    return PackedLayout(tuple(fields))
