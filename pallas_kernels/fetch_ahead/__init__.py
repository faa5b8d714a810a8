"""The weights of the next product, brought near while a kernel runs that leaves the memory idle.

Sums and norms of few rows wait for each other, or for other GPUs, and read next to nothing; attention of few
sequences reads little. Programs that their kernels have besides their own ask for the beginning of each row of the
weight that is multiplied next, and end: it arrives in the L2 cache meanwhile (as in PRESERVE, Yüzügüler et al. 2025,
arXiv:2501.08192). Off: it has not run on a GPU yet.
"""

import math
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from pallas_kernels.platform import is_hopper

# What is asked for of each weight; 0 for nothing. More than the cache holds beside what is in use would be for nothing.
FETCH_AHEAD_BYTES = int(os.environ.get("PALLAS_KERNELS_FETCH_AHEAD_MIB", "0")) << 20
# With more rows products read weights no faster than they multiply, and sums are no longer idle.
MAX_ROWS = 256
PROGRAMS = 128  # about one for each multiprocessor
LINE_BYTES = 128  # of the cache


@dataclass(frozen=True)
class FetchConfig:
    """What is asked for of a weight [N, D].

    Attributes:
        rows: N times parts, that begin `stride` bytes apart.
        stride: bytes from one part of a row to the next.
        size: bytes of each, from its beginning.
    """

    rows: int
    stride: int
    size: int


class Ahead(NamedTuple):
    """A weight [N, D], and what is asked for of it."""

    weight: jax.Array
    config: FetchConfig


def fetch_config(num_rows: int, columns: int, row_bytes: int, parts: int) -> FetchConfig | None:
    """What to ask for of the next weight; None for nothing.

    Args:
        num_rows: of the step.
        columns: N, of the product.
        row_bytes: of a row of the weight.
        parts: equal parts of a row that programs read at the same time.
    """
    if not 0 < num_rows <= MAX_ROWS or FETCH_AHEAD_BYTES == 0 or row_bytes % (parts * LINE_BYTES):
        return None
    size = FETCH_AHEAD_BYTES // (columns * parts) // LINE_BYTES * LINE_BYTES
    stride = row_bytes // parts
    return FetchConfig(columns * parts, stride, min(stride, max(LINE_BYTES, size)))


def fetched(num_rows: int, weight: jax.Array | None, *, one_part: bool = True) -> Ahead | None:
    """A weight that this device multiplies next, and what to ask for of it; None for nothing.

    Args:
        num_rows: of the step.
        weight: [..., D].
        one_part: as of `skinny_matmul`.
    """
    if weight is None or FETCH_AHEAD_BYTES == 0 or not is_hopper():
        return None
    # Only here: that package imports those that import this one.
    from pallas_kernels.skinny_matmul.config import parts_at_once

    columns, size = math.prod(weight.shape[:-1]), weight.shape[-1]
    parts = parts_at_once(num_rows, columns, size, one_part=one_part)
    config = fetch_config(num_rows, columns, size * weight.dtype.itemsize, parts)
    return None if config is None else Ahead(weight.reshape(columns, size), config)


def fetch_settings(ahead: Ahead | None, num_warps: int) -> dict[str, Any]:
    """What a kernel of so many warps a program is compiled for, to fetch or not."""
    config = FetchConfig(0, 0, 0) if ahead is None else ahead.config
    sizes = {"AHEAD_ROWS": config.rows, "AHEAD_STRIDE": config.stride, "AHEAD_BYTES": config.size}
    return sizes | {"THREADS": 32 * num_warps}
