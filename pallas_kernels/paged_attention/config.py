"""Tile sizes of the kernels for each shape. Heuristics measured on an H200, or reasoned where it says so."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.platform import NUM_SMS


@dataclass(frozen=True)
class DecodeConfig:
    """How single queries are computed.

    Attributes:
        block_n: keys a loop iteration.
        num_warps: warps a program.
        num_stages: depth of the software pipeline.
        programs_per_sm: programs that an SM holds at once; all keys of a batch are cut into about so many chunks. More
            balances better, fewer leaves less to merge.
        min_chunk: keys that are not cut further: merging them would cost more. Of `cached_attention` alone.
    """

    block_n: int
    num_warps: int
    num_stages: int
    programs_per_sm: int = 4
    min_chunk: int = 64

    def num_chunks(self, num_kv_heads: int) -> int:
        """Chunks that the keys of a whole batch are cut into, for each kv head."""
        return max(1, NUM_SMS * self.programs_per_sm // num_kv_heads)


@dataclass(frozen=True)
class PrefillConfig:
    """How prompts and chunks of prompts are computed.

    Attributes:
        block_m: rows (tokens times query heads of a group) a program.
        block_n: keys a loop iteration.
        num_warps: warps a program.
        num_stages: depth of the software pipeline.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class MosaicPrefillConfig:
    """How the Mosaic GPU kernel computes prompts.

    Attributes:
        heads: query heads of one kv head that share a tile of 128 rows; a power of two that divides the group.
        block_kv: keys a loop iteration.
        num_stages: blocks of keys, and as many of values, that shared memory holds.
        persistent: as many programs as the card runs at once walk over all tiles; one for each tile otherwise.
    """

    heads: int
    block_kv: int
    num_stages: int
    persistent: bool = True


def padded_head_dim(head_dim: int) -> int:
    """The power of two that a head is padded to inside the kernels; at least 16, as the tensor cores need."""
    return max(16, 1 << (head_dim - 1).bit_length())


def decode_config(head_dim: int, group: int, dtype: DTypeLike, num_seqs: int) -> DecodeConfig:
    """Tiles for decoding; keys and values of all stages must fit in shared memory, a few programs an SM.

    Measured for heads of 128: many programs of one warp read fastest, but for a few sequences there is too little to
    read, and fewer programs of more warps have less to merge.
    """
    if jnp.dtype(dtype).itemsize == 4:
        return DecodeConfig(block_n=32 if padded_head_dim(head_dim) <= 128 else 16, num_warps=8, num_stages=2)
    if padded_head_dim(head_dim) > 128 or group > 64:
        return DecodeConfig(block_n=32, num_warps=4, num_stages=3)
    if num_seqs <= 4:
        return DecodeConfig(block_n=64, num_warps=4, num_stages=3)
    return DecodeConfig(block_n=32, num_warps=1, num_stages=3, programs_per_sm=8)


def prefill_config(num_tokens: int, num_kv_heads: int, group: int, head_dim: int, dtype: DTypeLike) -> PrefillConfig:
    """Tiles for prompts; 64-row tiles where 128-row ones would not fill the card."""
    padded = padded_head_dim(head_dim)
    if jnp.dtype(dtype).itemsize == 4:
        return PrefillConfig(block_m=16, block_n=32 if padded <= 128 else 16, num_warps=8, num_stages=2)
    if padded > 128:
        return PrefillConfig(block_m=128, block_n=32, num_warps=8, num_stages=3)
    if num_tokens * group * num_kv_heads < 128 * NUM_SMS:
        return PrefillConfig(block_m=64, block_n=64, num_warps=4, num_stages=3)
    return PrefillConfig(block_m=128, block_n=128 if padded <= 64 else 64, num_warps=8, num_stages=3)


def mosaic_prefill_config(group: int, head_dim: int, page_size: int, dtype: DTypeLike) -> MosaicPrefillConfig | None:
    """Tiles of the Mosaic GPU kernel, or None where it cannot run. Reasoned, not measured.

    Queries, output, keys and values of all stages fill the 227 KiB of shared memory that a program may have.
    """
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16) or head_dim not in (64, 128):
        return None
    block_kv, num_stages = {64: (128, 3), 128: (128, 2)}[head_dim]
    # A block is some whole pages, or a whole part of one. Each is a copy of its own, and small ones are too many.
    if page_size % 16 or (block_kv % page_size and page_size % block_kv):
        return None
    return MosaicPrefillConfig(heads=1 if group % 2 else 2, block_kv=block_kv, num_stages=num_stages)
