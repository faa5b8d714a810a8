"""Runs the all-reduce kernels in Triton's interpreter, rank after rank, over workspaces in this process's memory.

The interpreter knows no assembly: sending and receiving a word or a line are replaced by plain stores and loads of the
same bytes. Ranks that run one after the other cannot wait for each other, so each call is made three times, with
counters and error words as they were: once so that all have sent; again because a rank that received nothing tells the
others so in its next program, and because owners of rows send their sums only now; and once more so that all receive.
Only then words are not sent again.
"""

# mypy: ignore-errors
# The kernels are Triton's language, which only looks like Python.

from collections.abc import Callable
from contextlib import AbstractContextManager
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import triton
import triton.language as tl

import pallas_kernels.all_reduce.triton as launching
from pallas_kernels.all_reduce import Peers, WorkspaceLayout, config, kernels
from pallas_kernels.all_reduce.workspace import first_memory, first_table

EMPTY = tl.constexpr(config.EMPTY)
OF_EACH_RANK = {"parts", "values", "ids", "columns"}
# Other values in each call: what is left of an earlier one must not be taken for this one's. Four calls: the last finds
# the inbox of the first.
FACTORS = (-1, 7, 3, 1)


@triton.jit
def send_lines(address, word, epoch, live):
    half = address.to(tl.pointer_type(tl.int64))
    flag = epoch.to(tl.int64) << 32
    tl.store(half, (word & 0xFFFFFFFF) | flag, mask=live != 0)
    tl.store(half + 1, ((word >> 32) & 0xFFFFFFFF) | flag, mask=live != 0)


@triton.jit
def receive_lines(address, epoch, live, polls, error):
    half = address.to(tl.pointer_type(tl.int64))
    low = tl.load(half, mask=live != 0, other=0)
    high = tl.load(half + 1, mask=live != 0, other=0)
    seen = ((low >> 32) == epoch) & ((high >> 32) == epoch)
    missing = tl.max(tl.where(seen | (live == 0), 0, 1), 0)
    tl.store(error.to(tl.pointer_type(tl.int32)), missing, mask=missing != 0)
    return (low & 0xFFFFFFFF) | (high << 32)


@triton.jit
def send_words(address, word, live):
    tl.store(address.to(tl.pointer_type(tl.int64)), word, mask=live != 0)


@triton.jit
def send_no_words(address, word, live):
    pass


@triton.jit
def receive_words(address, live, polls, error, TOGETHER: tl.constexpr):
    word = tl.load(address.to(tl.pointer_type(tl.int64)), mask=live != 0, other=0)
    empty = ((word & 0xFFFFFFFF) == EMPTY) | (((word >> 32) & 0xFFFFFFFF) == EMPTY)
    missing = tl.max(tl.where(empty, 1, 0), 0)
    tl.store(error.to(tl.pointer_type(tl.int32)), missing, mask=missing != 0)
    return word


