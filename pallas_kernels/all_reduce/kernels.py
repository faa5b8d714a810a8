"""The Triton kernels: rows pushed into the other devices' inboxes, waited for, and added in the order of ranks.

A call is one launch and needs nothing of the host. Data travels in lines of 16 bytes, of which half are the number of
the call: who sees that number sees the data, without fences or flags of their own (as NCCL's LL protocol does). Waits
are bounded; after one was given up the error word is set, and later calls do not wait. All that a program must know
before it sends lies in one array, the table, and is read at once: in a step, other kernels' weights push it out of the
cache between two calls, and no address should have to be waited for before the next is known.

In one shot, a row goes whole to all others, and all of them add. In two (TWO_SHOT), it goes to the row's owner alone,
rank row % N, which adds, rounds, and sends the sum to the others: the same bits for fewer bytes, and a second hop.

Two inboxes, for even and odd epochs, are enough in either form, and however the forms follow each other. Whoever begins
call e of a row has ended call e - 1 of it, so it has received either every rank's lines or the owner's, which sends
only after it has received every rank's. Every rank had thus begun call e - 1 of the row and ended call e - 2: nobody
still reads what call e overwrites. A call of fewer rows leaves the other rows' counters alone, so this holds row by
row.
"""

# mypy: ignore-errors
# The bodies are Triton's language, which only looks like Python.

import triton
import triton.language as tl

from pallas_kernels.residual_norm.kernels import scale_normed

# $0 is a result that nobody reads. The 16 bytes of a line are written, and read, as two halves with a flag each.
SEND: tl.constexpr = tl.constexpr("""
{
 .reg .pred live;
 .reg .b32 low, high;
 setp.ne.s32 live, $4, 0;
 mov.b64 {low, high}, $2;
 @live st.volatile.global.v4.u32 [$1], {low, $3, high, $3};
 mov.u32 $0, 0;
}
""")


def _receive_assembly(together: int) -> str:
    """Assembly that waits until all of `together` lines carry the epoch, and gives their data.

    Operands, `together` of each: data out, addresses, epochs, whether the line is wanted, polls, the error word.
    """
    lines = range(together)
    out, address, epoch, live = ([f"${group * together + i}" for i in lines] for group in range(4))
    polls, error = f"${4 * together}", f"${5 * together}"
    text = ["{", " .reg .pred seen, more, other;", " .reg .b32 n, word;", " mov.u32 n, 0;"]
    for i in lines:
        text += [
            f" .reg .pred live{i};",
            f" .reg .b32 low{i}, high{i}, first{i}, second{i};",
            f" setp.ne.s32 live{i}, {live[i]}, 0;",
            f" mov.u32 low{i}, 0;",
            f" mov.u32 high{i}, 0;",
            f" mov.u32 first{i}, {epoch[i]};",
            f" mov.u32 second{i}, {epoch[i]};",
        ]
    text += ["LOOK:"]
    for i in lines:
        text += [f" @live{i} ld.volatile.global.v4.u32 {{low{i}, first{i}, high{i}, second{i}}}, [{address[i]}];"]
    text += [f" setp.eq.u32 seen, first0, {epoch[0]};", f" setp.eq.and.u32 seen, second0, {epoch[0]}, seen;"]
    for i in lines[1:]:
        text += [f" setp.eq.and.u32 seen, first{i}, {epoch[i]}, seen;"]
        text += [f" setp.eq.and.u32 seen, second{i}, {epoch[i]}, seen;"]
    text += [
        " @seen bra DONE;",
        " add.u32 n, n, 1;",
        # Now and then: whether others have given up, so that all waits of a call end together.
        " and.b32 word, n, 4095;",
        " setp.ne.u32 other, word, 0;",
        " mov.u32 word, 0;",
        f" @!other ld.volatile.global.u32 word, [{error}];",
        " setp.ne.u32 other, word, 0;",
        " @other bra DONE;",
        f" setp.lt.u32 more, n, {polls};",
        " @more bra LOOK;",
        " mov.u32 word, 1;",
        f" st.volatile.global.u32 [{error}], word;",
        "DONE:",
    ]
    text += [f" mov.b64 {out[i]}, {{low{i}, high{i}}};" for i in lines]
    return "\n".join([*text, "}"])


