"""Prefill of paged attention on Hopper, in Pallas Mosaic GPU: TMA, wgmma, specialised warpgroups.

A program is one warpgroup that fetches and two that compute, after FlashAttention-3 (Shah et al. 2024). The fetching
one copies queries and, page by page, keys and values into rings in shared memory. The computing ones take 64 rows each,
keep a running maximum and sum in units of log2, and start the products of one block of keys and of the values of the
block before together, so that the softmax of the one overlaps with the other. They start them in turns.

As many programs as the card runs at once walk over a list of tiles: some tokens of one sequence by some query heads of
one kv head. Late tokens see most keys, so the list runs backwards through each sequence.

Sequences with one query are left to the Triton decode kernel.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import llvm

from pallas_kernels.paged_attention.config import MosaicPrefillConfig
from pallas_kernels.paged_attention.work import assign
from pallas_kernels.platform import NUM_SMS

LOG2_E = math.log2(math.e)
WG_ROWS = 64  # rows of one computing warpgroup; wgmma's M
COLUMNS = 64  # of a 16-bit type, make the 128 bytes that shared memory is swizzled over
# By head_dim, registers of a thread that computes and of one that fetches. A program is launched with 168 for each of
# its 384 threads, and would wait forever if it asked for more than that in all.
REGISTERS = {64: (216, 72), 128: (232, 40)}
assert all(2 * compute + fetch <= 3 * 168 for compute, fetch in REGISTERS.values())
# Stores a number if it is negative, which no sum of weights is.
STORE_IF_NEGATIVE = (
    "{ .reg .pred p; .reg .b32 a; setp.lt.f32 p, $0, 0f00000000; mov.b32 a, 0; @p st.volatile.shared.f32 [a], $0; }"
)


class _Sizes(NamedTuple):
    """Everything about one launch that is known when it is compiled."""

    scale_log2: float
    group: int
    num_heads: int  # query heads in all
    head_dim: int
    page_size: int
    num_programs: int
    tile_tokens: int
    config: MosaicPrefillConfig
    dtype: Any
    interpret: bool

    @property
    def wg_heads(self) -> int:
        """Query heads of one warpgroup's rows."""
        return max(1, self.config.heads // 2)

    @property
    def wg_tokens(self) -> int:
        return WG_ROWS // self.wg_heads

    @property
    def copy_rows(self) -> int:
        """Keys fetched by one copy: a page, or as much of it as a block takes."""
        return min(self.page_size, self.config.block_kv)

    @property
    def copies(self) -> int:
        return self.config.block_kv // self.copy_rows

    @property
    def chunks(self) -> int:
        return self.head_dim // COLUMNS


def tile_tokens(config: MosaicPrefillConfig) -> int:
    """Tokens of a tile: two warpgroups' rows over the query heads that share it."""
    return 2 * WG_ROWS // config.heads


class _Tile(NamedTuple):
    """One piece of work. Columns of the table that `_prefill` computes."""

    first_row: Any  # of q
    num_rows: Any  # tokens of the sequence in this tile; 0: nothing to do
    position: Any  # of the first token in its sequence
    seq_len: Any  # 0: padding, which is set to zero
    seq: Any
    num_tiles: Any  # of the whole batch
    heads: Any  # index among groups of config.heads query heads


def _read_tile(tiles: Any, step: Any, sizes: _Sizes) -> _Tile:
    """The step-th tile of this program. Every other round of tiles is dealt in reverse, which evens out their sizes."""
    program = lax.axis_index("program")
    place = jnp.where(lax.rem(step, 2) == 0, program, sizes.num_programs - 1 - program)
    item = step * sizes.num_programs + place
    head_groups = sizes.num_heads // sizes.config.heads
    index = jnp.minimum(lax.div(item, head_groups), tiles.shape[0] - 1)
    tile = _Tile(*(tiles[index, i] for i in range(6)), heads=lax.rem(item, head_groups))
    # A program without a tile in the last round gets one of no rows.
    exists = item < tile.num_tiles * head_groups
    return tile._replace(num_rows=jnp.where(exists, tile.num_rows, 0), seq_len=jnp.where(exists, tile.seq_len, 0))


def _num_steps(tiles: Any, sizes: _Sizes) -> Any:
    items = tiles[0, 5] * (sizes.num_heads // sizes.config.heads)
    return lax.div(items + sizes.num_programs - 1, sizes.num_programs)


def _num_blocks(tile: _Tile, sizes: _Sizes) -> Any:
    """Blocks of keys that any row of a tile sees; 0 for padding, whose positions mean nothing."""
    end = jnp.clip(tile.position + sizes.tile_tokens, 0, tile.seq_len)
    return lax.div(end + sizes.config.block_kv - 1, sizes.config.block_kv)


def _query_heads(tile: _Tile, wg: Any, sizes: _Sizes) -> Any:
    """The first query head of a warpgroup's rows."""
    return tile.heads * sizes.config.heads + (wg * sizes.wg_heads if sizes.config.heads > 1 else 0)


def _first_token(wg: Any, sizes: _Sizes) -> Any:
    """The first token of a warpgroup's rows, counted from the tile's."""
    return 0 if sizes.config.heads > 1 else wg * WG_ROWS


def _fetch(tiles: Any, page_table: Any, q: Any, kv_pages: Any, smem: Any, barriers: Any, sizes: _Sizes) -> None:
    """The fetching warpgroup."""
    stages = sizes.config.num_stages
    heads_per_kv_head = sizes.group // sizes.config.heads

    def fetch_queries(tile: _Tile) -> None:
        for wg in range(2):
            plgpu.barrier_wait(barriers.q_empty.at[wg])
            first = tile.first_row + _first_token(wg, sizes)
            for head in range(sizes.wg_heads):
                for chunk in range(sizes.chunks):
                    plgpu.copy_gmem_to_smem(
                        q.at[
                            pl.ds(first, sizes.wg_tokens),
                            _query_heads(tile, wg, sizes) + head,
                            pl.ds(chunk * COLUMNS, COLUMNS),
                        ],
                        smem.q_in.at[wg, chunk, pl.ds(head * sizes.wg_tokens, sizes.wg_tokens)],
                        barriers.q_full.at[wg],
                    )

    def pages_of(tile: _Tile, block: Any) -> tuple[Any, ...]:
        """Pages of a block of keys. Past the sequence's end its last page stands in for what must not be followed."""
        last = jnp.maximum(lax.div(tile.seq_len - 1, sizes.page_size), 0)
        first = lax.div(block * sizes.config.block_kv, sizes.page_size)
        return tuple(page_table[tile.seq, jnp.minimum(first + i, last)] for i in range(sizes.copies))

    def fetch_block(pages: tuple[Any, ...], kv: int, head: Any, start: Any, ring: Any, full: Any) -> None:
        for i, page in enumerate(pages):
            rows = pl.ds(start, sizes.copy_rows)
            plgpu.copy_gmem_to_smem(
                kv_pages.at[page, kv, rows, head], ring.at[pl.ds(i * sizes.copy_rows, sizes.copy_rows)], full
            )

    def fetch_tile(step: Any, fetched: Any) -> Any:
        tile = _read_tile(tiles, step, sizes)
        fetch_queries(tile)
        num_blocks = _num_blocks(tile, sizes)
        head = lax.div(tile.heads, heads_per_kv_head)

        def fetch_next(block: Any, pages: tuple[Any, ...]) -> tuple[Any, ...]:
            slot = lax.rem(fetched + block, stages)
            # Where a page holds several blocks: this block's place in it.
            start = lax.rem(block * sizes.config.block_kv, sizes.page_size) if sizes.copies == 1 else 0
            # Looked up ahead: the wait for a free slot hides it.
            next_pages = pages_of(tile, block + 1)
            plgpu.barrier_wait(barriers.k_empty.at[slot])
            fetch_block(pages, 0, head, start, smem.k.at[slot], barriers.k_full.at[slot])
            plgpu.barrier_wait(barriers.v_empty.at[slot])
            fetch_block(pages, 1, head, start, smem.v.at[slot], barriers.v_full.at[slot])
            return next_pages

        lax.fori_loop(0, num_blocks, fetch_next, pages_of(tile, 0))
        return fetched + num_blocks

    lax.fori_loop(0, _num_steps(tiles, sizes), fetch_tile, jnp.int32(0))
    # The rings are empty when all that was fetched is used: as many waits as arrivals.
    for slot in range(stages):
        plgpu.barrier_wait(barriers.k_empty.at[slot])
        plgpu.barrier_wait(barriers.v_empty.at[slot])
    for wg in range(2):
        plgpu.barrier_wait(barriers.q_empty.at[wg])


def _computed_here(total: jax.Array) -> None:
    """Keep the assembler from moving what leads to these sums behind a wait for products.

    Nothing but their overlap is gained by doing arithmetic before the wait, and of that the assembler does not know. It
    does not move a store, though, not even one that never happens.
    """

    @plgpu.inline_mgpu(arg_types=(plgpu.Layout.WGMMA.reduce(1),))
    def store_if_negative(_: Any, sums: Any) -> None:
        for register in sums.registers.flat:
            llvm.inline_asm(ir.Type.parse("!llvm.void"), [register], STORE_IF_NEGATIVE, "f", has_side_effects=True)

    store_if_negative(total)


def _compute(tiles: Any, out: Any, smem: Any, barriers: Any, wg: Any, sizes: _Sizes) -> None:
    """A computing warpgroup."""
    block_kv, stages = sizes.config.block_kv, sizes.config.num_stages
    row_layout = plgpu.Layout.WGMMA.reduce(1)
    q_smem, o_smem = smem.q.at[wg], smem.out.at[wg]

    def iota(shape: tuple[int, int], axis: int) -> jax.Array:
        return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA)

    def broadcast(row: jax.Array, columns: int) -> jax.Array:
        return lax.broadcast_in_dim(row, (WG_ROWS, columns), [0])

    def take_turn() -> None:
        plgpu.barrier_wait(barriers.turn.at[wg])

    def end_turn() -> None:
        plgpu.barrier_arrive(barriers.turn.at[1 - wg])

    def scores(acc: Any, slot: Any) -> None:
        plgpu.wgmma(acc, q_smem, smem.k.at[slot].T)

    def values(acc: Any, weights: jax.Array, slot: Any) -> None:
        if sizes.interpret:  # It has no operands in registers.
            smem.weights[wg] = weights
            plgpu.commit_smem()
            plgpu.wgmma(acc, smem.weights.at[wg], smem.v.at[slot])
        else:
            plgpu.wgmma(acc, weights, smem.v.at[slot])

    def scores_alone(slot: Any) -> jax.Array:
        def multiply(acc: Any) -> jax.Array:
            take_turn()
            scores(acc, slot)
            end_turn()
            return acc[...]

        return pl.run_scoped(multiply, plgpu.ACC((WG_ROWS, block_kv), jnp.float32))

    def values_alone(acc: jax.Array, weights: jax.Array, slot: Any) -> jax.Array:
        if not sizes.interpret:
            return pl.run_state(lambda acc: values(acc, weights, slot))(plgpu.ACC.init(acc))

        def multiply(product: Any) -> jax.Array:
            values(product, weights, slot)
            return product[...]

        return acc + pl.run_scoped(multiply, plgpu.ACC(acc.shape, jnp.float32))

    def silence(slot: Any, num_keys: Any) -> None:
        """Zero the values from num_keys on: they may be NaN, which a weight of 0 would not silence."""
        for start in range(0, block_kv, WG_ROWS):
            rows = smem.v.at[slot, pl.ds(start, WG_ROWS)]
            loaded = plgpu.load(rows, layout=plgpu.Layout.WGMMA)
            seen = iota((WG_ROWS, sizes.head_dim), 0) + start < num_keys
            rows[...] = jnp.where(seen, loaded, jnp.zeros_like(loaded))
        plgpu.commit_smem()

    def attend(tile: _Tile, done: Any, num_blocks: Any) -> jax.Array:
        position = tile.position + _first_token(wg, sizes)

        def weigh(s: jax.Array, top: jax.Array, total: jax.Array, block: Any, masked: bool) -> tuple[jax.Array, ...]:
            """(weights of the keys of a block, what is to become of earlier ones, new maximum, new sum)."""
            if masked:
                token = lax.rem(iota(s.shape, 0), sizes.wg_tokens) + position
                s = jnp.where(iota(s.shape, 1) + block * block_kv <= token, s, -jnp.inf)
            # Every row sees the first key, so the maximum is finite from the first block on.
            new_top = jnp.maximum(top, s.max(axis=1) * sizes.scale_log2)
            decay = jnp.exp2(top - new_top)
            weights = jnp.exp2(s * sizes.scale_log2 - broadcast(new_top, block_kv))
            return weights, decay, new_top, total * decay + weights.sum(axis=1)

        def visit(block: Any, carry: tuple[jax.Array, ...], *, masked: bool) -> tuple[jax.Array, ...]:
            """Multiply the weights of the last block by its values while the scores of this one are weighed."""
            acc, weights, top, total = carry
            slot, last_slot = lax.rem(done + block, stages), lax.rem(done + block - 1, stages)
            plgpu.barrier_wait(barriers.k_full.at[slot])
            plgpu.barrier_wait(barriers.v_full.at[last_slot])
            if sizes.interpret:
                s = scores_alone(slot)
                acc = values_alone(acc, weights, last_slot)
                plgpu.barrier_arrive(barriers.k_empty.at[slot])
                new_weights, decay, top, total = weigh(s, top, total, block, masked)
            else:
                scratch = plgpu.layout_cast(jnp.zeros((WG_ROWS, block_kv), jnp.float32), plgpu.Layout.WGMMA)

                def both(refs: tuple[Any, ...]) -> None:
                    acc_ref, *rest = refs

                    def multiply(s_ref: Any) -> jax.Array:
                        take_turn()
                        scores(s_ref, slot)
                        values(acc_ref, weights, last_slot)
                        end_turn()
                        return plgpu.wgmma_accumulator_load(s_ref, wait_n=1)

                    s = pl.run_scoped(multiply, plgpu.ACC((WG_ROWS, block_kv), jnp.float32))
                    plgpu.barrier_arrive(barriers.k_empty.at[slot])
                    weighed = weigh(s, top, total, block, masked)
                    _computed_here(weighed[-1])
                    for ref, value in zip(rest, weighed, strict=True):
                        ref[...] = value

                state = (plgpu.ACC.init(acc), scratch, top, top, total)
                acc, new_weights, decay, top, total = pl.run_state(both)(state)
            plgpu.barrier_arrive(barriers.v_empty.at[last_slot])
            # Rounded only now: the registers of the old weights were in use until the products were done.
            acc, new_weights = lax.optimization_barrier((acc, new_weights))
            return acc * broadcast(decay, sizes.head_dim), new_weights.astype(sizes.dtype), top, total

        slot = lax.rem(done, stages)
        top = plgpu.layout_cast(jnp.full((WG_ROWS,), -jnp.inf, jnp.float32), row_layout)
        total = plgpu.layout_cast(jnp.zeros((WG_ROWS,), jnp.float32), row_layout)
        acc = plgpu.layout_cast(jnp.zeros((WG_ROWS, sizes.head_dim), jnp.float32), plgpu.Layout.WGMMA)
        plgpu.barrier_wait(barriers.k_full.at[slot])
        s = scores_alone(slot)
        plgpu.barrier_arrive(barriers.k_empty.at[slot])
        weights, _, top, total = weigh(s, top, total, 0, masked=True)
        weights = weights.astype(sizes.dtype)

        # Blocks of which each row sees every key need no mask.
        num_full = jnp.clip(lax.div(position + 1, block_kv), 1, num_blocks)
        carry = lax.fori_loop(1, num_full, partial(visit, masked=False), (acc, weights, top, total))
        acc, weights, _, total = lax.fori_loop(num_full, num_blocks, partial(visit, masked=True), carry)

        slot = lax.rem(done + num_blocks - 1, stages)
        plgpu.barrier_wait(barriers.v_full.at[slot])
        num_keys = tile.seq_len - (num_blocks - 1) * block_kv
        pl.when(num_keys < block_kv)(partial(silence, slot, num_keys))
        acc = values_alone(acc, weights, slot)
        plgpu.barrier_arrive(barriers.v_empty.at[slot])
        return acc * broadcast(1.0 / total, sizes.head_dim)

    def store(rows: jax.Array, tile: _Tile) -> None:
        rows = rows.astype(sizes.dtype)
        for c in range(sizes.chunks):
            o_smem[c] = rows[:, c * COLUMNS : (c + 1) * COLUMNS]
        plgpu.commit_smem()
        _copy_out(out, o_smem, tile, wg, sizes)

    def compute_tile(step: Any, done: Any) -> Any:
        tile = _read_tile(tiles, step, sizes)
        num_blocks = _num_blocks(tile, sizes)
        plgpu.barrier_wait(barriers.q_full.at[wg])
        queries = [plgpu.load(smem.q_in.at[wg, c], layout=plgpu.Layout.WGMMA) for c in range(sizes.chunks)]
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the last tile's output, which lies where q goes
        for c, part in enumerate(queries):
            q_smem[:, c * COLUMNS : (c + 1) * COLUMNS] = part
        plgpu.commit_smem()
        plgpu.barrier_arrive(barriers.q_empty.at[wg])

        @pl.when(num_blocks > 0)
        def _attend() -> None:
            store(attend(tile, done, num_blocks), tile)

        @pl.when(num_blocks == 0)
        def _zero() -> None:
            zeros = jnp.zeros((WG_ROWS, sizes.head_dim), jnp.float32)
            store(plgpu.layout_cast(zeros, plgpu.Layout.WGMMA), tile)

        return done + num_blocks

    for empty in (barriers.k_empty, barriers.v_empty):
        for slot in range(stages):
            plgpu.barrier_arrive(empty.at[slot])
    plgpu.barrier_arrive(barriers.q_empty.at[wg])
    pl.when(wg == 1)(end_turn)
    lax.fori_loop(0, _num_steps(tiles, sizes), compute_tile, jnp.int32(0))
    pl.when(wg == 0)(take_turn)
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _copy_out(out: Any, o_smem: Any, tile: _Tile, wg: Any, sizes: _Sizes) -> None:
    """Copy a warpgroup's rows out, and no row of the next sequence: a part of a tile goes in powers of two."""
    first = _first_token(wg, sizes)
    num_tokens = jnp.clip(tile.num_rows - first, 0, sizes.wg_tokens)

    def copy(start: Any, size: int) -> None:
        for head in range(sizes.wg_heads):
            for chunk in range(sizes.chunks):
                plgpu.copy_smem_to_gmem(
                    o_smem.at[chunk, pl.ds(head * sizes.wg_tokens + start, size)],
                    out.at[
                        pl.ds(tile.first_row + first + start, size),
                        _query_heads(tile, wg, sizes) + head,
                        pl.ds(chunk * COLUMNS, COLUMNS),
                    ],
                )

    size = sizes.wg_tokens
    while size:
        # The part of this size comes after all larger ones.
        start = num_tokens // (2 * size) * (2 * size)
        pl.when((num_tokens // size) % 2 == 1)(partial(copy, start, size))
        size //= 2


class _Smem(NamedTuple):
    q_in: Any
    q: Any
    out: Any
    k: Any
    v: Any
    weights: Any  # None but in the interpreter


class _Barriers(NamedTuple):
    q_full: Any
    q_empty: Any
    k_full: Any
    k_empty: Any
    v_full: Any
    v_empty: Any
    turn: Any


def _kernel(tiles: Any, page_table: Any, q: Any, kv_pages: Any, out: Any, *scratch: Any, sizes: _Sizes) -> None:
    q_in, (q_smem, o_smem), k, v, weights, barriers = scratch
    smem = _Smem(q_in, q_smem, o_smem, k, v, weights)
    wg = lax.axis_index("wg")
    compute_registers, fetch_registers = REGISTERS[sizes.head_dim]

    @pl.when(wg < 2)
    def _() -> None:
        plgpu.set_max_registers(compute_registers, action="increase")
        _compute(tiles, out, smem, _Barriers(*barriers), wg, sizes)

    @pl.when(wg == 2)
    def _() -> None:
        plgpu.set_max_registers(fetch_registers, action="decrease")
        _fetch(tiles, page_table, q, kv_pages, smem, _Barriers(*barriers), sizes)


def _scratch(sizes: _Sizes) -> tuple[Any, ...]:
    config, dtype = sizes.config, sizes.dtype
    swizzle = plgpu.SwizzleTransform(128)
    tiled = (plgpu.TilingTransform((8, COLUMNS)), swizzle)
    # Rows that lie at any offset in memory can be copied to and from rows that are swizzled but not tiled.
    rows = plgpu.SMEM((2, sizes.chunks, WG_ROWS, COLUMNS), dtype, transforms=(swizzle,))
    ring = plgpu.SMEM((config.num_stages, config.block_kv, sizes.head_dim), dtype, transforms=tiled)
    queries = plgpu.SMEM((2, WG_ROWS, sizes.head_dim), dtype, transforms=tiled)
    barrier = partial(plgpu.Barrier, num_barriers=config.num_stages)
    barriers = _Barriers(
        q_full=plgpu.Barrier(num_barriers=2, num_arrivals=sizes.wg_heads * sizes.chunks),
        q_empty=plgpu.Barrier(num_barriers=2),
        k_full=barrier(num_arrivals=sizes.copies),
        k_empty=barrier(num_arrivals=2),
        v_full=barrier(num_arrivals=sizes.copies),
        v_empty=barrier(num_arrivals=2),
        turn=plgpu.Barrier(num_barriers=2),
    )
    weights = plgpu.SMEM((2, WG_ROWS, config.block_kv), dtype) if sizes.interpret else None
    return rows, plgpu.RefUnion(queries, rows), ring, ring, weights, tuple(barriers)


def tile_table(
    query_start_loc: jax.Array, seq_lens: jax.Array, num_tokens: int, config: MosaicPrefillConfig
) -> jax.Array:
    """[tiles, 6] int32: the first six fields of a `_Tile` for each. Tiles past the last have no rows."""
    tokens, num_seqs = tile_tokens(config), seq_lens.shape[0]
    queries = jnp.diff(query_start_loc)
    # What follows the last sequence is padding, one more sequence without keys.
    rows = jnp.concatenate([jnp.where(queries > 1, queries, 0), num_tokens - query_start_loc[-1:]])
    counts = (rows + tokens - 1) // tokens
    # Each sequence, and the padding, may end in a part of a tile.
    num_tiles = -(-num_tokens // tokens) + min(num_seqs + 1, num_tokens)
    owner, first_tile = assign(counts, num_tiles)
    seq = jnp.minimum(owner, num_seqs)
    from_end = jnp.arange(num_tiles, dtype=jnp.int32) - first_tile[seq]
    offset = (counts[seq] - 1 - from_end) * tokens
    all_seq_lens = jnp.append(seq_lens, 0)
    columns = _Tile(
        first_row=query_start_loc[seq] + offset,
        num_rows=jnp.where(owner <= num_seqs, jnp.minimum(rows[seq] - offset, tokens), 0),
        position=jnp.where(seq < num_seqs, all_seq_lens[seq] - rows[seq] + offset, 0),
        seq_len=all_seq_lens[seq],
        seq=jnp.minimum(seq, num_seqs - 1),
        num_tiles=jnp.broadcast_to(jnp.sum(counts), seq.shape),
        heads=None,
    )
    return jnp.stack(columns[:6], axis=1).astype(jnp.int32)


def prefill_mosaic_gpu(
    q: jax.Array,
    kv_pages: jax.Array,
    page_table: jax.Array,
    query_start_loc: jax.Array,
    seq_lens: jax.Array,
    *,
    scale: float,
    config: MosaicPrefillConfig,
    interpret: Any = None,
) -> jax.Array:
    """`paged_attention` for the sequences with more than one query; padding is zero, other rows are not written.

    Args:
        config: tile sizes.
        interpret: a `plgpu.InterpretGPUParams`, to run on the CPU.
    """
    num_tokens, num_kv_heads, group, head_dim = q.shape
    tiles = tile_table(query_start_loc, seq_lens, num_tokens, config)
    num_heads = num_kv_heads * group
    num_items = tiles.shape[0] * (num_heads // config.heads)
    sizes = _Sizes(
        scale_log2=scale * LOG2_E,
        group=group,
        num_heads=num_heads,
        head_dim=head_dim,
        page_size=kv_pages.shape[2],
        num_programs=min(NUM_SMS, num_items) if config.persistent else num_items,
        tile_tokens=tile_tokens(config),
        config=config,
        dtype=q.dtype,
        interpret=interpret is not None,
    )
    call = plgpu.kernel(
        partial(_kernel, sizes=sizes),
        out_type=jax.ShapeDtypeStruct((num_tokens, num_heads, head_dim), q.dtype),
        scratch_types=_scratch(sizes),
        grid=(sizes.num_programs,),
        grid_names=("program",),
        num_threads=3,
        thread_name="wg",
        kernel_name="paged_attention_prefill",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )
    out: jax.Array = call(tiles, page_table, q.reshape(num_tokens, num_heads, head_dim), kv_pages)
    return out.reshape(q.shape)
