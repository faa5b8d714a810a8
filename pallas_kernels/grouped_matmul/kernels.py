"""The Triton kernels of grouped products. Host code in `triton.py` says which program gets which work.

A row belongs to one group, and is multiplied by that group's matrix. The rows of a group are cut into tiles of BLOCK_M;
where rows are not sorted, an index lists them group by group, and results go back to where the rows came from.
"""

# mypy: ignore-errors
# The bodies are Triton's language, which only looks like Python.

import triton
import triton.language as tl


@triton.jit
def _rows_of_expert(group_ids, tile, num_rows, num_groups: tl.constexpr, BLOCK_A: tl.constexpr):
    """The group that tile `tile` is for, whether each row is of it [BLOCK_A], and whether there is work to do.

    For batches so small that a group's rows always fit one tile. With no more rows than groups, tile i is for the group
    of row i, unless an earlier row has the same one; otherwise it is for group i.
    """
    a = tl.arange(0, BLOCK_A)
    ids = tl.load(group_ids + a, mask=a < num_rows, other=-1)
    group = tile
    if num_rows <= num_groups:
        group = tl.load(group_ids + tile)
    mine = ids == group
    first = tl.min(tl.where(mine, a, BLOCK_A), 0)
    work = first < BLOCK_A
    if num_rows <= num_groups:
        work = first == tile
    return group, mine, work


@triton.jit
def _store_tile(out, values, row, inside, first_column, columns: tl.constexpr):
    """Store values [BLOCK_M, block] from first_column on in the rows of out [.., columns] that are `inside`."""
    column = first_column + tl.arange(0, values.shape[1])
    stored = inside[:, None] & (column < columns)[None, :]
    tl.store(out + row.to(tl.int64)[:, None] * columns + column[None, :], values.to(out.dtype.element_ty), mask=stored)


