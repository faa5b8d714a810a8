"""The Triton kernels: one that does everything for sequences of one query, one that rotates and writes before others.

Rotation needs each head's other half. It is loaded a second time rather than moved between threads: it is in the cache.
"""

# mypy: ignore-errors
# The bodies are Triton's language, which only looks like Python.

import triton
import triton.language as tl

from pallas_kernels.paged_attention.kernels import load_slopes, log2_scores, merge_chunks, visit_keys
from pallas_kernels.residual_norm.kernels import load_sum


@triton.jit
def _load_rotated(
    rows,
    h,
    inside,
    cos_sin_row,
    dtype: tl.constexpr,
    PARTS: tl.constexpr,
    STRIDE: tl.constexpr,
    ROTATED: tl.constexpr,
    H: tl.constexpr,
):
    """Heads of pointers `rows` [..., 1] + h, rotated by one token's [2, ROTATED / 2] cosines and sines, in float32."""
    x = load_sum(rows + h, inside, dtype, PARTS, STRIDE).to(tl.float32)
    if ROTATED:
        HALF: tl.constexpr = ROTATED // 2
        turns = inside & (h < ROTATED)
        first = h < HALF
        partner = tl.where(first, h + HALF, h - HALF)
        angle = tl.where(first, h, partner)
        other = load_sum(rows + partner, turns, dtype, PARTS, STRIDE).to(tl.float32)
        cos = tl.load(cos_sin_row + angle, mask=h < ROTATED, other=1.0)
        sin = tl.load(cos_sin_row + HALF + angle, mask=h < ROTATED, other=0.0)
        x = x * cos + tl.where(first, -other, other) * sin
    return x


