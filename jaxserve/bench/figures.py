"""The figures that people compare servers by, and their table."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic

import msgspec
import numpy as np
from rich.table import Table


@dataclass
class RequestTimes:
    """When one streamed answer was asked for and when each part of it came, in seconds of one clock.

    Attributes:
        num_prompt_tokens: tokens of the prompt.
        started: when the request was sent.
        arrivals: when each delta came.
        num_output_tokens: tokens in all deltas.
    """

    num_prompt_tokens: int
    started: float = field(default_factory=monotonic)
    arrivals: list[float] = field(default_factory=list)
    num_output_tokens: int = 0

    def add(self, num_tokens: int) -> None:
        """Note that a delta has come."""
        self.arrivals.append(monotonic())
        self.num_output_tokens += num_tokens

    @property
    def ttft(self) -> float | None:
        """Seconds to the first delta; None if there was none."""
        return self.arrivals[0] - self.started if self.arrivals else None

    @property
    def tpot(self) -> float | None:
        """Seconds a token after the first delta (time per output token); None if that one was the last."""
        if len(self.arrivals) < 2 or self.num_output_tokens < 2:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / (self.num_output_tokens - 1)


class ServiceLevel(msgspec.Struct, frozen=True, kw_only=True):
    """What users are promised (a service level objective), request by request.

    Attributes:
        ttft_ms: most milliseconds to the first token; None promises nothing.
        itl_ms: most milliseconds from token to token, averaged over the request; None promises nothing.
    """

    ttft_ms: float | None = None
    itl_ms: float | None = None

    def is_met_by(self, times: RequestTimes) -> bool:
        """Whether a request got what was promised. One without an answer did not."""
        ttft, tpot = times.ttft, times.tpot
        if ttft is None or (self.ttft_ms is not None and 1000 * ttft > self.ttft_ms):
            return False
        return self.itl_ms is None or tpot is None or 1000 * tpot <= self.itl_ms

    def __str__(self) -> str:
        limits = (("first token", self.ttft_ms), ("each further token", self.itl_ms))
        return ", ".join(f"{name} within {ms:g} ms" for name, ms in limits if ms is not None)


class Spread(msgspec.Struct, frozen=True):
    """Mean and percentiles, in milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread | None":
        """The spread of some durations; None if there are none."""
        if not len(seconds):
            return None
        ms = 1000.0 * np.asarray(seconds)
        return cls(float(ms.mean()), *(float(np.percentile(ms, p)) for p in (50, 90, 99)))


class ServingFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a run amounts to.

    Attributes:
        num_requests: answers that came whole.
        duration: seconds from the first request to the last answer's end.
        input_tokens: prompt tokens in all.
        output_tokens: generated tokens in all.
        output_throughput: generated tokens a second.
        total_throughput: prompt and generated tokens a second.
        ttft: time to first token; None where answers were not streamed.
        itl: inter-token latency, the time from one delta to the next; None where answers were not streamed.
        tokens_per_delta: how many tokens a delta held on average; above 1 where tokens piled up on the way.
        slo: what was promised, if anything was.
        goodput: requests a second that got it (Zhong et al. 2024, DistServe).
    """

    num_requests: int
    duration: float
    input_tokens: int
    output_tokens: int
    output_throughput: float
    total_throughput: float
    ttft: Spread | None = None
    itl: Spread | None = None
    tokens_per_delta: float | None = None
    slo: ServiceLevel | None = None
    goodput: float | None = None

    @classmethod
    def of(cls, times: Sequence[RequestTimes], duration: float, slo: ServiceLevel | None = None) -> "ServingFigures":
        """The figures of a run of `duration` seconds."""
        num_deltas = sum(len(t.arrivals) for t in times)
        inputs = sum(t.num_prompt_tokens for t in times)
        outputs = sum(t.num_output_tokens for t in times)
        return cls(
            num_requests=len(times),
            duration=duration,
            input_tokens=inputs,
            output_tokens=outputs,
            output_throughput=outputs / duration,
            total_throughput=(inputs + outputs) / duration,
            ttft=Spread.of([t.arrivals[0] - t.started for t in times if t.arrivals]),
            itl=Spread.of([b - a for t in times for a, b in zip(t.arrivals, t.arrivals[1:], strict=False)]),
            tokens_per_delta=outputs / num_deltas if num_deltas else None,
            slo=slo,
            goodput=None if slo is None else sum(map(slo.is_met_by, times)) / duration,
        )

    def table(self) -> Table:
        """The figures for a person to read."""
        table = Table(title="Figures", show_header=False)
        table.add_row("requests", f"{self.num_requests} in {self.duration:.2f} s")
        table.add_row("tokens", f"{self.input_tokens} in, {self.output_tokens} out")
        table.add_row("output throughput", f"{self.output_throughput:.1f} tokens/s")
        table.add_row("total throughput", f"{self.total_throughput:.1f} tokens/s")
        for name, spread in (("time to first token", self.ttft), ("inter-token latency", self.itl)):
            if spread is not None:
                table.add_row(name, f"p50 {spread.p50:.1f} ms, p90 {spread.p90:.1f} ms, p99 {spread.p99:.1f} ms")
        if self.tokens_per_delta is not None:
            table.add_row("tokens a delta", f"{self.tokens_per_delta:.2f}")
        if self.goodput is not None:
            table.add_row(f"goodput ({self.slo})", f"{self.goodput:.2f} requests/s")
        return table


def steady_itl(times: Sequence[RequestTimes]) -> Spread | None:
    """Inter-token latency while every request was being answered; None if there was no such time.

    Where all requests are sent at once, the steps that compute their prompts hold up the answers that have begun.
    After the last first delta and before the first last one, steps only decode, and all of them.
    """
    if not times or not all(t.arrivals for t in times):
        return None
    begin, end = max(t.arrivals[0] for t in times), min(t.arrivals[-1] for t in times)
    gaps = [b - a for t in times for a, b in zip(t.arrivals, t.arrivals[1:], strict=False) if begin <= a and b <= end]
    return Spread.of(gaps)