class Ranks:
    """Workspaces of some ranks, and calls of all of them."""

    def __init__(self, layout: WorkspaceLayout) -> None:
        self._layout = layout
        self.memory = [np.asarray(first_memory(layout)).copy() for _ in range(layout.num_devices)]
        self._sent = self.occupied()
        self.table = first_table([m.ctypes.data for m in self.memory], layout)

    def call(self, operation: Callable[..., list[jax.Array]], ranks: list[int]) -> list[list[np.ndarray]]:
        """The results of each of these ranks; the others do not take part."""
        before = self.table.copy()
        for attempt in range(3):
            last = attempt == 2
            kernels.send_words = send_no_words if last else send_words
            if last:
                self._sent |= self.occupied()
            results = []
            for rank in ranks:
                if attempt:
                    self.table[rank] = before[rank]
                # NumPy's, so that what the kernels write into it is kept.
                peers: Peers = Peers(self.table[rank : rank + 1], self._layout)
                results.append([np.asarray(a) for a in operation(rank, peers)])
        return results

    def senders(self) -> np.ndarray:
        """[ranks, max_rows]: how many ranks ever wrote into a rank's inboxes for a row."""
        return self._sent.any((1, 4)).sum(1)

    def last_inboxes(self) -> np.ndarray:
        """[ranks, inboxes, 1, max_rows]: which inbox each row's last call took, by the counters."""
        first = self._layout.row_counters
        last = self.table[:, first : first + self._layout.max_rows] % config.TOOK_TWO_SHOTS
        return (last[:, None] == np.arange(config.ROW_INBOXES)[:, None])[:, :, None]

    def occupied(self) -> np.ndarray:
        """[ranks, inboxes, N - 1, max_rows, words]: which halves of words of the inboxes for rows are not empty."""
        n, first = self._layout.num_devices, self._layout.row_inbox // 4
        shape = (config.ROW_INBOXES, n - 1, self._layout.max_rows, self._layout.row_bytes // 8 * 2)
        return np.stack([m[first : first + np.prod(shape)].reshape(shape) for m in self.memory]) != config.EMPTY


def summing_in_two_shots(chosen: bool) -> AbstractContextManager:
    """Whether rows are summed in two shots, whatever they are."""
    return mock.patch.object(config, "TWO_SHOT_SAVED_BYTES", 0 if chosen else 1 << 60)


def second_of_three(weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A norm's weight [D] among others [3, D], and which it is."""
    other = jnp.full_like(weight, jnp.nan)
    return jnp.stack([other, weight, other]), jnp.ones(1, jnp.int32)


def run(arrays: dict[str, np.ndarray], options: dict) -> tuple[np.ndarray, ...]:
    """Four calls on each rank, of the given rows.

    The second call has half of the rows, or of the columns where they are exchanged, so that rows are at different
    epochs. With `late`, the last rank makes it after the others, which gave it up. With `parts` and `values`, the last
    call chooses and the others sum. `two_shot` says of each call whether sums are taken in two shots. Results: those of
    the last call of rank 0, then of rank 1, and so on; `Ranks.senders`, with `count_senders`; the error words.
    """
    kernels.send_lines, kernels.receive_lines, kernels.receive_words = send_lines, receive_lines, receive_words
    (num_ranks,) = {arrays[name].shape[0] for name in OF_EACH_RANK & arrays.keys()}
    layout = WorkspaceLayout(num_ranks, options.pop("row_bytes"), options.pop("max_rows"), max_exchange_rows=16)
    late = options.pop("late", False)
    two_shot = options.pop("two_shot", [False] * len(FACTORS))
    count_senders = options.pop("count_senders", False)
    dtype = options.pop("dtype", "float32")
    ranks = Ranks(layout)
    for turn, factor in enumerate(FACTORS):
        rows = slice(None, None, 2) if turn == 1 else slice(None)

        def operation(
            rank: int, peers: Peers, turn: int = turn, factor: int = factor, rows: slice = rows
        ) -> list[jax.Array]:
            own = {name: jnp.asarray(a[rank]) for name, a in arrays.items() if name in OF_EACH_RANK}
            if "values" in arrays and ("parts" not in arrays or turn == len(FACTORS) - 1):
                chosen = launching.argmax_over_devices_triton(
                    own["values"][rows], own["ids"][rows], peers, polls=1, block=8
                )
                return [chosen]
            if "columns" in arrays:
                return [launching.all_to_all_triton(own["columns"][:, rows] * factor, peers, polls=1)]
            parts = own["parts"][:, rows] * factor
            if "x" not in arrays:
                return [launching.all_reduce_triton(parts, jnp.dtype(dtype), peers, polls=1)]
            x, weights = jnp.asarray(arrays["x"])[rows], second_of_three(jnp.asarray(arrays["weight"]))
            return list(launching.all_reduce_residual_norm_triton(x, parts, *weights, peers, polls=1, **options))

        together = list(range(num_ranks))
        with summing_in_two_shots(two_shot[turn]):
            if late and turn == 1:
                ranks.call(operation, together[:-1])
                ranks.call(operation, together[-1:])
            else:
                results = ranks.call(operation, together)
        if not late and (ranks.occupied().any(-1) & ~ranks.last_inboxes()).any():
            raise RuntimeError("what was received before the last call has not been emptied")
    errors = ranks.table[:, layout.error_word].copy()
    senders = (ranks.senders(),) if count_senders else ()
    return (*(array for of_rank in results for array in of_rank), *senders, errors)
