"""Kernels that ran on the GPUs, as JAX's profiler saw them, for scripts. Import it before JAX starts its devices."""

import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Without it the profiler takes steps apart into single launches.
_FLAG = "--xla_enable_command_buffers_during_profiling=true"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()

import jax  # noqa: E402
from jax.profiler import ProfileData  # noqa: E402

KINDS = {
    "attention": re.compile(r"attention|rotate_and_write|decode_kernel|prefill_kernel"),
    "products": re.compile(r"gemm|gemv|nvjet|cutlass|xmma|cublas|_dot|splitK|matmul", re.IGNORECASE),
    "between GPUs": re.compile(r"all_?reduce|argmax_(kernel|over)|all_?gather|reduce_?scatter|nccl", re.IGNORECASE),
}


@dataclass(frozen=True)
class Kernel:
    """One run of a kernel, in microseconds of the profiler's clock."""

    name: str
    start: float
    duration: float

    @property
    def end(self) -> float:
        return self.start + self.duration

    @property
    def kind(self) -> str:
        return next((kind for kind, pattern in KINDS.items() if pattern.search(self.name)), "rest")

    @property
    def family(self) -> str:
        """The name without the numbers that tell one layer's kernel from another's."""
        return re.sub(r"[._]?\d+$", "", self.name)[:80]


@dataclass(frozen=True)
class Trace:
    """What was recorded.

    Attributes:
        kernels: of each GPU, in order of their start.
        host_calls: what XLA did on the host, how often, and how many microseconds it took.
    """

    kernels: list[list[Kernel]]
    host_calls: dict[str, dict[str, float]]

    @property
    def graph_calls(self) -> dict[str, dict[str, float]]:
        """Of these, the CUDA graphs launched (`execute`), updated and recorded."""
        none = {"calls": 0, "us": 0.0}
        names = ("execute", "update", "record")
        return {name: self.host_calls.get(f"command_buffer::{name}", none) for name in names}


def record_kernels(run: Callable[[], Any], num_gpus: int = 1) -> Trace:
    """What the first GPUs did while `run` ran, which must wait for them."""
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            run()
        path = next(Path(directory).glob("**/*.xplane.pb"))
        profile = ProfileData.from_file(str(path))
        return Trace([_kernels_of(profile, gpu) for gpu in range(num_gpus)], _host_calls(profile))


def _kernels_of(profile: ProfileData, gpu: int) -> list[Kernel]:
    plane = next(p for p in profile.planes if p.name.split(" ")[0] == f"/device:GPU:{gpu}")
    events = [event for line in plane.lines if line.name.startswith("Stream") for event in line.events]
    return sorted((Kernel(e.name, e.start_ns / 1e3, e.duration_ns / 1e3) for e in events), key=lambda k: k.start)


def _host_calls(profile: ProfileData) -> dict[str, dict[str, float]]:
    """By name, over all threads, calls within calls too; without the frames of Python, which begin with $."""
    calls: dict[str, list[float]] = defaultdict(list)
    for plane in profile.planes:
        if plane.name.startswith("/host:CPU"):
            for line in plane.lines:
                for event in line.events:
                    if not event.name.startswith("$"):
                        calls[event.name].append(event.duration_ns / 1e3)
    return {name: {"calls": len(times), "us": sum(times)} for name, times in calls.items()}
