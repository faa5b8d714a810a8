"""The Triton kernels: rows pushed into the other devices' inboxes, waited for, and added in the order of ranks.

A call is one launch and needs nothing of the host. Waits are bounded; after one was given up the error word is set, and
later calls do not wait. All that a program must know before it sends lies in one array, the table, and is read at once:
in a step, other kernels' weights push it out of the cache between two calls, and no address should have to be waited
for before the next is known.

Rows travel as they are, in words of 8 bytes, and nothing beside them. An inbox is full of a number that no row may hold
(EMPTY, in each half of a word), so who sees another has the data, without fences or flags; and puts EMPTY back for
later (as in the all-reduce that TensorRT-LLM names after Lamport). While it waits, a call empties what the one before
it received: a compiler may read a word several times, to have it in several threads, and none may find it gone. What a
row has of that number, two negative zeros of 16 bits, becomes positive ones before anything is done with it, so that
all devices add the same. The exchange of maxima, whose ids may be any number, travels in lines of 16 bytes, of which
half are the number of the call (as NCCL's LL protocol does).

In one shot, a row goes whole to all others, and all of them add. In two (TWO_SHOT), it goes to the row's owner alone,
rank row % N, which adds, rounds, and sends the sum to the others; the same bits for fewer bytes, and a second hop.

Calls of a row take three inboxes in turn, in either form, and however the forms follow each other. Whoever begins call
e of a row has ended call e - 1 of it, so it has received either every rank's words or the owner's, which sends only
after it has received every rank's. Every rank had thus begun call e - 1 of the row and ended call e - 2, in which it
emptied what it had received in call e - 3: where call e writes. A call of fewer rows leaves the other rows' counters
alone, so this holds row by row.
"""

# mypy: ignore-errors
# The bodies are Triton's language, which only looks like Python.

import triton
import triton.language as tl

from pallas_kernels.all_reduce import config
from pallas_kernels.residual_norm.kernels import load_sum, scale_normed

# In each half of a word of an inbox that nothing has arrived in: two negative zeros of 16 bits, or as one of 32 bits a
# number so small that 0 will do for it.
EMPTY: tl.constexpr = tl.constexpr(config.EMPTY)
# Both halves, as an int64.
EMPTY_WORD: tl.constexpr = tl.constexpr((config.EMPTY << 32 | config.EMPTY) - (1 << 64))
ROW_INBOXES: tl.constexpr = tl.constexpr(config.ROW_INBOXES)
TOOK_TWO_SHOTS: tl.constexpr = tl.constexpr(config.TOOK_TWO_SHOTS)
# $0 is a result that nobody reads.
SEND_WORD: tl.constexpr = tl.constexpr("""
{
 .reg .pred live;
 setp.ne.s32 live, $3, 0;
 @live st.volatile.global.u64 [$1], $2;
 mov.u32 $0, 0;
}
""")
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


def _receive_words_assembly(together: int) -> str:
    """Assembly that waits until all of `together` words are there, and gives them.

    Operands, `together` of each: data out, addresses, whether the word is wanted, polls, the error word.
    """
    words = range(together)
    out, address, live = ([f"${group * together + i}" for i in words] for group in range(3))
    polls, error = f"${3 * together}", f"${4 * together}"
    text = ["{", " .reg .pred seen, more, other;", " .reg .b32 n, word;", " mov.u32 n, 0;"]
    for i in words:
        text += [f" .reg .pred live{i}, here{i};", f" .reg .b32 low{i}, high{i};"]
        text += [f" setp.ne.s32 live{i}, {live[i]}, 0;", f" mov.u32 low{i}, 0;", f" mov.u32 high{i}, 0;"]
    text += ["LOOK:"]
    text += [f" @live{i} ld.volatile.global.v2.u32 {{low{i}, high{i}}}, [{address[i]}];" for i in words]
    for i in words:
        text += [f" setp.ne.u32 here{i}, low{i}, {config.EMPTY};"]
        text += [f" setp.ne.and.u32 here{i}, high{i}, {config.EMPTY}, here{i};"]
    text += [" mov.pred seen, here0;"]
    text += [f" and.pred seen, seen, here{i};" for i in words[1:]]
    text += [" @seen bra DONE;", *_counted_poll(polls, error), "DONE:"]
    text += [f" mov.b64 {out[i]}, {{low{i}, high{i}}};" for i in words]
    return "\n".join([*text, "}"])


