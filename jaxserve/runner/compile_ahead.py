"""Compiling many buckets: in parallel threads before serving, and one after the other while serving.

XLA compiles outside Python's lock; only tracing takes turns.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from jaxserve.progress import ProgressCallback
from jaxserve.runner.buckets import Bucket

logger = logging.getLogger(__name__)

# A compilation in the background waits until no step has begun for so long, but not longer than PATIENCE_S: XLA times
# candidate kernels, which goes wrong beside other work.
IDLE_S = 0.2
PATIENCE_S = 5.0


def compile_all[Step](
    buckets: Sequence[Bucket], compile_one: Callable[[Bucket], Step], on_progress: ProgressCallback
) -> dict[Bucket, Step]:
    """Compile every bucket; the first failure is raised and the rest given up."""
    what = "Compiling step shapes"
    on_progress(what, 0, len(buckets))
    steps: dict[Bucket, Step] = {}
    with ThreadPoolExecutor(max_workers=max(1, min(len(buckets), os.cpu_count() or 1))) as pool:
        # Large ones first: they take longest.
        futures = {pool.submit(compile_one, bucket): bucket for bucket in sorted(buckets, reverse=True)}
        try:
            for future in as_completed(futures):
                steps[futures[future]] = future.result()
                on_progress(what, len(steps), len(buckets))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return steps


class BackgroundCompiler[Step]:
    """Compiles buckets one after the other in a thread of its own, while others are in use.

    A failure is logged and ends it: steps then go on running in the buckets there are.

    Args:
        buckets: in the order to compile them.
        compile_one: thread-safe.
        last_used: when a step was last begun, on the clock of `time.monotonic`.
    """

    def __init__(
        self, buckets: Sequence[Bucket], compile_one: Callable[[Bucket], Step], last_used: Callable[[], float]
    ) -> None:
        self._buckets = list(buckets)
        self._compile_one = compile_one
        self._last_used = last_used
        self._finished: dict[Bucket, Step] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="compile")
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether there is more to come."""
        return self._thread.is_alive()

    def take_finished(self) -> dict[Bucket, Step]:
        """What has been compiled since the last call."""
        if not self._finished:
            return {}
        with self._lock:
            finished, self._finished = self._finished, {}
        return finished

    def close(self, timeout: float) -> bool:
        """Stop after the compilation under way; False if that takes longer than `timeout` seconds."""
        self._stop.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            for bucket in self._buckets:
                self._wait_for_idleness()
                if self._stop.is_set():
                    return
                step = self._compile_one(bucket)
                with self._lock:
                    self._finished[bucket] = step
            logger.info("all %d further step shapes are compiled", len(self._buckets))
        except Exception:
            logger.exception("compiling in the background has failed; steps run in the shapes compiled before")

    def _wait_for_idleness(self) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while not self._stop.is_set() and (now := time.monotonic()) < give_up:
            if now - self._last_used() > IDLE_S:
                return
            self._stop.wait(IDLE_S / 4)