def _receive_constraints(together: int) -> str:
    # An output must not share a register with an input that is read after it is written.
    groups = ("=&l", "l", "r", "r", "r", "l")
    return ",".join([group for group in groups for _ in range(together)] + ["~{memory}"])


RECEIVE_1: tl.constexpr = tl.constexpr(_receive_assembly(1))
RECEIVE_2: tl.constexpr = tl.constexpr(_receive_assembly(2))
CONSTRAINTS_1: tl.constexpr = tl.constexpr(_receive_constraints(1))
CONSTRAINTS_2: tl.constexpr = tl.constexpr(_receive_constraints(2))


@triton.jit
def send_lines(address, word, epoch, live):
    """Write 8 bytes [L] int64 and the epoch to each line that is live."""
    args = [address, word, epoch, live]
    tl.inline_asm_elementwise(SEND, "=r,l,l,r,r,~{memory}", args, dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def receive_lines(address, epoch, live, polls, error, TOGETHER: tl.constexpr):
    """The 8 bytes [L] int64 of each live line, as soon as it carries the epoch; 0 of the others."""
    args = [address, epoch, live, polls, error]
    if TOGETHER == 1:
        word = tl.inline_asm_elementwise(RECEIVE_1, CONSTRAINTS_1, args, dtype=tl.int64, is_pure=False, pack=1)
    else:
        word = tl.inline_asm_elementwise(RECEIVE_2, CONSTRAINTS_2, args, dtype=tl.int64, is_pure=False, pack=2)
    return word


@triton.jit
def workspace_address(table, offset: tl.constexpr):
    """Where the workspace of the rank `offset` after mine begins."""
    low = tl.load(table + 2 * offset).to(tl.uint32, bitcast=True).to(tl.int64)
    high = tl.load(table + 2 * offset + 1).to(tl.int64)
    return (high << 32) | low


@triton.jit
def error_word(table, N: tl.constexpr):
    """Where this device's error word is."""
    return table + (2 * N + 1)


@triton.jit
def is_given_up(table, N: tl.constexpr):
    """Whether a wait on this device was given up, in an earlier call."""
    return tl.load(error_word(table, N), volatile=True) != 0


@triton.jit
def words_of(values, dtype: tl.constexpr):
    """[L, V] values of 8 bytes together to [L] int64."""
    if dtype.primitive_bitwidth == 16:
        bits = values.to(tl.int16, bitcast=True).to(tl.int64) & 0xFFFF
        place = tl.arange(0, 4).to(tl.int64) * 16
    else:
        bits = values.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
        place = tl.arange(0, 2).to(tl.int64) * 32
    # Bits of different places: a sum is what puts them together.
    return tl.sum(bits << place[None, :], 1)


@triton.jit
def values_of(words, dtype: tl.constexpr):
    """[L] int64 to [L, V] values, in float32."""
    if dtype.primitive_bitwidth == 16:
        place = tl.arange(0, 4).to(tl.int64) * 16
        bits = (words[:, None] >> place[None, :]).to(tl.int16)
    else:
        place = tl.arange(0, 2).to(tl.int64) * 32
        bits = (words[:, None] >> place[None, :]).to(tl.int32)
    return bits.to(dtype, bitcast=True).to(tl.float32)


@triton.jit
def local_sum(parts, at, inside, PARTS: tl.constexpr, STRIDE: tl.constexpr, dtype: tl.constexpr):
    """This device's own parts [PARTS, ...] added up, rounded as if they were one product."""
    total = tl.load(parts + at, mask=inside, other=0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(parts + part * STRIDE + at, mask=inside, other=0.0)
    return total.to(dtype)


@triton.jit
def begin_row(table, row, N: tl.constexpr, COUNTERS: tl.constexpr, POLLS: tl.constexpr):
    """The counter of the row, the number of this call, and the polls that it may take."""
    polls = tl.where(is_given_up(table, N), 1, POLLS)
    counter = table + COUNTERS + row
    return counter, tl.load(counter) + 1, polls


@triton.jit
def inbox_row(
    base,
    sender,
    row,
    epoch,
    N: tl.constexpr,
    INBOX: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    ROW_LINES: tl.constexpr,
):
    """Where a row begins in the workspace at `base`, as sent by the rank `sender` after that workspace's."""
    slot = (epoch & 1).to(tl.int64) * (N - 1) + (sender - 1)
    return base + INBOX + (slot * MAX_ROWS + row) * (ROW_LINES * 16)


@triton.jit
def send_to_all(
    words,
    table,
    row,
    line,
    live,
    epoch,
    N: tl.constexpr,
    INBOX: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    ROW_LINES: tl.constexpr,
):
    """Push words [LINES] into the inboxes of all other devices, at some lines of a row."""
    for offset in tl.static_range(1, N):
        # To the one `offset` ranks after me, I am the one N - offset after it.
        base = workspace_address(table, offset)
        start = inbox_row(base, N - offset, row, epoch, N, INBOX, MAX_ROWS, ROW_LINES)
        send_lines(start + line * 16, words, epoch, live)


@triton.jit
def owner_offset(table, row, N: tl.constexpr):
    """How many ranks after me the owner of a row is; 0 if it is me."""
    return ((row % N).to(tl.int32) - tl.load(table + 2 * N) + N) % N


@triton.jit
def send_to_owner(
    words,
    table,
    row,
    line,
    live,
    epoch,
    N: tl.constexpr,
    INBOX: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    ROW_LINES: tl.constexpr,
):
    """Push words [LINES] into the inbox of the row's owner, unless that is me."""
    owner = owner_offset(table, row, N)
    base = workspace_address(table, 0)
    # All are read and one is chosen: none has to be waited for until it is known which.
    for offset in tl.static_range(1, N):
        base = tl.where(owner == offset, workspace_address(table, offset), base)
    start = inbox_row(base, N - owner, row, epoch, N, INBOX, MAX_ROWS, ROW_LINES)
    send_lines(start + line * 16, words, epoch, tl.where(owner == 0, 0, live))


@triton.jit
def send_row(
    parts,
    table,
    row,
    epoch,
    dtype: tl.constexpr,
    TWO_SHOT: tl.constexpr,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    STRIDE: tl.constexpr,
    LINES: tl.constexpr,
    CHUNKS: tl.constexpr,
    N: tl.constexpr,
    INBOX: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    ROW_LINES: tl.constexpr,
):
    """Push a whole row, before anything is waited for. What this device has of its last chunk: all, if it is one."""
    V: tl.constexpr = 64 // dtype.primitive_bitwidth
    for chunk in tl.static_range(CHUNKS):
        line = chunk * LINES + tl.arange(0, LINES)
        d = line[:, None] * V + tl.arange(0, V)[None, :]
        own = local_sum(parts, row * D + d, d < D, PARTS, STRIDE, dtype)
        words = words_of(own, dtype)
        live = (line * V < D).to(tl.int32)
        if TWO_SHOT:
            send_to_owner(words, table, row, line, live, epoch, N, INBOX, MAX_ROWS, ROW_LINES)
        else:
            send_to_all(words, table, row, line, live, epoch, N, INBOX, MAX_ROWS, ROW_LINES)
    return own


@triton.jit
def sum_of_all(
    own,
    table,
    row,
    line,
    live,
    epoch,
    polls,
    dtype: tl.constexpr,
    TOGETHER: tl.constexpr,
    N: tl.constexpr,
    INBOX: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    ROW_LINES: tl.constexpr,
):
    """The sum [LINES, V] of all devices' `own`, added in float32 in the order of ranks: the same bits on all."""
    rank = tl.load(table + 2 * N)
    base = workspace_address(table, 0)
    error = error_word(table, N).to(tl.int64)
    words = words_of(own, dtype)
    total = tl.zeros(own.shape, tl.float32)
    for r in tl.static_range(N):
        theirs = words
        if r != rank:
            start = inbox_row(base, (r - rank + N) % N, row, epoch, N, INBOX, MAX_ROWS, ROW_LINES)
            theirs = receive_lines(start + line * 16, epoch, live, polls, error, TOGETHER)
        total += values_of(theirs, dtype)
    return total.to(dtype)


@triton.jit
def sum_over_devices(
    own,
    table,
    row,
    line,
    live,
    epoch,
    polls,
    dtype: tl.constexpr,
    TWO_SHOT: tl.constexpr,
    TOGETHER: tl.constexpr,
    N: tl.constexpr,
    INBOX: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    ROW_LINES: tl.constexpr,
):
    """`sum_of_all`, after `send_row`: taken here, or in two shots where the row is mine, and else from its owner."""
    if TWO_SHOT:
        owner = owner_offset(table, row, N)
        if owner == 0:
            total = sum_of_all(
                own, table, row, line, live, epoch, polls, dtype, TOGETHER, N, INBOX, MAX_ROWS, ROW_LINES
            )
            words = words_of(total, dtype)
            # Even if a wait was given up, so that the others need not wait as long: the exchange tells them.
            send_to_all(words, table, row, line, live, epoch, N, INBOX, MAX_ROWS, ROW_LINES)
        else:
            error = error_word(table, N).to(tl.int64)
            start = inbox_row(workspace_address(table, 0), owner, row, epoch, N, INBOX, MAX_ROWS, ROW_LINES)
            words = receive_lines(start + line * 16, epoch, live, polls, error, TOGETHER)
        summed = values_of(words, dtype).to(dtype)
    else:
        summed = sum_of_all(own, table, row, line, live, epoch, polls, dtype, TOGETHER, N, INBOX, MAX_ROWS, ROW_LINES)
    return summed


@triton.jit
def all_reduce_kernel(
    parts,
    table,
    out,
    TWO_SHOT: tl.constexpr,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    STRIDE: tl.constexpr,
    LINES: tl.constexpr,
    CHUNKS: tl.constexpr,
    TOGETHER: tl.constexpr,
    N: tl.constexpr,
    COUNTERS: tl.constexpr,
    INBOX: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    ROW_LINES: tl.constexpr,
    POLLS: tl.constexpr,
):
    """Row program_id(0) of the sum over parts and devices. Grid (T,). STRIDE is T * D where there are several parts.

    A row is CHUNKS times LINES lines.
    """
    dtype: tl.constexpr = out.dtype.element_ty
    V: tl.constexpr = 64 // dtype.primitive_bitwidth
    row = tl.program_id(0).to(tl.int64)
    counter, epoch, polls = begin_row(table, row, N, COUNTERS, POLLS)
    own = send_row(
        parts, table, row, epoch, dtype, TWO_SHOT, D, PARTS, STRIDE, LINES, CHUNKS, N, INBOX, MAX_ROWS, ROW_LINES
    )
    for chunk in tl.static_range(CHUNKS):
        line = chunk * LINES + tl.arange(0, LINES)
        d = line[:, None] * V + tl.arange(0, V)[None, :]
        if CHUNKS > 1:
            own = local_sum(parts, row * D + d, d < D, PARTS, STRIDE, dtype)
        live = (line * V < D).to(tl.int32)
        total = sum_over_devices(
            own, table, row, line, live, epoch, polls, dtype, TWO_SHOT, TOGETHER, N, INBOX, MAX_ROWS, ROW_LINES
        )
        tl.store(out + row * D + d, total, mask=d < D)
    # All threads have read the counter.
    tl.debug_barrier()
    tl.store(counter, epoch)


@triton.jit
def all_reduce_residual_norm_kernel(
    x,
    parts,
    weight,
    weight_row,
    table,
    x_out,
    normed_out,
    eps: tl.constexpr,
    KIND: tl.constexpr,
    TWO_SHOT: tl.constexpr,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    STRIDE: tl.constexpr,
    LINES: tl.constexpr,
    CHUNKS: tl.constexpr,
    TOGETHER: tl.constexpr,
    N: tl.constexpr,
    COUNTERS: tl.constexpr,
    INBOX: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    ROW_LINES: tl.constexpr,
    POLLS: tl.constexpr,
):
    """As `all_reduce_kernel`; the sum is added to x, to x_out, and the norm of that goes to normed_out. The norm's
    weight is row weight_row [1] of weight [N, D]."""
    dtype: tl.constexpr = x_out.dtype.element_ty
    V: tl.constexpr = 64 // dtype.primitive_bitwidth
    row = tl.program_id(0).to(tl.int64)
    counter, epoch, polls = begin_row(table, row, N, COUNTERS, POLLS)
    if CHUNKS == 1:
        weight += tl.load(weight_row).to(tl.int64) * D
        # Under way while this device sends and waits.
        line = tl.arange(0, LINES)
        d = line[:, None] * V + tl.arange(0, V)[None, :]
        stream = tl.load(x + row * D + d, mask=d < D, other=0.0)
    own = send_row(
        parts, table, row, epoch, dtype, TWO_SHOT, D, PARTS, STRIDE, LINES, CHUNKS, N, INBOX, MAX_ROWS, ROW_LINES
    )
    if CHUNKS == 1:
        # Not before anything is sent: it waits for the row's number.
        scale = tl.load(weight + d, mask=d < D, other=0.0)
    squares = tl.zeros([LINES, V], tl.float32)
    for chunk in tl.static_range(CHUNKS):
        line = chunk * LINES + tl.arange(0, LINES)
        d = line[:, None] * V + tl.arange(0, V)[None, :]
        if CHUNKS > 1:
            stream = tl.load(x + row * D + d, mask=d < D, other=0.0)
            own = local_sum(parts, row * D + d, d < D, PARTS, STRIDE, dtype)
        live = (line * V < D).to(tl.int32)
        # In the dtype of the stream, as if the sum were the product itself.
        added = sum_over_devices(
            own, table, row, line, live, epoch, polls, dtype, TWO_SHOT, TOGETHER, N, INBOX, MAX_ROWS, ROW_LINES
        )
        stream = (stream.to(tl.float32) + added.to(tl.float32)).to(dtype)
        tl.store(x_out + row * D + d, stream, mask=d < D)
        squares += stream.to(tl.float32) * stream.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(tl.sum(squares, 1), 0) / D + eps)
    # All threads have read the counter, and written their part of the stream.
    tl.debug_barrier()
    tl.store(counter, epoch)
    if CHUNKS > 1:
        weight += tl.load(weight_row).to(tl.int64) * D
    for chunk in tl.static_range(CHUNKS):
        line = chunk * LINES + tl.arange(0, LINES)
        d = line[:, None] * V + tl.arange(0, V)[None, :]
        if CHUNKS > 1:
            stream = tl.load(x_out + row * D + d, mask=d < D, other=0.0)
            scale = tl.load(weight + d, mask=d < D, other=0.0)
        tl.store(
            normed_out + row * D + d, scale_normed(stream.to(tl.float32) * inverse, scale, dtype, KIND), mask=d < D
        )


@triton.jit
def all_to_all_kernel(
    values,
    table,
    out,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    PIECES: tl.constexpr,
    LINES: tl.constexpr,
    CHUNKS: tl.constexpr,
    TOGETHER: tl.constexpr,
    N: tl.constexpr,
    COUNTERS: tl.constexpr,
    INBOX: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    ROW_LINES: tl.constexpr,
    POLLS: tl.constexpr,
):
    """A piece of a row of out [ROWS, N * D] from each device's values [N * ROWS, D]. Grid (ROWS, PIECES).

    A piece is what an inbox has room for as one row: CHUNKS times LINES lines, of which ROW_LINES are used. Waits that
    were given up leave values of no meaning.
    """
    dtype: tl.constexpr = out.dtype.element_ty
    V: tl.constexpr = 64 // dtype.primitive_bitwidth
    row = tl.program_id(0).to(tl.int64)
    place = row * PIECES + tl.program_id(1)
    first = tl.program_id(1) * ROW_LINES * V
    rank = tl.load(table + 2 * N)
    base = workspace_address(table, 0)
    error = error_word(table, N).to(tl.int64)
    counter, epoch, polls = begin_row(table, place, N, COUNTERS, POLLS)
    for offset in tl.static_range(1, N):
        # As in send_to_all, but other values for each device: its share of the rows.
        theirs = values + (((rank + offset) % N) * ROWS + row) * D
        start = inbox_row(workspace_address(table, offset), N - offset, place, epoch, N, INBOX, MAX_ROWS, ROW_LINES)
        for chunk in tl.static_range(CHUNKS):
            line = chunk * LINES + tl.arange(0, LINES)
            d = first + line[:, None] * V + tl.arange(0, V)[None, :]
            words = words_of(tl.load(theirs + d, mask=d < D, other=0.0), dtype)
            live = ((line < ROW_LINES) & (first + line * V < D)).to(tl.int32)
            send_lines(start + line * 16, words, epoch, live)
    for r in tl.static_range(N):
        for chunk in tl.static_range(CHUNKS):
            line = chunk * LINES + tl.arange(0, LINES)
            d = first + line[:, None] * V + tl.arange(0, V)[None, :]
            inside = (line < ROW_LINES)[:, None] & (d < D)
            live = ((line < ROW_LINES) & (first + line * V < D)).to(tl.int32)
            if r == rank:
                received = tl.load(values + (rank * ROWS + row) * D + d, mask=inside, other=0.0).to(tl.float32)
            else:
                start = inbox_row(base, (r - rank + N) % N, place, epoch, N, INBOX, MAX_ROWS, ROW_LINES)
                received = values_of(receive_lines(start + line * 16, epoch, live, polls, error, TOGETHER), dtype)
            tl.store(out + row * (N * D) + r * D + d, received.to(dtype), mask=inside)
    # All threads have read the counter.
    tl.debug_barrier()
    tl.store(counter, epoch)


@triton.jit
def argmax_kernel(
    values,
    ids,
    table,
    out,
    S: tl.constexpr,
    BLOCK: tl.constexpr,
    N: tl.constexpr,
    COUNTERS: tl.constexpr,
    INBOX: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    POLLS: tl.constexpr,
):
    """The id of the largest value of each row over all devices, the first rank's on a tie. Grid (S / BLOCK,).

    Where a wait was given up on any device, rows of that device are -1, and so is the result wherever it arrives.
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < S
    base = workspace_address(table, 0)
    rank = tl.load(table + 2 * N)
    error = error_word(table, N).to(tl.int64)
    given_up = is_given_up(table, N)
    polls = tl.where(given_up, 1, POLLS)
    counters = table + COUNTERS + row
    epoch = tl.load(counters, mask=inside, other=0) + 1
    value = tl.load(values + row, mask=inside, other=0.0)
    chosen = tl.where(given_up, -1, tl.load(ids + row, mask=inside, other=0))
    low = value.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    words = low | (chosen.to(tl.int64) << 32)
    live = inside.to(tl.int32)
    inbox = (epoch & 1).to(tl.int64) * (N - 1)
    for offset in tl.static_range(1, N):
        line = (inbox + (N - offset - 1)) * MAX_ROWS + row
        send_lines(workspace_address(table, offset) + INBOX + line * 16, words, epoch, live)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    best_id = tl.zeros([BLOCK], tl.int32)
    for r in tl.static_range(N):
        theirs = words
        if r != rank:
            line = (inbox + ((r - rank + N) % N - 1)) * MAX_ROWS + row
            theirs = receive_lines(base + INBOX + line * 16, epoch, live, polls, error, 1)
        their_value = theirs.to(tl.int32).to(tl.float32, bitcast=True)
        their_id = (theirs >> 32).to(tl.int32)
        if r == 0:
            best, best_id = their_value, their_id
        else:
            better = (their_value > best) | (their_id < 0)
            better = better & (best_id >= 0)
            best = tl.where(better, their_value, best)
            best_id = tl.where(better, their_id, best_id)
    # The waits of this very call may have been given up.
    tl.debug_barrier()
    best_id = tl.where(is_given_up(table, N), -1, best_id)
    tl.store(out + row, best_id, mask=inside)
    tl.store(counters, epoch, mask=inside)
