"""Compiling many buckets: in parallel threads before serving, and one after the other while serving.

XLA compiles outside Python's lock; only tracing takes turns.
"""

import logging
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from jaxserve.progress import ProgressCallback
from jaxserve.runner.buckets import Bucket

logger = logging.getLogger(__name__)

# What no step has asked for is compiled when no step has begun for so long: XLA times candidate kernels, which goes
# wrong beside other work and disturbs it.
IDLE_S = 2.0
# While a thread traces, others wait for Python's lock at most so long: a step takes a few milliseconds.
SWITCH_INTERVAL_S = 0.00005


def compile_all[Step](
    buckets: Sequence[Bucket], compile_one: Callable[[Bucket], Step], on_progress: ProgressCallback
) -> dict[Bucket, Step]:
    """Compile every bucket; the first failure is raised and the rest given up.

    Buckets of as many tokens are compiled one after the other: they have the same products, and XLA remembers which
    kernels it chose for them.
    """
    what = "Compiling step shapes"
    on_progress(what, 0, len(buckets))
    steps: dict[Bucket, Step] = {}
    lock = threading.Lock()
    failed = threading.Event()
    alike: dict[int, list[Bucket]] = defaultdict(list)
    # Large ones first: they take longest.
    for bucket in sorted(buckets, reverse=True):
        alike[bucket.num_tokens].append(bucket)

    def compile_alike(group: list[Bucket]) -> None:
        for bucket in group:
            if failed.is_set():
                return
            try:
                step = compile_one(bucket)
            except BaseException:
                failed.set()
                raise
            with lock:
                steps[bucket] = step
                on_progress(what, len(steps), len(buckets))

    with ThreadPoolExecutor(max_workers=max(1, min(len(alike), os.cpu_count() or 1))) as pool:
        futures = [pool.submit(compile_alike, group) for group in alike.values()]
        try:
            for future in futures:
                future.result()
        except BaseException:
            failed.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return steps


class BackgroundCompiler[Step]:
    """Compiles buckets one after the other in a thread of its own, while others are in use.

    Those that steps would have run in come first, and at once; others while no steps run. A failure is logged and ends
    it: steps then go on running in the buckets there are.

    Args:
        buckets: in the order to compile them.
        compile_one: thread-safe.
        last_used: when a step was last begun, on the clock of `time.monotonic`.
    """

    def __init__(
        self, buckets: Sequence[Bucket], compile_one: Callable[[Bucket], Step], last_used: Callable[[], float]
    ) -> None:
        self._num_buckets = len(buckets)
        # In order, and without two of one.
        self._waiting = dict.fromkeys(buckets)
        self._wanted: dict[Bucket, None] = {}
        self._under_way: Bucket | None = None
        # Threads that wait for what steps asked for, and when the last of them had it.
        self._num_waiting = 0
        self._released = float("-inf")
        self._compile_one = compile_one
        self._last_used = last_used
        self._finished: dict[Bucket, Step] = {}
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="compile")
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether there is more to come."""
        return self._thread.is_alive()

    def want(self, bucket: Bucket) -> None:
        """A step would have run in this bucket: compile it next, if it is not compiled yet."""
        if bucket not in self._waiting or bucket in self._wanted:
            return
        with self._lock:
            if bucket in self._waiting:
                self._wanted[bucket] = None
                self._wake.notify_all()

    def take_finished(self) -> dict[Bucket, Step]:
        """What has been compiled since the last call."""
        if not self._finished:
            return {}
        with self._lock:
            finished, self._finished = self._finished, {}
        return finished

    def close(self, timeout: float) -> bool:
        """Stop after the compilation under way; False if that takes longer than `timeout` seconds."""
        with self._lock:
            self._stop = True
            self._wake.notify_all()
        return self.wait(timeout)

    def wait(self, timeout: float | None) -> bool:
        """Wait until all are compiled; False if that takes longer than `timeout` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def wait_for_wanted(self) -> bool:
        """Wait until all that steps asked for is compiled, and what is under way; whether there was anything.

        Nothing else is begun meanwhile, however long no step begins, nor in the next IDLE_S.
        """
        with self._lock:
            anything = bool(self._wanted or self._under_way)
            self._num_waiting += 1
            while (self._wanted or self._under_way) and self.is_running:
                self._wake.wait(IDLE_S / 4)
            self._num_waiting -= 1
            self._released = time.monotonic()
        return anything

    def _run(self) -> None:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        try:
            while (bucket := self._next()) is not None:
                step = self._compile_one(bucket)
                with self._lock:
                    self._finished[bucket] = step
                    self._under_way = None
                    self._wake.notify_all()
            if not self._stop:
                logger.info("all %d further step shapes are compiled", self._num_buckets)
        except Exception:
            logger.exception("compiling in the background has failed; steps run in the shapes compiled before")
        finally:
            sys.setswitchinterval(interval)

    def _next(self) -> Bucket | None:
        """The next bucket to compile, once it is wanted or the device has been idle; None at the end."""
        with self._lock:
            while self._waiting and not self._stop and not self._wanted:
                idle_since = max(self._last_used(), self._released)
                if not self._num_waiting and time.monotonic() - idle_since > IDLE_S:
                    break
                self._wake.wait(IDLE_S / 4)
            if self._stop or not self._waiting:
                return None
            bucket = next(iter(self._wanted or self._waiting))
            self._wanted.pop(bucket, None)
            del self._waiting[bucket]
            self._under_way = bucket
            return bucket
