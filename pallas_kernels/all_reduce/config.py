"""Where the kernels are used, and how their programs are cut. Limits are reasoned, not tuned."""

from dataclasses import dataclass

# Most rows of a call that sums, and bytes of them: beyond, XLA's collective wins.
MAX_ROWS = 512
MAX_SUM_BYTES = 4 << 20
# Over more than two devices. On four H100s 256 rows of 16 KiB took 104 µs, by XLA 53; 128 of them 28 and 41.
MAX_SUM_BYTES_OF_MANY = 2 << 20
# Of a device's inboxes for rows.
MAX_INBOX_BYTES = 96 << 20
# Sums take two shots where each device then sends so many bytes less, since they also take a second hop: about 1.5 µs,
# and NVLink sends 400 GB/s.
TWO_SHOT_SAVED_BYTES = 600_000
# Of one device's columns of all rows, to be exchanged for rows; nearly all of them are sent.
MAX_EXCHANGE_BYTES = 8 << 20
# Rows of an exchange of maxima: sequences of a step.
MAX_EXCHANGE_ROWS = 4096
EXCHANGE_BLOCK = 128
# Looks at a word before its sender is given up: several seconds. A step may begin on one GPU long before it does on
# another, for instance while XLA tries kernels there.
POLLS = 1 << 25
# Rows travel in words of so many bytes, of which no half is EMPTY: that is what an inbox is full of.
WORD_BYTES = 8
EMPTY = 0x8000_8000
# That calls take in turn: one is sent to, one may still be read elsewhere, and one is being emptied.
ROW_INBOXES = 3
# A row's counter is the number of the inbox that its last call took, and this more if that took two shots.
TOOK_TWO_SHOTS = 4
# Maxima travel in lines.
LINE_BYTES = 16

MAX_WARPS = 32  # of a program
# That a thread has, of rows taken whole: with fewer threads, more programs find room on a multiprocessor.
WORDS_A_THREAD = 2
# Words that a program holds at a time, two for each of its threads at most. Longer rows are taken in chunks, and of
# the longest the chunks are smaller: there are registers for no more.
MAX_CHUNK_WORDS = 2048
LONG_ROW_WORDS = 4096
LONG_ROW_CHUNK_WORDS = 1024


@dataclass(frozen=True)
class RowConfig:
    """How one row is cut.

    Attributes:
        words: words of a chunk, a power of two.
        chunks: chunks of a row.
        num_warps: warps of the program that works for the row.
        together: words that a thread waits for at a time, so that their latencies overlap: 1 or 2.
    """

    words: int
    chunks: int
    num_warps: int
    together: int


def max_kernel_rows(row_bytes: int, num_devices: int) -> int:
    """Rows up to which the kernels sum over devices; above, XLA's collective does.

    Args:
        row_bytes: of a row, in the dtype of the residual stream.
        num_devices: N.
    """
    # Inboxes hold a row of each other device. Where they are the limit, it is a power of two: with that the
    # longest rows' addresses take fewer registers, which are scarce with 8 devices.
    with_room = MAX_INBOX_BYTES // (ROW_INBOXES * (num_devices - 1) * row_bytes)
    most_bytes = MAX_SUM_BYTES if num_devices == 2 else MAX_SUM_BYTES_OF_MANY
    return min(MAX_ROWS, most_bytes // row_bytes, 1 << (with_room.bit_length() - 1))


def is_two_shot(num_rows: int, row_bytes: int, num_devices: int) -> bool:
    """Whether rows are summed by their owners, who send the sums, and not by all devices, to whom all rows are sent.

    Args:
        num_rows: of a call.
        row_bytes: of a row.
        num_devices: N. Two never do: one shot sends as little.
    """
    # In one shot a device sends each row N - 1 times; in two, 2 * (N - 1) / N times on average.
    saved = num_rows * row_bytes * (num_devices - 1) * (num_devices - 2) // num_devices
    return num_devices > 2 and saved >= TWO_SHOT_SAVED_BYTES


def row_config(row_bytes: int) -> RowConfig:
    """How to cut rows of `row_bytes`, a multiple of WORD_BYTES."""
    total = row_bytes // WORD_BYTES
    most = MAX_CHUNK_WORDS if total <= LONG_ROW_WORDS else LONG_ROW_CHUNK_WORDS
    words = max(32, min(most, 1 << (total - 1).bit_length()))
    wanted = WORDS_A_THREAD if words >= total else 1
    num_warps = max(1, min(MAX_WARPS, words // (32 * wanted)))
    return RowConfig(words, -(-total // words), num_warps, words // (32 * num_warps))
