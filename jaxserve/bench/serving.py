"""One workload through the engine alone and through the server, and where the difference comes from."""

import asyncio
import sys
from dataclasses import dataclass

import msgspec

from jaxserve.bench.figures import RequestTimes, ServiceLevel, ServingFigures, Spread, steady_itl
from jaxserve.bench.load import run_load
from jaxserve.bench.load_client import LoadJob, LoadResult
from jaxserve.bench.offline import OfflineJob, OfflineResult, warm_up
from jaxserve.bench.server_process import ServerProcess
from jaxserve.bench.workload import RequestPlan
from jaxserve.errors import JaxserveError
from jaxserve.progress import ProgressCallback

# Warm-ups of a case over gRPC end when one takes more than this part of the time of the one before.
SAME_DURATION = 0.97
MAX_WARM_UPS = 4


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """Some requests, and how they are sent.

    Attributes:
        name: in tables.
        plans: the requests.
        rate: requests a second, if they arrive as a Poisson process.
    """

    name: str
    plans: list[RequestPlan]
    rate: float | None = None


class Measured(msgspec.Struct, kw_only=True):
    """What one case gave.

    Attributes:
        case: its name.
        over_grpc: whether the server was between.
        rate: requests a second that were sent, if they came as a Poisson process.
        figures: of all its requests.
        steady_itl: inter-token latency while all requests were being answered.
        failures: errors of the requests that failed, each kind once, with how often.
        cpu_utilization: of each of the server's processes, 1 being a whole core.
        client_utilization: of each process that sent requests.
        client_lag: by how much the event loops of those were late.
    """

    case: str
    over_grpc: bool
    figures: ServingFigures
    rate: float | None = None
    steady_itl: Spread | None = None
    failures: dict[str, int] = {}
    cpu_utilization: dict[str, float] = {}
    client_utilization: list[float] = []
    client_lag: Spread | None = None


class LatencyShares(msgspec.Struct, kw_only=True):
    """Where the 99th percentile of the inter-token latency over gRPC comes from, in milliseconds.

    The shares add up to `total`. Percentiles do not strictly add; each share is the difference that its stage makes.

    Attributes:
        case: which.
        step: the median step of the engine alone, while all requests decode.
        step_variation: its 99th percentile, over the median.
        server: what front ends and transport add to that.
        client: what the event loops of the measuring processes add, by the 99th percentile of their own delay.
        prompts: what steps add that compute prompts beside.
        total: the 99th percentile over all deltas.
        ratio: the 99th percentile while all decode, over `step`.
    """

    case: str
    step: float
    step_variation: float
    server: float
    client: float
    prompts: float
    total: float
    ratio: float


def latency_shares(offline: Measured, served: Measured) -> LatencyShares | None:
    """The shares for one case measured both ways; None if its requests never all decoded at once."""
    alone, steady, lag, every = offline.steady_itl, served.steady_itl, served.client_lag, served.figures.itl
    if alone is None or steady is None or lag is None or every is None:
        return None
    added = steady.p99 - alone.p99
    client = max(0.0, min(lag.p99, added))
    return LatencyShares(
        case=served.case,
        step=alone.p50,
        step_variation=alone.p99 - alone.p50,
        server=added - client,
        client=client,
        prompts=every.p99 - steady.p99,
        total=every.p99,
        ratio=steady.p99 / alone.p50,
    )


async def measure_offline(
    job: OfflineJob, time_limit: float, slo: ServiceLevel
) -> tuple[OfflineResult, list[Measured]]:
    """The cases through the engine alone, in a process that frees the device when it ends.

    Raises:
        JaxserveError: it failed, with its message on standard error, or took longer than `time_limit` seconds.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "jaxserve.bench.offline"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(time_limit):
            output, _ = await process.communicate(msgspec.json.encode(job) + b"\n")
    except TimeoutError:
        raise JaxserveError(f"the offline run was not over after {time_limit:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise JaxserveError(f"the offline run ended with exit code {process.returncode}")
    result = msgspec.json.decode(output, type=OfflineResult)
    measured = [
        Measured(
            case=name,
            over_grpc=False,
            figures=ServingFigures.of(times, duration_of(times), slo),
            steady_itl=steady_itl(times),
        )
        for name, times in result.times.items()
    ]
    return result, measured


def duration_of(times: list[RequestTimes]) -> float:
    """Seconds from the first request to the last token of any."""
    ends = [t.arrivals[-1] for t in times if t.arrivals]
    if not ends:
        raise JaxserveError("no request was answered")
    return max(ends) - min(t.started for t in times)


@dataclass(frozen=True)
class ServerLoad:
    """How cases are sent to a server.

    Attributes:
        target: its address.
        vocab_size: of the model it serves.
        num_clients: processes that send.
        num_channels: connections of each.
        time_limit: seconds for each case.
        slo: what goodput is counted by.
        server: its processes, if they are this program's.
    """

    target: str
    vocab_size: int
    num_clients: int
    num_channels: int
    time_limit: float
    slo: ServiceLevel
    server: ServerProcess | None = None

    async def warm_up(self, case: Case, report: ProgressCallback) -> None:
        """Send a case's requests, first cut short, then whole until it takes no less time than before: the server
        compiles shapes that they ask for meanwhile."""
        await run_load(self._job(warm_up(case.plans)), self.num_clients)
        before = float("inf")
        for attempt in range(MAX_WARM_UPS):
            what = f"Over gRPC: {case.name}, warm-up {attempt + 1}"
            results = await run_load(self._job(case.plans), self.num_clients, report, what)
            took = duration_of([entry for result in results for entry in result.times])
            if took > SAME_DURATION * before:
                return
            before = took

    async def measure(self, case: Case, report: ProgressCallback) -> Measured:
        """Send a case's requests, each at its time."""
        before = self.server.cpu_seconds() if self.server else {}
        results = await run_load(self._job(case.plans), self.num_clients, report, f"Over gRPC: {case.name}")
        after = self.server.cpu_seconds() if self.server else {}
        times = [entry for result in results for entry in result.times]
        failures = _counted(results)
        if not times:
            raise JaxserveError(f"{case.name}: every request failed: {failures}")
        duration = duration_of(times)
        return Measured(
            case=case.name,
            over_grpc=True,
            rate=case.rate,
            figures=ServingFigures.of(times, duration, self.slo),
            steady_itl=None if case.rate is not None else steady_itl(times),
            failures=failures,
            cpu_utilization={name: (used - before.get(name, 0.0)) / duration for name, used in after.items()},
            client_utilization=[result.cpu_seconds / duration for result in results],
            client_lag=Spread.of([lag for result in results for lag in result.loop_lag]),
        )

    def _job(self, plans: list[RequestPlan]) -> LoadJob:
        return LoadJob(
            target=self.target,
            plans=plans,
            vocab_size=self.vocab_size,
            num_channels=self.num_channels,
            time_limit=self.time_limit,
        )


def _counted(results: list[LoadResult]) -> dict[str, int]:
    failures: dict[str, int] = {}
    for result in results:
        for failure in result.failures:
            failures[failure] = failures.get(failure, 0) + 1
    return failures
