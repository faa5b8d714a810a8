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
# Entries, 128 bytes: XLA hands pieces to kernels where they lie, and these count on arrays that are aligned.
ALIGNMENT = 32


@dataclass(frozen=True)
class PackedLayout:
    """Shape of each field of a bucket's packed array, in order."""

    fields: tuple[tuple[str, tuple[int, ...]], ...]

    @cached_property
    def size(self) -> int:
        """Entries of the packed array: those of the fields, each aligned, and one to spare."""
        return self._starts[-1] + 1

    @cached_property
    def _starts(self) -> tuple[int, ...]:
        """Where each field begins, and where the last one's room ends."""
        rooms = (-(-math.prod(shape) // ALIGNMENT) * ALIGNMENT for _, shape in self.fields)
        return tuple(itertools.accumulate(rooms, initial=0))

    @cached_property
    def _places(self) -> tuple[tuple[str, slice, tuple[int, ...]], ...]:
        """Each field's name, where it lies in the array, and its shape."""
        return tuple(
            (name, slice(start, start + math.prod(shape)), shape)
            for (name, shape), start in zip(self.fields, self._starts, strict=False)
        )

    def views(self, packed: np.ndarray) -> dict[str, np.ndarray]:
        """Each field as a writable view into the host array [size] int32; float fields as float32."""
        views = {name: packed[place].reshape(shape) for name, place, shape in self._places}
        return {name: view.view(np.float32) if name in _FLOAT_FIELDS else view for name, view in views.items()}

    def unpack(self, packed: jax.Array) -> dict[str, jax.Array]:
        """Each field of the device array [size] int32; float fields as float32."""
        # All but the last entry is a value of its own, for which XLA copies the array once. The array itself would go
        # to every kernel that reads a piece of it, and each would be re-recorded when its address changes.
        packed = jax.lax.optimization_barrier(packed[: self.size - 1])
        pieces = {name: packed[place].reshape(shape) for name, place, shape in self._places}
        return {
            name: jax.lax.bitcast_convert_type(piece, jnp.float32) if name in _FLOAT_FIELDS else piece
            for name, piece in pieces.items()
        }


@cache
def packed_layout(bucket: Bucket) -> PackedLayout:
    """The fields of a bucket's packed array.

    token_ids: [T] ids to compute; ~slot (negative) stands for the last token that slot sampled.
    query_start_loc: [S + 1], seq_lens: [S] with this step's tokens, 0 for padding.
    slots: [S] row of the device state; max_num_seqs, which is out of range, for padding.
    page_rows, page_columns, page_ids: [U] pages that join the page table; rows out of range for padding.
    Sampler FULL only, each [S]: temperature, top_p, min_p (float32), top_k, seed_high, seed_low, suppress (0 or 1),
    and suppressed_ids [S, MAX_STOP_TOKEN_IDS], padded out of the vocabulary.
    """
    t, s, u = bucket.num_tokens, bucket.num_seqs, bucket.num_page_updates
    fields: list[tuple[str, tuple[int, ...]]] = [
        ("token_ids", (t,)),
        ("query_start_loc", (s + 1,)),
        ("seq_lens", (s,)),
        ("slots", (s,)),
        ("page_rows", (u,)),
        ("page_columns", (u,)),
        ("page_ids", (u,)),
    ]
    if bucket.sampler is SamplerKind.FULL:
        fields += [
            (name, (s,)) for name in ("temperature", "top_p", "min_p", "top_k", "seed_high", "seed_low", "suppress")
        ]
        fields.append(("suppressed_ids", (s, MAX_STOP_TOKEN_IDS)))
    return PackedLayout(tuple(fields))