def _counted_poll(polls: str, error: str) -> list[str]:
    """Assembly that looks again, or gives up and says so."""
    return [
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
    ]


def _receive_line_assembly() -> str:
    """Assembly that waits until a line carries the epoch, and gives its data.

    Operands: data out, address, epoch, whether the line is wanted, polls, the error word.
    """
    text = [
        "{",
        " .reg .pred live, seen, more, other;",
        " .reg .b32 low, high, first, second, n, word;",
        " mov.u32 n, 0;",
        " setp.ne.s32 live, $3, 0;",
        " mov.u32 low, 0;",
        " mov.u32 high, 0;",
        " mov.u32 first, $2;",
        " mov.u32 second, $2;",
        "LOOK:",
        " @live ld.volatile.global.v4.u32 {low, first, high, second}, [$1];",
        " setp.eq.u32 seen, first, $2;",
        " setp.eq.and.u32 seen, second, $2, seen;",
        " @seen bra DONE;",
        *_counted_poll("$4", "$5"),
        "DONE:",
        " mov.b64 $0, {low, high};",
        "}",
    ]
    return "\n".join(text)


def _constraints(together: int, *groups: str) -> str:
    # An output must not share a register with an input that is read after it is written.
    return ",".join([group for group in ("=&l", *groups) for _ in range(together)] + ["~{memory}"])


RECEIVE_LINE: tl.constexpr = tl.constexpr(_receive_line_assembly())
LINE_CONSTRAINTS: tl.constexpr = tl.constexpr(_constraints(1, "l", "r", "r", "r", "l"))
RECEIVE_WORD: tl.constexpr = tl.constexpr(_receive_words_assembly(1))
RECEIVE_WORDS: tl.constexpr = tl.constexpr(_receive_words_assembly(2))
WORD_CONSTRAINTS: tl.constexpr = tl.constexpr(_constraints(1, "l", "r", "r", "l"))
WORDS_CONSTRAINTS: tl.constexpr = tl.constexpr(_constraints(2, "l", "r", "r", "l"))