@triton.jit
def decode_kernel(
    qkv,
    cos_sin,
    kv_pages,
    page_table,
    work,
    first_page,
    arrived,
    alibi_slopes,
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
    ROTATED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MERGE_G: tl.constexpr,
    MERGE_CHUNKS: tl.constexpr,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
    STRIDE: tl.constexpr,
):
    """One program: one sequence's query, for one kv head's group, over one chunk of the keys written before.

    Grid (K, items). work [items, 8] says of each item: its sequence (-1: nothing to do), the first and the end of
    its keys, which chunk it is, how many chunks the sequence has, its length with the new token, and the page of
    that token, counted like the page table from first_page [1], the row of kv_pages where the layer's pages begin. The
    last chunk also takes the new token's own key and value, straight from qkv, and writes them into the pool; no other
    program reads them. The last program to arrive at a sequence's counter merges its chunks, and leaves the counter at
    0. qkv is the sum of PARTS arrays, STRIDE values apart.
    """
    head = tl.program_id(0)
    item = tl.program_id(1)
    seq = tl.load(work + item * 8)
    begin = tl.load(work + item * 8 + 1)
    end = tl.load(work + item * 8 + 2)
    chunk = tl.load(work + item * 8 + 3)
    num_chunks = tl.load(work + item * 8 + 4)
    seq_len = tl.load(work + item * 8 + 5)
    new_page = tl.load(work + item * 8 + 6).to(tl.int64)
    # Waits for nothing but its address, as the item does.
    kv_pages += tl.load(first_page).to(tl.int64) * (2 * PAGE_SIZE * K * H)
    if seq < 0:
        return
    g = tl.arange(0, BLOCK_G)
    h = tl.arange(0, BLOCK_H)
    inside = (g < G)[:, None] & (h < H)[None, :]
    row = (seq * K + head).to(tl.int64) * ((G + 2) * H)
    cos_sin_row = cos_sin + seq.to(tl.int64) * ROTATED
    table_row = page_table + seq.to(tl.int64) * max_pages
    element = out.dtype.element_ty
    q = _load_rotated(
        qkv + row + g[:, None] * H, h[None, :], inside, cos_sin_row, element, PARTS, STRIDE, ROTATED, H
    ).to(element)
    slopes = load_slopes(alibi_slopes + head * G + g, g < G, ALIBI)

    is_last = chunk == num_chunks - 1
    new = h < tl.where(is_last, H, 0)
    new_k = _load_rotated(qkv + row + G * H, h, new, cos_sin_row, element, PARTS, STRIDE, ROTATED, H).to(element)
    new_v = load_sum(qkv + row + (G + 1) * H + h, new, element, PARTS, STRIDE)
    # Only the new key's own score starts the running softmax: a chunk of older keys starts from nothing.
    products = tl.sum(q.to(tl.float32) * new_k.to(tl.float32)[None, :], 1)
    new_score = log2_scores(products, 0.0, slopes, scale_log2, SOFT_CAP, False)
    top = tl.where(is_last, new_score, float("-inf"))
    total = tl.where(is_last, 1.0, 0.0) + tl.zeros([BLOCK_G], tl.float32)
    acc = tl.zeros([BLOCK_G, BLOCK_H], tl.float32) + new_v.to(tl.float32)[None, :]

    k_head = kv_pages + head * H
    # Padding has a length of 0, and nothing to write.
    written = h < tl.where(is_last, tl.where(seq_len > 0, H, 0), 0)
    slot = new_page * (2 * PAGE_SIZE * K * H) + (seq_len - 1) % PAGE_SIZE * (K * H) + h
    tl.store(k_head + slot, new_k, mask=written)
    tl.store(k_head + PAGE_SIZE * K * H + slot, new_v, mask=written)
    acc, total, top = visit_keys(
        acc,
        total,
        top,
        q,
        k_head,
        k_head + PAGE_SIZE * K * H,
        table_row,
        tl.zeros([BLOCK_G], tl.int32) + (seq_len - 1),
        slopes,
        begin,
        end,
        scale_log2,
        # Every key of the work list is within the window.
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

    group = (seq * K + head).to(tl.int64) * (G * H)
    result = acc / total[:, None]
    if num_chunks == 1:
        tl.store(out + group + g[:, None] * H + h[None, :], result.to(element), mask=inside)
    else:
        part = item.to(tl.int64) * K + head
        tl.store(partial_out + part * (G * H) + g[:, None] * H + h[None, :], result, mask=inside, cache_modifier=".cg")
        tl.store(partial_lse + part * G + g, top + tl.math.log2(total), mask=g < G, cache_modifier=".cg")
        # All of this program's stores come before its arrival, and the last arrival before the merge's loads.
        tl.debug_barrier()
        before = tl.atomic_add(arrived + seq * K + head, 1, sem="acq_rel", scope="gpu")
        if before == num_chunks - 1:
            tl.debug_barrier()
            tl.store(arrived + seq * K + head, 0)
            first = (item - chunk) * K + head
            merge_chunks(
                out + group, partial_out, partial_lse, first, num_chunks, K, G, H, BLOCK_H, MERGE_G, MERGE_CHUNKS
            )


@triton.jit
def rotate_and_write_kernel(
    qkv,
    cos_sin,
    kv_pages,
    slot_mapping,
    q_out,
    num_slots: tl.constexpr,
    K: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
    ROTATED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """One program: one token's heads of one group: queries rotated to q_out, key and value into the token's slot.

    Grid (K, T). num_slots is of the pool; tokens whose slot lies past it are padding, and only their queries are kept.
    """
    head = tl.program_id(0)
    token = tl.program_id(1)
    slot = tl.load(slot_mapping + token)
    r = tl.arange(0, BLOCK_ROWS)[:, None]
    h = tl.arange(0, BLOCK_H)[None, :]
    group = token.to(tl.int64) * K + head
    rows = qkv + group * ((G + 2) * H) + r * H
    element = qkv.dtype.element_ty
    cos_sin_row = cos_sin + token.to(tl.int64) * ROTATED
    x = _load_rotated(rows, h, (r < G + 1) & (h < H), cos_sin_row, element, 1, 0, ROTATED, H).to(element)
    tl.store(q_out + group * (G * H) + r * H + h, x, mask=(r < G) & (h < H))
    width = tl.where(slot < num_slots, H, 0)
    place = (slot // PAGE_SIZE).to(tl.int64) * (2 * PAGE_SIZE * K * H) + slot % PAGE_SIZE * (K * H) + head * H
    tl.store(kv_pages + place + h + r * 0, x, mask=(r == G) & (h < width))
    h = tl.arange(0, BLOCK_H)
    v = tl.load(qkv + group * ((G + 2) * H) + (G + 1) * H + h, mask=h < H, other=0.0)
    tl.store(kv_pages + place + PAGE_SIZE * K * H + h, v, mask=h < width)
