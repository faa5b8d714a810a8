"""A process that loads a server: `python -m jaxserve.bench.load_client`, started by `jaxserve.bench.load`.

One line of JSON comes on standard input (LoadJob), then an empty one when the clock starts. JSON lines go to standard
output: Ready, Progress now and then, and one LoadResult. All processes of a machine share the monotonic clock, so their
times can be put together.
"""

import asyncio
import contextlib
import gc
import resource
import sys
import time
from collections.abc import AsyncIterator, Iterator

import msgspec
import uvloop

from jaxserve.bench.figures import RequestTimes
from jaxserve.bench.workload import RequestPlan, exact_length, random_prompts
from jaxserve.client import AsyncClient, RetryPolicy, RpcError

PROGRESS_INTERVAL_S = 0.5
# How often the delay of the event loop itself is measured.
LAG_INTERVAL_S = 0.02
# New objects between two collections of garbage.
GC_THRESHOLD = 50_000


class LoadJob(msgspec.Struct, kw_only=True):
    """What one process sends.

    Attributes:
        target: the server.
        plans: its requests. Each is sent at its time, or later if `concurrency` are in flight.
        vocab_size: of the served model.
        seed: of the prompts.
        concurrency: most requests in flight; None is no limit.
        num_channels: connections, used in turn. A server with several front ends sees to one connection in one of them.
        detokenize: ask for text too.
        time_limit: seconds after which requests that are not finished are given up.
    """

    target: str
    plans: list[RequestPlan]
    vocab_size: int
    seed: int = 0
    concurrency: int | None = None
    num_channels: int = 1
    detokenize: bool = False
    time_limit: float = 3600.0


class Ready(msgspec.Struct, tag=True):
    """Connected, prompts made; waits for the start."""


class Progress(msgspec.Struct, tag=True):
    """Requests that have ended so far."""

    num_done: int


class LoadResult(msgspec.Struct, tag=True, kw_only=True):
    """What came of it.

    Attributes:
        times: of each answer that came whole.
        failures: the error of each request that failed.
        loop_lag: seconds by which this process's event loop was late, sampled; its share of the latencies.
        cpu_seconds: CPU time spent from start to end.
    """

    times: list[RequestTimes] = []
    failures: list[str] = []
    loop_lag: list[float] = []
    cpu_seconds: float = 0.0


FromLoadClient = Ready | Progress | LoadResult


class _LoadClient:
    def __init__(self, job: LoadJob, clients: list[AsyncClient]) -> None:
        self._job = job
        self._clients = clients
        self._prompts = random_prompts(job.plans, job.vocab_size, job.seed)
        self.result = LoadResult()

    @property
    def num_done(self) -> int:
        return len(self.result.times) + len(self.result.failures)

    async def run(self) -> None:
        started = time.monotonic()
        pending = iter(enumerate(self._job.plans))
        num_workers = min(self._job.concurrency or len(self._job.plans), len(self._job.plans))
        try:
            async with asyncio.timeout(self._job.time_limit), asyncio.TaskGroup() as group:
                for _ in range(num_workers):
                    group.create_task(self._worker(pending, started))
        except TimeoutError:
            missing = len(self._job.plans) - self.num_done
            self.result.failures += [f"not finished after {self._job.time_limit:g} s"] * missing

    async def _worker(self, pending: Iterator[tuple[int, RequestPlan]], started: float) -> None:
        for i, plan in pending:
            if (wait := started + plan.arrival - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            times = RequestTimes(num_prompt_tokens=plan.input_len)
            client = self._clients[i % len(self._clients)]
            try:
                async with client.generate_stream(self._prompts[i], exact_length(plan, self._job.detokenize)) as stream:
                    async for delta in stream:
                        times.add(len(delta.token_ids))
            except RpcError as error:
                self.result.failures.append(str(error))
                continue
            self.result.times.append(times)

    async def watch_lag(self) -> None:
        while True:
            due = time.monotonic() + LAG_INTERVAL_S
            await asyncio.sleep(LAG_INTERVAL_S)
            self.result.loop_lag.append(max(0.0, time.monotonic() - due))

    async def report(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL_S)
            write_line(Progress(self.num_done))


@contextlib.asynccontextmanager
async def _connected(job: LoadJob) -> AsyncIterator[list[AsyncClient]]:
    async with contextlib.AsyncExitStack() as stack:
        # gRPC shares connections between channels to one target, unless each has a pool of its own.
        options = [("grpc.use_local_subchannel_pool", 1)]
        once = RetryPolicy(max_attempts=1)
        clients = [AsyncClient(job.target, retry=once, options=options) for _ in range(job.num_channels)]
        for client in clients:
            await stack.enter_async_context(client)
            await client.health()
        yield clients


async def _run(job: LoadJob) -> LoadResult:
    async with _connected(job) as clients:
        load = _LoadClient(job, clients)
        # A collection in the middle would look like a late token.
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        write_line(Ready())
        await asyncio.to_thread(sys.stdin.readline)
        cpu = _cpu_seconds()
        others = [asyncio.create_task(load.watch_lag()), asyncio.create_task(load.report())]
        await load.run()
        for task in others:
            task.cancel()
        load.result.cpu_seconds = _cpu_seconds() - cpu
    return load.result


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def write_line(message: object) -> None:
    """Write a message to standard output as one line of JSON, however long it is.

    Not by print: under PYTHONUNBUFFERED its one write may stop short, and what is left would be lost.
    """
    with open(sys.stdout.fileno(), "wb", closefd=False) as output:
        output.write(msgspec.json.encode(message) + b"\n")


def main() -> None:
    """Read the job, run it, print the result."""
    job = msgspec.json.decode(sys.stdin.readline(), type=LoadJob)
    try:
        write_line(uvloop.run(_run(job)))
    except RpcError as error:
        sys.exit(f"{job.target}: {error}")


if __name__ == "__main__":
    main()
