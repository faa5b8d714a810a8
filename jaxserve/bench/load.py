"""Load a server from several processes, so that the load is not what is measured."""

import asyncio
import contextlib
import sys
from collections.abc import Callable

import msgspec

from jaxserve.bench.load_client import FromLoadClient, LoadJob, LoadResult, Progress, Ready
from jaxserve.errors import JaxserveError
from jaxserve.progress import ProgressCallback, no_progress

# Connecting and drawing the prompts may take this long.
READY_TIMEOUT_S = 60.0
# After its own time limit a process gets this long to write its result.
RESULT_GRACE_S = 30.0
# A result is one line.
MAX_LINE_BYTES = 1 << 28

_DECODER: msgspec.json.Decoder[FromLoadClient] = msgspec.json.Decoder(FromLoadClient)


def split_job(job: LoadJob, num_processes: int) -> list[LoadJob]:
    """The job in as many parts: every n-th request each, and as even a share of the concurrency."""
    count = max(1, min(num_processes, len(job.plans), job.concurrency or len(job.plans)))
    parts = []
    for i in range(count):
        share = None if job.concurrency is None else job.concurrency // count + (i < job.concurrency % count)
        parts.append(
            msgspec.structs.replace(
                job, plans=job.plans[i::count], concurrency=share, seed=job.seed * num_processes + i
            )
        )
    return parts


async def run_load(
    job: LoadJob, num_processes: int, report: ProgressCallback = no_progress, what: str = "Requests"
) -> list[LoadResult]:
    """Send the job's requests from several processes that start at the same moment.

    Args:
        job: what to send, in all.
        num_processes: over how many processes it is spread.
        report: told how many requests have ended.
        what: names the work there.

    Returns:
        What came of it in each process.

    Raises:
        JaxserveError: a process failed; its message is on standard error.
    """
    parts = split_job(job, num_processes)
    processes = [_LoadProcess(part) for part in parts]
    done = [0] * len(parts)

    def progress(i: int, num_done: int) -> None:
        done[i] = num_done
        report(what, sum(done), len(job.plans))

    async with contextlib.AsyncExitStack() as stack:
        for process in processes:
            await stack.enter_async_context(process)
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await asyncio.gather(*(process.ready() for process in processes))
        except TimeoutError:
            raise JaxserveError(f"the load processes were not ready after {READY_TIMEOUT_S:g} s") from None
        report(what, 0, len(job.plans))
        for process in processes:
            process.start()
        async with asyncio.timeout(job.time_limit + RESULT_GRACE_S):
            return await asyncio.gather(
                *(process.result(lambda n, i=i: progress(i, n)) for i, process in enumerate(processes))  # type: ignore[misc]
            )


class _LoadProcess:
    """One process of `jaxserve.bench.load_client`; `async with` starts and ends it."""

    def __init__(self, job: LoadJob) -> None:
        self._job = job

    async def __aenter__(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "jaxserve.bench.load_client"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_LINE_BYTES,
        )
        self._write(msgspec.json.encode(self._job) + b"\n")

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def ready(self) -> None:
        """Wait until it could start."""
        await self._next()

    def start(self) -> None:
        """Start the clock."""
        self._write(b"\n")

    async def result(self, progress: Callable[[int], None]) -> LoadResult:
        """What came of it."""
        while True:
            match await self._next():
                case Progress(num_done):
                    progress(num_done)
                case LoadResult() as result:
                    progress(len(result.times) + len(result.failures))
                    return result
                case Ready():
                    pass

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)

    async def _next(self) -> FromLoadClient:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise JaxserveError(f"a load process ended with exit code {await self._process.wait()}")
        try:
            return _DECODER.decode(line)
        except msgspec.DecodeError as error:
            raise JaxserveError(f"a load process wrote {line[:80]!r}, {len(line)} bytes in all: {error}") from error
