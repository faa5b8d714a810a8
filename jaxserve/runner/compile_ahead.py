"""Compiling many buckets in parallel threads. XLA compiles outside Python's lock; only tracing takes turns."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from jaxserve.progress import ProgressCallback
from jaxserve.runner.buckets import Bucket


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
