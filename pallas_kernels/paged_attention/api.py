"""The public operation: checks its arguments and picks an implementation."""

from typing import Literal, TypedDict

import jax
import jax.numpy as jnp

from pallas_kernels.paged_attention.config import MosaicPrefillConfig, mosaic_prefill_config
from pallas_kernels.paged_attention.reference import paged_attention_reference
from pallas_kernels.platform import Implementation, is_hopper, pick_implementation

AttentionImplementation = Implementation | Literal["mosaic_gpu"]

# Whether None may pick the Mosaic GPU kernel for prompts, where it can run.
MOSAIC_GPU_BY_DEFAULT = True


class ScoreOptions(TypedDict):
    """What becomes of a score; see `paged_attention`."""

    scale: float
    window: int | None
    soft_cap: float | None
    alibi_slopes: jax.Array | None


def paged_attention(
    q: jax.Array,
    kv_pages: jax.Array,
    page_table: jax.Array,
    query_start_loc: jax.Array,
    seq_lens: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    alibi_slopes: jax.Array | None = None,
    decode_only: bool = False,
    implementation: AttentionImplementation | None = None,
) -> jax.Array:
    """Causal attention of a ragged batch of queries over paged keys and values.

    Prompts, chunks of prompts and single decoded tokens may stand in one batch. The queries of sequence s are the rows
    query_start_loc[s] to query_start_loc[s + 1] - 1 of q and are the last of its seq_lens[s] tokens, so row i of them
    stands at position seq_lens[s] - num_queries[s] + i and sees the keys up to and including that position. Their own
    keys and values must already be in the pages.

    Args:
        q: [T, K, G, H] queries, grouped by the kv head they share. Rows from query_start_loc[S] on are padding.
        kv_pages: [P, 2, page_size, K, H] the pool, keys at index 0 and values at 1 of the second axis.
        page_table: [S, max_pages] int32, the pages of each sequence in order. Entries past a sequence's length may be
            anything within the pool.
        query_start_loc: [S + 1] int32, ascending from 0. Padded sequences have no queries.
        seq_lens: [S] int32, tokens of each sequence, this step's included; 0 for padded ones.
        scale: factor on the scores, above 0; usually H ** -0.5.
        window: keys that each query sees, its own included: those at position - window + 1 to position (sliding window,
            Beltagy et al. 2020). None is all.
        soft_cap: c, above 0: the scaled score s becomes c * tanh(s / c) (Gemma 2, 2024). None leaves it.
        alibi_slopes: [K, G] float32: slope * (key position - query position) is added to the score, after scale and
            cap (ALiBi, Press et al. 2022). None adds nothing.
        decode_only: promises that no sequence has more than one query, which spares the Triton kernels a launch.
        implementation: `reference` is plain jax.numpy and runs everywhere; `triton` needs jax_triton and a CUDA GPU
            (q and kv_pages of one dtype: bfloat16, float16 or float32); `mosaic_gpu` computes prompts by a kernel for
            Hopper GPUs and single queries by Triton (bfloat16 or float16, head_dim 64 or 128, no window, cap or
            slopes). None picks the best that can run.

    Returns:
        [T, K, G, H] in q's dtype. Padding rows are finite and of no meaning.

    Raises:
        ValueError: shapes contradict each other, scale, window or soft_cap is not above 0, or the implementation is
            unknown or does not take these dtypes.
    """
    _check(q, kv_pages, page_table, query_start_loc, seq_lens)
    options: ScoreOptions = {"scale": scale, "window": window, "soft_cap": soft_cap, "alibi_slopes": alibi_slopes}
    check_scores(q.shape[1:3], options)
    arguments = (q, kv_pages, page_table, query_start_loc, seq_lens)
    if pick_attention(implementation, q.dtype, kv_pages.dtype) == "reference":
        return paged_attention_reference(*arguments, **options)
    # Loaded only here: jax_triton is not needed where the reference runs.
    from pallas_kernels.paged_attention.triton import paged_attention_triton

    prefill = pick_prefill(implementation, q.shape[2], kv_pages, options)
    return paged_attention_triton(*arguments, **options, decode_only=decode_only, prefill=prefill)


def pick_attention(asked: AttentionImplementation | None, dtype: jnp.dtype, pool_dtype: jnp.dtype) -> Implementation:
    """What computes attention for queries and a pool of these dtypes. `mosaic_gpu` is Triton but for its prompts.

    Raises:
        ValueError: the one asked for is unknown, or does not take these dtypes.
    """
    if asked == "mosaic_gpu":
        asked = "triton"
    takes_triton = dtype == pool_dtype and dtype in (jnp.bfloat16, jnp.float16, jnp.float32)
    picked = pick_implementation(asked, takes_triton=takes_triton)
    if picked == "triton" and not takes_triton:
        raise ValueError(
            f"triton needs q and kv_pages of one dtype, bfloat16, float16 or float32; got {dtype} and {pool_dtype}"
        )
    return picked


def pick_prefill(
    asked: AttentionImplementation | None, group: int, kv_pages: jax.Array, options: ScoreOptions
) -> MosaicPrefillConfig | None:
    """Tiles of the Mosaic GPU kernel if it is to compute prompts, None if Triton is.

    Raises:
        ValueError: `mosaic_gpu` is asked for and cannot compute these.
    """
    if asked not in (None, "mosaic_gpu") or (asked is None and not (MOSAIC_GPU_BY_DEFAULT and is_hopper())):
        return None
    page_size, _, head_dim = kv_pages.shape[2:]
    config = mosaic_prefill_config(group, head_dim, page_size, kv_pages.dtype)
    if any(options[name] is not None for name in ("window", "soft_cap", "alibi_slopes")):
        config = None
    if asked == "mosaic_gpu" and config is None:
        raise ValueError(
            "mosaic_gpu takes bfloat16 or float16, head_dim 64 or 128, pages whose size is a power of two from 16, "
            f"and no window, soft_cap or alibi_slopes; got {kv_pages.dtype}, head_dim {head_dim}, page_size {page_size}"
        )
    return config


def _check(
    q: jax.Array, kv_pages: jax.Array, page_table: jax.Array, query_start_loc: jax.Array, seq_lens: jax.Array
) -> None:
    if q.ndim != 4 or kv_pages.ndim != 5 or kv_pages.shape[1] != 2:
        raise ValueError(
            f"q must be [T, K, G, H] and kv_pages [P, 2, page_size, K, H]; got {q.shape}, {kv_pages.shape}"
        )
    if (q.shape[1], q.shape[3]) != kv_pages.shape[3:]:
        raise ValueError(f"q {q.shape} and kv_pages {kv_pages.shape} differ in kv heads or head_dim")
    num_seqs = seq_lens.shape[0]
    if page_table.shape[0] != num_seqs or query_start_loc.shape != (num_seqs + 1,):
        raise ValueError(
            f"for {num_seqs} seq_lens, page_table must have as many rows and query_start_loc one entry more; "
            f"got {page_table.shape} and {query_start_loc.shape}"
        )


def check_scores(heads: tuple[int, ...], options: ScoreOptions) -> None:
    """Check what becomes of the scores of [K, G] heads.

    Raises:
        ValueError: scale, window or soft_cap is not above 0, or the slopes are not [K, G].
    """
    for name in ("scale", "window", "soft_cap"):
        value: float | None = options[name]
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    slopes = options["alibi_slopes"]
    if slopes is not None and slopes.shape != heads:
        raise ValueError(f"alibi_slopes must be [K, G], {heads} for these queries; got {slopes.shape}")