@triton.jit
def grouped_matmul_kernel(
    lhs,
    rhs,
    row_weights,
    tiles,
    row_index,
    num_rows,
    num_tiles,
    out,
    num_groups: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    ROWS_PER_LHS: tl.constexpr,
    GATED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_A: tl.constexpr,
    TILES_TOGETHER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: a tile of rows of one group, times BLOCK_N rows of its matrix [N, K].

    Grid (tiles * blocks of N), TILES_TOGETHER tiles side by side for each block of N, so that they share what the cache
    holds. Row r is row r // ROWS_PER_LHS of lhs [num_rows / ROWS_PER_LHS, K], and row r of out. Which rows a tile has,
    ROWS says:

    - "sorted": tiles [num_tiles, 4] holds each one's group, first row and end; group num_groups is rows of zeros.
    - "indexed": the same, but the rows are entries of row_index.
    - "searched": row_index holds the group of each row, and every program finds its own.

    GATED: the matrix is a gate [N / 2, K] over an up matrix of the same shape, and out is silu(gate) * up of [N / 2]
    columns. Their rows are taken in turn, so that both values of a pair come to lie in one thread.
    WEIGHTED: results are multiplied by row_weights [num_rows].
    """
    pid = tl.program_id(0)
    blocks_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    together: tl.constexpr = TILES_TOGETHER * blocks_n
    first_tile = pid // together * TILES_TOGETHER
    width = tl.minimum(num_tiles - first_tile, TILES_TOGETHER)
    tile = first_tile + pid % together % width
    block_n = pid % together // width

    m = tl.arange(0, BLOCK_M)
    if ROWS == "searched":
        group, mine, work = _rows_of_expert(row_index, tile, num_rows, num_groups, BLOCK_A)
        if not work:
            return
        rank = tl.cumsum(mine.to(tl.int32), 0) - 1
        chosen = mine[None, :] & (rank[None, :] == m[:, None])
        row = tl.sum(tl.where(chosen, tl.arange(0, BLOCK_A)[None, :], 0), 1)
        inside = m < tl.sum(mine.to(tl.int32), 0)
    else:
        group = tl.load(tiles + tile * 4)
        if group > num_groups:
            return
        position = tl.load(tiles + tile * 4 + 1) + m
        inside = position < tl.load(tiles + tile * 4 + 2)
        row = tl.load(row_index + position, mask=inside, other=0) if ROWS == "indexed" else position

    columns: tl.constexpr = N // 2 if GATED else N
    block_columns: tl.constexpr = BLOCK_N // 2 if GATED else BLOCK_N
    if ROWS == "sorted":
        if group == num_groups:
            zeros = tl.zeros([BLOCK_M, block_columns], tl.float32)
            _store_tile(out, zeros, row, inside, block_n * block_columns, columns)
            return

    k = tl.arange(0, BLOCK_K)
    n = tl.minimum(block_n * BLOCK_N + tl.arange(0, BLOCK_N), N - 1)
    rhs_row = n % 2 * (N // 2) + n // 2 if GATED else n
    lhs_ptrs = lhs + (row // ROWS_PER_LHS).to(tl.int64)[:, None] * K + k[None, :]
    rhs_ptrs = rhs + group.to(tl.int64) * (N * K) + rhs_row[:, None] * K + k[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            x = tl.load(lhs_ptrs, mask=inside[:, None], other=0.0)
            w = tl.load(rhs_ptrs)
        else:
            left = k < K - start
            x = tl.load(lhs_ptrs, mask=inside[:, None] & left[None, :], other=0.0)
            w = tl.load(rhs_ptrs, mask=left[None, :], other=0.0)
        acc = tl.dot(x, tl.trans(w), acc, input_precision=PRECISION)
        lhs_ptrs += BLOCK_K
        rhs_ptrs += BLOCK_K

    if GATED:
        gate, up = tl.split(tl.reshape(acc, [BLOCK_M, block_columns, 2]))
        acc = gate / (1.0 + tl.exp(-gate)) * up
    if WEIGHTED:
        acc *= tl.load(row_weights + row, mask=inside, other=0.0)[:, None]
    _store_tile(out, acc, row, inside, block_n * block_columns, columns)


@triton.jit
def _one_hot(group_ids, first, num_rows, CHUNK: tl.constexpr, BLOCK_E: tl.constexpr):
    """[CHUNK, BLOCK_E]: 1 where a row is of a group."""
    a = first + tl.arange(0, CHUNK)
    ids = tl.load(group_ids + a, mask=a < num_rows, other=-1)
    return (ids[:, None] == tl.arange(0, BLOCK_E)[None, :]).to(tl.int32)


@triton.jit
def count_kernel(
    group_ids,
    num_rows,
    counts,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """One program: how many of CHUNKS * CHUNK rows are of each group, into a row of counts [programs, BLOCK_E]."""
    block = tl.program_id(0)
    total = tl.zeros([BLOCK_E], tl.int32)
    for chunk in range(CHUNKS):
        total += tl.sum(_one_hot(group_ids, (block * CHUNKS + chunk) * CHUNK, num_rows, CHUNK, BLOCK_E), 0)
    tl.store(counts + block * BLOCK_E + tl.arange(0, BLOCK_E), total)


@triton.jit
def sort_kernel(
    group_ids,
    counts,
    num_rows,
    num_tiles,
    num_blocks,
    row_index,
    tiles,
    num_groups: tl.constexpr,
    BLOCK_M: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """A stable counting sort: row_index [num_rows] lists the rows group by group, tiles [num_tiles, 4] cuts them.

    One program for each of `count_kernel`. It sums the counts of all, and places its own rows behind those of smaller
    groups and those that earlier programs have of the same group. Each also describes a share of the tiles.
    """
    block = tl.program_id(0)
    e = tl.arange(0, BLOCK_E)
    ROWS: tl.constexpr = 32
    total = tl.zeros([BLOCK_E], tl.int32)
    before = tl.zeros([BLOCK_E], tl.int32)
    for first in range(0, num_blocks, ROWS):
        b = first + tl.arange(0, ROWS)
        part = tl.load(counts + b[:, None] * BLOCK_E + e[None, :], mask=(b < num_blocks)[:, None], other=0)
        total += tl.sum(part, 0)
        before += tl.sum(tl.where((b < block)[:, None], part, 0), 0)
    end = tl.cumsum(total, 0)

    place = end - total + before
    for chunk in range(CHUNKS):
        first = (block * CHUNKS + chunk) * CHUNK
        a = first + tl.arange(0, CHUNK)
        mine = _one_hot(group_ids, first, num_rows, CHUNK, BLOCK_E)
        places = tl.sum(mine * (place[None, :] + tl.cumsum(mine, 0) - 1), 1)
        tl.store(row_index + places, a, mask=a < num_rows)
        place += tl.sum(mine, 0)

    group_tiles = (total + BLOCK_M - 1) // BLOCK_M
    end_tile = tl.cumsum(group_tiles, 0)
    # The first row of group g, were its first tile tile 0.
    origin = end - total - (end_tile - group_tiles) * BLOCK_M
    for first in range(block * CHUNK, num_tiles, num_blocks * CHUNK):
        tile = first + tl.arange(0, CHUNK)
        group = tl.sum((end_tile[None, :] <= tile[:, None]).to(tl.int32), 1)
        is_group = (e[None, :] == group[:, None]).to(tl.int32)
        begin = tl.sum(is_group * origin[None, :], 1) + tile * BLOCK_M
        # No group has the tiles past the last: any number above num_groups says so.
        tl.store(tiles + tile * 4, tl.where(group < num_groups, group, num_groups + 1), mask=tile < num_tiles)
        tl.store(tiles + tile * 4 + 1, begin, mask=tile < num_tiles)
        tl.store(tiles + tile * 4 + 2, tl.sum(is_group * end[None, :], 1), mask=tile < num_tiles)