@triton.jit
def send_lines(address, word, epoch, live):
    """Write 8 bytes [L] int64 and the epoch to each line that is live."""
    args = [address, word, epoch, live]
    tl.inline_asm_elementwise(SEND, "=r,l,l,r,r,~{memory}", args, dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def receive_lines(address, epoch, live, polls, error):
    """The 8 bytes [L] int64 of each live line, as soon as it carries the epoch; 0 of the others."""
    args = [address, epoch, live, polls, error]
    return tl.inline_asm_elementwise(RECEIVE_LINE, LINE_CONSTRAINTS, args, dtype=tl.int64, is_pure=False, pack=1)


@triton.jit
def send_words(address, word, live):
    """Write 8 bytes [L] int64, no half of them EMPTY, to each address that is live."""
    args = [address, word, live]
    tl.inline_asm_elementwise(SEND_WORD, "=r,l,l,r,~{memory}", args, dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def receive_words(address, live, polls, error, TOGETHER: tl.constexpr):
    """The 8 bytes [L] int64 at each address that is live, as soon as they are there; 0 of the others."""
    args = [address, live, polls, error]
    if TOGETHER == 1:
        word = tl.inline_asm_elementwise(RECEIVE_WORD, WORD_CONSTRAINTS, args, dtype=tl.int64, is_pure=False, pack=1)
    else:
        word = tl.inline_asm_elementwise(RECEIVE_WORDS, WORDS_CONSTRAINTS, args, dtype=tl.int64, is_pure=False, pack=2)
    return word


@triton.jit
def empty_words(address, live):
    """Put EMPTY at each address that is live; all threads must have read what is there."""
    word = tl.full(address.shape, EMPTY_WORD, tl.int64)
    tl.store(address.to(tl.pointer_type(tl.int64)), word, mask=live)


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
    """[L, V] values of 8 bytes together to [L] int64, no half of which is EMPTY."""
    if dtype.primitive_bitwidth == 16:
        bits = values.to(tl.int16, bitcast=True).to(tl.int64) & 0xFFFF
        place = tl.arange(0, 4).to(tl.int64) * 16
    else:
        bits = values.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
        place = tl.arange(0, 2).to(tl.int64) * 32
    # Bits of different places: a sum is what puts them together.
    words = tl.sum(bits << place[None, :], 1)
    words = tl.where((words & 0xFFFFFFFF) == EMPTY, words - EMPTY, words)
    return tl.where(((words >> 32) & 0xFFFFFFFF) == EMPTY, words & 0xFFFFFFFF, words)


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
def begin_row(table, row, N: tl.constexpr, COUNTERS: tl.constexpr, POLLS: tl.constexpr):
    """Of a row: its counter, what that said, the inbox of this call, and the polls that it may take."""
    polls = tl.where(is_given_up(table, N), 1, POLLS)
    counter = table + COUNTERS + row
    last = tl.load(counter)
    return counter, last, (last % TOOK_TWO_SHOTS + 1) % ROW_INBOXES, polls


@triton.jit
def end_row(counter, inbox, TWO_SHOT: tl.constexpr):
    """Count the call: the row's counter says which inbox it took, and whether it took two shots."""
    # All threads have read the counter.
    tl.debug_barrier()
    tl.store(counter, inbox + TOOK_TWO_SHOTS if TWO_SHOT else inbox)


@triton.jit
def inbox_row(
    base,
    sender,
    row,
    inbox,
    N: tl.constexpr,
    INBOX: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    ROW_WORDS: tl.constexpr,
):
    """Where a row begins in the workspace at `base`, as sent by the rank `sender` after that workspace's."""
    slot = inbox.to(tl.int64) * (N - 1) + (sender - 1)
    return base + INBOX + (slot * MAX_ROWS + row) * (ROW_WORDS * 8)


@triton.jit
def send_to_all(
    words,
    table,
    row,
    index,
    live,
    inbox,
    N: tl.constexpr,
    INBOX: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    ROW_WORDS: tl.constexpr,
):
    """Push words [WORDS] into the inboxes of all other devices, at some places of a row."""
    for offset in tl.static_range(1, N):
        # To the one `offset` ranks after me, I am the one N - offset after it.
        base = workspace_address(table, offset)
        start = inbox_row(base, N - offset, row, inbox, N, INBOX, MAX_ROWS, ROW_WORDS)
        send_words(start + index * 8, words, live)


@triton.jit
def owner_offset(table, row, N: tl.constexpr):
    """How many ranks after me the owner of a row is; 0 if it is me."""
    return ((row % N).to(tl.int32) - tl.load(table + 2 * N) + N) % N


@triton.jit
def empty_last(
    table,
    row,
    last,
    WORDS: tl.constexpr,
    N: tl.constexpr,
    INBOX: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    ROW_WORDS: tl.constexpr,
):
    """Empty what the last call of a row received: a row of all others, or in two shots of its owner, if that is not me.
    It may have been of any size."""
    base = workspace_address(table, 0)
    owner = owner_offset(table, row, N)
    of_owner = (last >= TOOK_TWO_SHOTS) & (owner != 0)
    chunks: tl.constexpr = (ROW_WORDS + WORDS - 1) // WORDS
    # One loop that is not unrolled: all addresses at once would take too many registers.
    for i in range(tl.where(of_owner, owner, 1) * chunks, tl.where(of_owner, owner + 1, N) * chunks):
        start = inbox_row(base, i // chunks, row, last % TOOK_TWO_SHOTS, N, INBOX, MAX_ROWS, ROW_WORDS)
        index = i % chunks * WORDS + tl.arange(0, WORDS)
        empty_words(start + index * 8, index < ROW_WORDS)


@triton.jit
def send_to_owner(
    words,
    table,
    row,
    index,
    live,
    inbox,
    N: tl.constexpr,
    INBOX: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    ROW_WORDS: tl.constexpr,
):
    """Push words [WORDS] into the inbox of the row's owner, unless that is me."""
    owner = owner_offset(table, row, N)
    base = workspace_address(table, 0)
    # All are read and one is chosen: none has to be waited for until it is known which.
    for offset in tl.static_range(1, N):
        base = tl.where(owner == offset, workspace_address(table, offset), base)
    start = inbox_row(base, N - owner, row, inbox, N, INBOX, MAX_ROWS, ROW_WORDS)
    send_words(start + index * 8, words, tl.where(owner == 0, 0, live))


@triton.jit
def send_row(
    parts,
    table,
    row,
    inbox,
    dtype: tl.constexpr,
    TWO_SHOT: tl.constexpr,
    D: tl.constexpr,
    PARTS: tl.constexpr,
    STRIDE: tl.constexpr,
    WORDS: tl.constexpr,
    CHUNKS: tl.constexpr,
    N: tl.constexpr,
    INBOX: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    ROW_WORDS: tl.constexpr,
):
    """Push a whole row, before anything is waited for. What this device has of its last chunk: all, if it is one."""
    V: tl.constexpr = 64 // dtype.primitive_bitwidth
    for chunk in tl.static_range(CHUNKS):
        index = chunk * WORDS + tl.arange(0, WORDS)
        d = index[:, None] * V + tl.arange(0, V)[None, :]
        own = load_sum(parts + row * D + d, d < D, dtype, PARTS, STRIDE)
        words = words_of(own, dtype)
        live = (index * V < D).to(tl.int32)
        if TWO_SHOT:
            send_to_owner(words, table, row, index, live, inbox, N, INBOX, MAX_ROWS, ROW_WORDS)
        else:
            send_to_all(words, table, row, index, live, inbox, N, INBOX, MAX_ROWS, ROW_WORDS)
    return own


@triton.jit
def sum_of_all(
    own,
    table,
    row,
    index,
    live,
    inbox,
    polls,
    dtype: tl.constexpr,
    TOGETHER: tl.constexpr,
    N: tl.constexpr,
    INBOX: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    ROW_WORDS: tl.constexpr,
):
    """The sum [WORDS, V] of all devices' `own`, added in float32 in the order of ranks: the same bits on all."""
    rank = tl.load(table + 2 * N)
    base = workspace_address(table, 0)
    error = error_word(table, N).to(tl.int64)
    words = words_of(own, dtype)
    total = tl.zeros(own.shape, tl.float32)
    for r in tl.static_range(N):
        theirs = words
        if r != rank:
            start = inbox_row(base, (r - rank + N) % N, row, inbox, N, INBOX, MAX_ROWS, ROW_WORDS)
            theirs = receive_words(start + index * 8, live, polls, error, TOGETHER)
        total += values_of(theirs, dtype)
    return total.to(dtype)


@triton.jit
def sum_over_devices(
    own,
    table,
    row,
    index,
    live,
    inbox,
    polls,
    dtype: tl.constexpr,
    TWO_SHOT: tl.constexpr,
    TOGETHER: tl.constexpr,
    N: tl.constexpr,
    INBOX: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    ROW_WORDS: tl.constexpr,
):
    """`sum_of_all`, after `send_row`: taken here, or in two shots where the row is mine, and else from its owner."""
    if TWO_SHOT:
        owner = owner_offset(table, row, N)
        if owner == 0:
            total = sum_of_all(
                own, table, row, index, live, inbox, polls, dtype, TOGETHER, N, INBOX, MAX_ROWS, ROW_WORDS
            )
            words = words_of(total, dtype)
            # Even if a wait was given up, so that the others need not wait as long: the exchange tells them.
            send_to_all(words, table, row, index, live, inbox, N, INBOX, MAX_ROWS, ROW_WORDS)
        else:
            error = error_word(table, N).to(tl.int64)
            start = inbox_row(workspace_address(table, 0), owner, row, inbox, N, INBOX, MAX_ROWS, ROW_WORDS)
            words = receive_words(start + index * 8, live, polls, error, TOGETHER)
        summed = values_of(words, dtype).to(dtype)
    else:
        summed = sum_of_all(own, table, row, index, live, inbox, polls, dtype, TOGETHER, N, INBOX, MAX_ROWS, ROW_WORDS)
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
    WORDS: tl.constexpr,
    CHUNKS: tl.constexpr,
    TOGETHER: tl.constexpr,
    N: tl.constexpr,
    COUNTERS: tl.constexpr,
    INBOX: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    ROW_WORDS: tl.constexpr,
    POLLS: tl.constexpr,
):
    """Row program_id(0) of the sum over parts and devices. Grid (T,). STRIDE is T * D where there are several parts.

    A row is CHUNKS times WORDS words.
    """
    dtype: tl.constexpr = out.dtype.element_ty
    V: tl.constexpr = 64 // dtype.primitive_bitwidth
    row = tl.program_id(0).to(tl.int64)
    counter, last, inbox, polls = begin_row(table, row, N, COUNTERS, POLLS)
    own = send_row(
        parts, table, row, inbox, dtype, TWO_SHOT, D, PARTS, STRIDE, WORDS, CHUNKS, N, INBOX, MAX_ROWS, ROW_WORDS
    )
    empty_last(table, row, last, WORDS, N, INBOX, MAX_ROWS, ROW_WORDS)
    for chunk in tl.static_range(CHUNKS):
        index = chunk * WORDS + tl.arange(0, WORDS)
        d = index[:, None] * V + tl.arange(0, V)[None, :]
        if CHUNKS > 1:
            own = load_sum(parts + row * D + d, d < D, dtype, PARTS, STRIDE)
        live = (index * V < D).to(tl.int32)
        total = sum_over_devices(
            own, table, row, index, live, inbox, polls, dtype, TWO_SHOT, TOGETHER, N, INBOX, MAX_ROWS, ROW_WORDS
        )
        tl.store(out + row * D + d, total, mask=d < D)
    end_row(counter, inbox, TWO_SHOT)


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
    WORDS: tl.constexpr,
    CHUNKS: tl.constexpr,
    TOGETHER: tl.constexpr,
    N: tl.constexpr,
    COUNTERS: tl.constexpr,
    INBOX: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    ROW_WORDS: tl.constexpr,
    POLLS: tl.constexpr,
):
    """As `all_reduce_kernel`; the sum is added to x, to x_out, and the norm of that goes to normed_out. The norm's
    weight is row weight_row [1] of weight [N, D]."""
    dtype: tl.constexpr = x_out.dtype.element_ty
    V: tl.constexpr = 64 // dtype.primitive_bitwidth
    row = tl.program_id(0).to(tl.int64)
    counter, last, inbox, polls = begin_row(table, row, N, COUNTERS, POLLS)
    if CHUNKS == 1:
        weight += tl.load(weight_row).to(tl.int64) * D
        # Under way while this device sends and waits.
        index = tl.arange(0, WORDS)
        d = index[:, None] * V + tl.arange(0, V)[None, :]
        stream = tl.load(x + row * D + d, mask=d < D, other=0.0)
    own = send_row(
        parts, table, row, inbox, dtype, TWO_SHOT, D, PARTS, STRIDE, WORDS, CHUNKS, N, INBOX, MAX_ROWS, ROW_WORDS
    )
    empty_last(table, row, last, WORDS, N, INBOX, MAX_ROWS, ROW_WORDS)
    if CHUNKS == 1:
        # Not before anything is sent: it waits for the row's number.
        scale = tl.load(weight + d, mask=d < D, other=0.0)
    squares = tl.zeros([WORDS, V], tl.float32)
    for chunk in tl.static_range(CHUNKS):
        index = chunk * WORDS + tl.arange(0, WORDS)
        d = index[:, None] * V + tl.arange(0, V)[None, :]
        if CHUNKS > 1:
            stream = tl.load(x + row * D + d, mask=d < D, other=0.0)
            own = load_sum(parts + row * D + d, d < D, dtype, PARTS, STRIDE)
        live = (index * V < D).to(tl.int32)
        # In the dtype of the stream, as if the sum were the product itself.
        added = sum_over_devices(
            own, table, row, index, live, inbox, polls, dtype, TWO_SHOT, TOGETHER, N, INBOX, MAX_ROWS, ROW_WORDS
        )
        stream = (stream.to(tl.float32) + added.to(tl.float32)).to(dtype)
        tl.store(x_out + row * D + d, stream, mask=d < D)
        squares += stream.to(tl.float32) * stream.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(tl.sum(squares, 1), 0) / D + eps)
    if CHUNKS > 1:
        # All threads have written their part of the stream.
        tl.debug_barrier()
        weight += tl.load(weight_row).to(tl.int64) * D
    for chunk in tl.static_range(CHUNKS):
        index = chunk * WORDS + tl.arange(0, WORDS)
        d = index[:, None] * V + tl.arange(0, V)[None, :]
        if CHUNKS > 1:
            stream = tl.load(x_out + row * D + d, mask=d < D, other=0.0)
            scale = tl.load(weight + d, mask=d < D, other=0.0)
        tl.store(
            normed_out + row * D + d, scale_normed(stream.to(tl.float32) * inverse, scale, dtype, KIND), mask=d < D
        )
    end_row(counter, inbox, TWO_SHOT)


