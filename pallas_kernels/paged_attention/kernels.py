"""The Triton kernels of paged attention. Host code in `triton.py` says which program gets which work.

Both walk over keys in blocks of BLOCK_N, find each key's row through the page table, and keep a running maximum and
sum (Milakov & Gimelshein 2018; FlashAttention-2, Dao 2023). Scores are kept in units of log2, so that the hardware's
exp2 needs no multiplication of its own. Pointers into the pool are 64-bit: a pool may hold more than 2^31 elements.
"""

# mypy: ignore-errors
# The bodies are Triton's language, which only looks like Python.

import triton
import triton.language as tl


@triton.jit
def log2_scores(products, distance, slopes, scale_log2: tl.constexpr, SOFT_CAP: tl.constexpr, ALIBI: tl.constexpr):
    """Scores in units of log2 from the products of queries and keys: scaled, capped, and biased by the distance."""
    if SOFT_CAP > 0.0:
        # c * tanh(s / c), by exp2: 1 at plus infinity, -1 at minus infinity, without NaN.
        twice: tl.constexpr = 2.0 * scale_log2 / SOFT_CAP
        cap_log2: tl.constexpr = SOFT_CAP * 1.4426950408889634
        scores = cap_log2 - 2.0 * cap_log2 / (tl.math.exp2(products * twice) + 1.0)
    else:
        scores = products * scale_log2
    if ALIBI:
        scores += slopes * distance
    return scores


