"""Sequences that wait: for a place in the batch, or for their time to run out."""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from jaxserve.request import FinishReason
from jaxserve.scheduler.sequence import Sequence, SequenceState

# A heap is rebuilt without its dead entries when they outnumber the live ones by this much.
_SLACK = 64


class WaitingQueue:
    """Waiting sequences by (priority, arrival). A preempted one returns to the place its arrival gives it.

    Sequences that end while they wait are only counted out; their entries are dropped when they surface.
    """

    __slots__ = ("_heap", "_size")

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Sequence]] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        """The waiting sequences, in no particular order."""
        return (seq for _, seq in self._heap if seq.state is SequenceState.WAITING)

    def push(self, sequence: Sequence) -> None:
        """Add a waiting sequence."""
        heappush(self._heap, (sequence.order, sequence))
        self._size += 1

    def peek(self) -> Sequence | None:
        """The sequence whose turn it is; None if none waits."""
        heap = self._heap
        while heap and heap[0][1].state is SequenceState.FINISHED:
            heappop(heap)
        return heap[0][1] if heap else None

    def pop(self) -> None:
        """Remove the sequence that `peek` returned."""
        heappop(self._heap)
        self._size -= 1

    def count_out(self) -> None:
        """Take note that a waiting sequence has just been marked finished."""
        self._size -= 1
        if len(self._heap) > 2 * self._size + _SLACK:
            self._heap = [entry for entry in self._heap if _is_live(entry[1])]
            heapify(self._heap)


class DeadlineHeap:
    """When each sequence's time runs out, and how it then ends."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[tuple[float, tuple[int, int], FinishReason, Sequence]] = []

    def push(self, sequence: Sequence, *, now: float, timeout: float | None, num_live: int) -> None:
        """Note the earlier of the client's timeout and the sequence's own time limit, if it has either.

        Args:
            now: clock at submission, in seconds.
            timeout: seconds until the client gives up.
            num_live: unfinished sequences, to tell when dead entries outnumber them.
        """
        limit = sequence.params.time_limit
        if limit is not None and (timeout is None or limit <= timeout):
            heappush(self._heap, (now + limit, sequence.order, FinishReason.DEADLINE, sequence))
        elif timeout is not None:
            heappush(self._heap, (now + timeout, sequence.order, FinishReason.ABORT, sequence))
        if len(self._heap) > 2 * num_live + _SLACK:
            self._heap = [entry for entry in self._heap if _is_live(entry[3])]
            heapify(self._heap)

    def pop_expired(self, now: float) -> list[tuple[Sequence, FinishReason]]:
        """Remove and return the unfinished sequences whose time has run out."""
        heap = self._heap
        expired: list[tuple[Sequence, FinishReason]] = []
        while heap and heap[0][0] <= now:
            _, _, reason, sequence = heappop(heap)
            if _is_live(sequence):
                expired.append((sequence, reason))
        return expired


class AdmissionRate:
    """How fast waiting requests have lately been admitted, to tell refused ones when to come back.

    Args:
        window: seconds after which the count starts anew.
    """

    __slots__ = ("_admitted", "_start", "_window")

    def __init__(self, window: float = 30.0) -> None:
        self._window = window
        self._start = float("-inf")
        self._admitted = 0

    def count(self) -> None:
        """Note one admission."""
        self._admitted += 1

    def retry_after(self, num_waiting: int, *, now: float) -> float:
        """Seconds in which a tenth of the queue should have left it, from 0.1 to 60."""
        elapsed = now - self._start
        interval = elapsed / self._admitted if self._admitted else max(elapsed, 1.0)
        return min(60.0, max(0.1, interval * max(1, num_waiting // 10)))

    def tick(self, now: float) -> None:
        """Take note of the time; cheap enough for every step."""
        if now - self._start > self._window:
            self._start = now
            self._admitted = 0


def _is_live(sequence: Sequence) -> bool:
    return sequence.state is not SequenceState.FINISHED
