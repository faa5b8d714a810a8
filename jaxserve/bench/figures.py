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
    """

    num_requests: int
    duration: float
    input_tokens: int
    output_tokens: int
    output_throughput: float
    total_throughput: float
    ttft: Spread | None = None
    itl: Spread | None = None

    @classmethod
    def of(cls, times: Sequence[RequestTimes], duration: float) -> "ServingFigures":
        """The figures of a run of `duration` seconds."""
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
        return table