@triton.jit
def visit_keys(
    acc,
    total,
    top,
    q,
    k_head,
    v_head,
    table_row,
    positions,
    slopes,
    begin,
    end,
    scale_log2: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    ALIBI: tl.constexpr,
    K: tl.constexpr,
    H: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add the keys begin..end of one sequence to the softmax of a tile of queries.

    acc [M, BLOCK_H], total [M] and top [M] are the running output, sum and maximum; positions [M] is the last key each
    row sees and slopes [M] its ALiBi slope (unused without ALIBI). Without MASKED, every row sees every key and the
    range is whole blocks. With it, nothing past `end` is read, neither of the page table nor of the pool.
    """
    in_block = tl.arange(0, BLOCK_N)
    h = tl.arange(0, BLOCK_H)
    for start in range(begin, end, BLOCK_N):
        keys = start + in_block
        if MASKED:
            page = tl.load(table_row + keys // PAGE_SIZE, mask=keys < end, other=0)
        else:
            page = tl.load(table_row + keys // PAGE_SIZE)
        slot = page.to(tl.int64) * (2 * PAGE_SIZE * K * H) + (keys % PAGE_SIZE) * (K * H)
        offsets = slot[:, None] + h[None, :]
        if MASKED and H != BLOCK_H:
            inside = (keys < end)[:, None] & (h < H)[None, :]
            k = tl.load(k_head + offsets, mask=inside, other=0.0)
            v = tl.load(v_head + offsets, mask=inside, other=0.0)
        elif MASKED:
            inside = (keys < end)[:, None]
            k = tl.load(k_head + offsets, mask=inside, other=0.0)
            v = tl.load(v_head + offsets, mask=inside, other=0.0)
        elif H != BLOCK_H:
            inside = (h < H)[None, :]
            k = tl.load(k_head + offsets, mask=inside, other=0.0)
            v = tl.load(v_head + offsets, mask=inside, other=0.0)
        else:
            k = tl.load(k_head + offsets)
            v = tl.load(v_head + offsets)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if SOFT_CAP > 0.0 or ALIBI:
            distance = (keys[None, :] - positions[:, None]).to(tl.float32)
            scores = log2_scores(scores, distance, slopes[:, None], scale_log2, SOFT_CAP, ALIBI)
            factor: tl.constexpr = 1.0
        else:
            # One multiplication less for each score: the maximum is scaled, and the rest in a fused multiply-add.
            factor: tl.constexpr = scale_log2
        if MASKED:
            seen = (keys[None, :] <= positions[:, None]) & (keys < end)[None, :]
            if WINDOW:
                seen = seen & (keys[None, :] > positions[:, None] - WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * factor)
        if WINDOW:
            # A row may see no key yet; 0 in place of its maximum keeps its weights at 0 and not NaN.
            base = tl.where(new_top == float("-inf"), 0.0, new_top)
        else:
            # The first block of a range shows each row its first key, so the maximum is finite from there on.
            base = new_top
        weights = tl.math.exp2(scores * factor - base[:, None])
        decay = tl.math.exp2(top - base)
        total = total * decay + tl.sum(weights, 1)
        acc = tl.dot(weights.to(v.dtype), v, acc * decay[:, None], input_precision=PRECISION)
        top = new_top
    return acc, total, top


@triton.jit
def first_visible_key(seq_len, WINDOW: tl.constexpr):
    """The first key that the last token of a sequence sees."""
    if WINDOW:
        return tl.maximum(seq_len - WINDOW, 0)
    return 0


@triton.jit
def load_slopes(pointers, inside, ALIBI: tl.constexpr):
    """ALiBi slopes in units of log2; without ALIBI zeros, which are not used."""
    if ALIBI:
        return tl.load(pointers, mask=inside, other=0.0) * 1.4426950408889634
    return tl.zeros(pointers.shape, tl.float32)


@triton.jit
def merge_chunks(
    out_rows,
    partial_out,
    partial_lse,
    first,
    num_chunks,
    K: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
    MERGE_G: tl.constexpr,
    MERGE_CHUNKS: tl.constexpr,
):
    """Weigh the chunks of one sequence and kv head by their sums, MERGE_CHUNKS at a time, and store the result.

    Chunk c's results are row first + c * K of partial_out [rows, G, H] and partial_lse [rows, G]. Other programs wrote
    them, so the loads go past the first-level cache.
    """
    c = tl.arange(0, MERGE_CHUNKS)
    g = tl.arange(0, MERGE_G)
    h = tl.arange(0, BLOCK_H)
    acc = tl.zeros([MERGE_G, BLOCK_H], tl.float32)
    total = tl.zeros([MERGE_G], tl.float32)
    top = tl.full([MERGE_G], float("-inf"), tl.float32)
    inside_group = (g < G)[:, None] & (h < H)[None, :]
    for start in range(0, num_chunks, MERGE_CHUNKS):
        rows = ((first + (start + c) * K).to(tl.int64) * G)[:, None] + g[None, :]
        there = ((start + c) < num_chunks)[:, None] & (g < G)[None, :]
        lse = tl.load(partial_lse + rows, mask=there, other=float("-inf"), cache_modifier=".cg")
        part = tl.load(
            partial_out + rows[:, :, None] * H + h[None, None, :],
            mask=there[:, :, None] & (h < H)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        new_top = tl.maximum(top, tl.max(lse, 0))
        # Rows past the group have no chunk at all; 0 keeps them from becoming NaN.
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.math.exp2(lse - base[None, :])
        decay = tl.math.exp2(top - base)
        acc = acc * decay[:, None] + tl.sum(part * weights[:, :, None], 0)
        total = total * decay + tl.sum(weights, 0)
        top = new_top
    result = acc / tl.where(g < G, total, 1.0)[:, None]
    tl.store(out_rows + g[:, None] * H + h[None, :], result.to(out_rows.dtype.element_ty), mask=inside_group)


@triton.jit
def decode_kernel(
    q,
    kv_pages,
    page_table,
    query_start_loc,
    seq_lens,
    item_seq,
    first_item,
    chunk_size,
    arrived,
    alibi_slopes,
    num_seqs,
    out,
    partial_out,
    partial_lse,
    scale_log2: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    ALIBI: tl.constexpr,
    max_pages: tl.constexpr,
    K: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    MERGE_G: tl.constexpr,
    MERGE_CHUNKS: tl.constexpr,
):
    """One program: the single query of one sequence, for one kv head's group, over one chunk of its keys.

    Grid (K, items). Item i belongs to sequence item_seq[i] (num_seqs: a padding row to zero; above: nothing to do) and
    is its chunk i - first_item[item_seq[i]] of chunk_size[0] keys. The last program to arrive at a sequence's counter
    merges its chunks, and leaves the counter at 0 for the next call.
    """
    head = tl.program_id(0)
    item = tl.program_id(1)
    seq = tl.load(item_seq + item)
    if seq > num_seqs:
        return
    g = tl.arange(0, BLOCK_G)
    h = tl.arange(0, BLOCK_H)
    inside = (g < G)[:, None] & (h < H)[None, :]
    row_in_group = g[:, None] * H + h[None, :]
    chunk = item - tl.load(first_item + seq)
    first_row = tl.load(query_start_loc + seq).to(tl.int64)
    if seq == num_seqs:
        zeros = tl.zeros([BLOCK_G, BLOCK_H], out.dtype.element_ty)
        tl.store(out + ((first_row + chunk) * K + head) * (G * H) + row_in_group, zeros, mask=inside)
        return

    group_offsets = (first_row * K + head) * (G * H) + row_in_group
    seq_len = tl.load(seq_lens + seq)
    chunk_keys = tl.load(chunk_size)
    first_key = first_visible_key(seq_len, WINDOW)
    num_chunks = tl.cdiv(seq_len - first_key, chunk_keys)
    begin = first_key + chunk * chunk_keys
    end = tl.minimum(begin + chunk_keys, seq_len)
    positions = tl.zeros([BLOCK_G], tl.int32) + (seq_len - 1)
    k_head = kv_pages + head * H
    acc, total, top = visit_keys(
        tl.zeros([BLOCK_G, BLOCK_H], tl.float32),
        tl.zeros([BLOCK_G], tl.float32),
        tl.full([BLOCK_G], float("-inf"), tl.float32),
        tl.load(q + group_offsets, mask=inside, other=0.0),
        k_head,
        k_head + PAGE_SIZE * K * H,
        page_table + seq.to(tl.int64) * max_pages,
        positions,
        load_slopes(alibi_slopes + head * G + g, g < G, ALIBI),
        begin,
        end,
        scale_log2,
        # Every key from first_key on is within the window.
        0,
        SOFT_CAP,
        ALIBI,
        K,
        H,
        PAGE_SIZE,
        BLOCK_H,
        BLOCK_N,
        True,
        PRECISION,
    )
    result = acc / total[:, None]
    if num_chunks == 1:
        tl.store(out + group_offsets, result.to(out.dtype.element_ty), mask=inside)
    else:
        row = item.to(tl.int64) * K + head
        tl.store(partial_out + row * (G * H) + row_in_group, result, mask=inside, cache_modifier=".cg")
        tl.store(partial_lse + row * G + g, top + tl.math.log2(total), mask=g < G, cache_modifier=".cg")
        # All of this program's stores come before its arrival, and the last arrival before the merge's loads.
        tl.debug_barrier()
        before = tl.atomic_add(arrived + seq * K + head, 1, sem="acq_rel", scope="gpu")
        if before == num_chunks - 1:
            tl.debug_barrier()
            tl.store(arrived + seq * K + head, 0)
            first = (item - chunk) * K + head
            merge_chunks(
                out + (first_row * K + head) * (G * H),
                partial_out,
                partial_lse,
                first,
                num_chunks,
                K,
                G,
                H,
                BLOCK_H,
                MERGE_G,
                MERGE_CHUNKS,
            )


@triton.jit
def prefill_kernel(
    q,
    kv_pages,
    page_table,
    query_start_loc,
    seq_lens,
    tile_seq,
    first_tile,
    alibi_slopes,
    num_seqs,
    num_tokens,
    out,
    scale_log2: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    ALIBI: tl.constexpr,
    max_pages: tl.constexpr,
    K: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: BLOCK_M rows of one sequence and kv head, a row being one query head of one token.

    Grid (K, tiles). Tile t belongs to sequence tile_seq[t] (num_seqs: padding rows to zero; above: nothing to do), and
    is the (t - first_tile[tile_seq[t]])-th from its end: late tokens see most keys, and the longest work goes first.
    Rows run over tokens and group without a gap, so any group size fills the tile.
    """
    head = tl.program_id(0)
    tile = tl.program_id(1)
    seq = tl.load(tile_seq + tile)
    if seq > num_seqs:
        return
    h = tl.arange(0, BLOCK_H)
    from_end = tile - tl.load(first_tile + seq)
    first_token = tl.load(query_start_loc + seq)
    if seq == num_seqs:
        rows = from_end * BLOCK_M + tl.arange(0, BLOCK_M)
        token = (first_token + rows // G).to(tl.int64)
        offsets = ((token * K + head) * G + rows % G)[:, None] * H + h[None, :]
        inside = (token < num_tokens)[:, None] & (h < H)[None, :]
        tl.store(out + offsets, tl.zeros([BLOCK_M, BLOCK_H], out.dtype.element_ty), mask=inside)
        return

    num_queries = tl.load(query_start_loc + seq + 1) - first_token
    seq_len = tl.load(seq_lens + seq)
    num_rows = num_queries * G
    begin_row = (tl.cdiv(num_rows, BLOCK_M) - 1 - from_end) * BLOCK_M
    rows = begin_row + tl.arange(0, BLOCK_M)
    token = rows // G
    context = seq_len - num_queries
    positions = context + token
    offsets = (((first_token + token).to(tl.int64) * K + head) * G + rows % G)[:, None] * H + h[None, :]
    inside = (rows < num_rows)[:, None] & (h < H)[None, :]
    # Keys that all rows see, in whole blocks, and the end of those that any row sees.
    last_row = tl.minimum(begin_row + BLOCK_M, num_rows) - 1
    shared_end = (context + begin_row // G + 1) // BLOCK_N * BLOCK_N
    end = context + last_row // G + 1
    first_key = 0
    shared_begin = 0
    if WINDOW:
        first_key = tl.maximum(context + begin_row // G - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
        shared_begin = tl.maximum(end - WINDOW + BLOCK_N - 1, 0) // BLOCK_N * BLOCK_N
        # A window narrower than the tile leaves no block that all rows see.
        shared_end = tl.maximum(shared_begin, shared_end)
    tile_q = tl.load(q + offsets, mask=inside, other=0.0)
    k_head = kv_pages + head * H
    v_head = k_head + PAGE_SIZE * K * H
    table_row = page_table + seq.to(tl.int64) * max_pages
    slopes = load_slopes(alibi_slopes + head * G + rows % G, rows < num_rows, ALIBI)
    acc = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    # Those that some rows have lost sight of, those that all see, and those that some do not see yet.
    for part in tl.static_range(0 if WINDOW else 1, 3):
        acc, total, top = visit_keys(
            acc,
            total,
            top,
            tile_q,
            k_head,
            v_head,
            table_row,
            positions,
            slopes,
            first_key if part == 0 else (shared_begin if part == 1 else shared_end),
            tl.minimum(shared_begin, end) if part == 0 else (tl.minimum(shared_end, end) if part == 1 else end),
            scale_log2,
            WINDOW,
            SOFT_CAP,
            ALIBI,
            K,
            H,
            PAGE_SIZE,
            BLOCK_H,
            BLOCK_N,
            part != 1,
            PRECISION,
        )
    tl.store(out + offsets, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside)