@triton.jit
def all_to_all_kernel(
    values,
    table,
    out,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    PIECES: tl.constexpr,
    WORDS: tl.constexpr,
    CHUNKS: tl.constexpr,
    TOGETHER: tl.constexpr,
    N: tl.constexpr,
    COUNTERS: tl.constexpr,
    INBOX: tl.constexpr,
    MAX_ROWS: tl.constexpr,
    ROW_WORDS: tl.constexpr,
    POLLS: tl.constexpr,
):
    """A piece of a row of out [ROWS, N * D] from each device's values [N * ROWS, D]. Grid (ROWS, PIECES).

    A piece is what an inbox has room for as one row: CHUNKS times WORDS words, of which ROW_WORDS are used. Waits that
    were given up leave values of no meaning.
    """
    dtype: tl.constexpr = out.dtype.element_ty
    V: tl.constexpr = 64 // dtype.primitive_bitwidth
    row = tl.program_id(0).to(tl.int64)
    place = row * PIECES + tl.program_id(1)
    first = tl.program_id(1) * ROW_WORDS * V
    rank = tl.load(table + 2 * N)
    base = workspace_address(table, 0)
    error = error_word(table, N).to(tl.int64)
    counter, last, inbox, polls = begin_row(table, place, N, COUNTERS, POLLS)
    for offset in tl.static_range(1, N):
        # As in send_to_all, but other values for each device: its share of the rows.
        theirs = values + (((rank + offset) % N) * ROWS + row) * D
        start = inbox_row(workspace_address(table, offset), N - offset, place, inbox, N, INBOX, MAX_ROWS, ROW_WORDS)
        for chunk in tl.static_range(CHUNKS):
            index = chunk * WORDS + tl.arange(0, WORDS)
            d = first + index[:, None] * V + tl.arange(0, V)[None, :]
            words = words_of(tl.load(theirs + d, mask=d < D, other=0.0), dtype)
            live = ((index < ROW_WORDS) & (first + index * V < D)).to(tl.int32)
            send_words(start + index * 8, words, live)
    empty_last(table, place, last, WORDS, N, INBOX, MAX_ROWS, ROW_WORDS)
    for r in tl.static_range(N):
        for chunk in tl.static_range(CHUNKS):
            index = chunk * WORDS + tl.arange(0, WORDS)
            d = first + index[:, None] * V + tl.arange(0, V)[None, :]
            inside = (index < ROW_WORDS)[:, None] & (d < D)
            live = ((index < ROW_WORDS) & (first + index * V < D)).to(tl.int32)
            if r == rank:
                received = tl.load(values + (rank * ROWS + row) * D + d, mask=inside, other=0.0).to(tl.float32)
            else:
                start = inbox_row(base, (r - rank + N) % N, place, inbox, N, INBOX, MAX_ROWS, ROW_WORDS)
                received = values_of(receive_words(start + index * 8, live, polls, error, TOGETHER), dtype)
            tl.store(out + row * (N * D) + r * D + d, received.to(dtype), mask=inside)
    end_row(counter, inbox, False)


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
            theirs = receive_lines(base + INBOX + line * 16, epoch, live, polls, error)
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
