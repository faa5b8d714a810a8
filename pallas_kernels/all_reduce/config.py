"""Where the kernels are used, and how their programs are cut. Limits are reasoned, not tuned."""

from dataclasses import dataclass

# Every device sends its rows to all others whole, so the bytes on the wire grow with their number; collectives that
# send parts only win beyond this many bytes of rows, divided by the devices.
ONE_SHOT_BYTES = 8 << 20
MAX_ONE_SHOT_ROWS = 512
# Rows of an exchange of maxima: sequences of a step.
MAX_EXCHANGE_ROWS = 4096
EXCHANGE_BLOCK = 128
# Looks at a line before its sender is given up: several seconds. A step may begin on one GPU long before it does on
# another, for instance while XLA tries kernels there.
POLLS = 1 << 25
# A line carries 8 bytes of data.
LINE_DATA_BYTES = 8

MAX_WARPS = 32  # of a program
# That a thread has, of rows taken whole: with fewer threads, more programs find room on a multiprocessor.
LINES_A_THREAD = 2
# Lines that a program holds at a time, two for each of its threads at most. Longer rows are taken in chunks, and of
# the longest the chunks are smaller: there are registers for no more.
MAX_CHUNK_LINES = 2048
LONG_ROW_LINES = 4096
LONG_ROW_CHUNK_LINES = 1024


@dataclass(frozen=True)
class RowConfig:
    """How one row is cut.

    Attributes:
        lines: lines of a chunk, a power of two.
        chunks: chunks of a row.
        num_warps: warps of the program that works for the row.
        together: lines that a thread waits for at a time, so that their latencies overlap: 1 or 2.
    """

    lines: int
    chunks: int
    num_warps: int
    together: int


def one_shot_rows(row_bytes: int, num_devices: int) -> int:
    """Rows up to which the kernels are used; above, XLA's collective is.

    Args:
        row_bytes: of a row, in the dtype of the residual stream.
        num_devices: N.
    """
    return min(MAX_ONE_SHOT_ROWS, ONE_SHOT_BYTES // num_devices // row_bytes)


def row_config(row_bytes: int) -> RowConfig:
    """How to cut rows of `row_bytes`, a multiple of LINE_DATA_BYTES."""
    total = row_bytes // LINE_DATA_BYTES
    most = MAX_CHUNK_LINES if total <= LONG_ROW_LINES else LONG_ROW_CHUNK_LINES
    lines = max(32, min(most, 1 << (total - 1).bit_length()))
    wanted = LINES_A_THREAD if lines >= total else 1
    num_warps = max(1, min(MAX_WARPS, lines // (32 * wanted)))
    return RowConfig(lines, -(-total // lines), num_warps, lines // (32 * num_warps))
