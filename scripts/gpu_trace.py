"""Kernels that ran on the GPUs, as JAX's profiler saw them, for scripts. Import it before JAX starts its devices."""

import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Without it the profiler takes steps apart into single launches.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_enable_command_buffers_during_profiling=true"

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
        graph_calls: how often XLA launched (`execute`), updated and recorded CUDA graphs, and how long the host took.
    """

    kernels: list[list[Kernel]]
    graph_calls: dict[str, dict[str, float]]


def record_kernels(run: Callable[[], Any], num_gpus: int = 1) -> Trace:
    """What the first GPUs did while `run` ran, which must wait for them."""
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            run()
        path = next(Path(directory).glob("**/*.xplane.pb"))
        profile = ProfileData.from_file(str(path))
        return Trace([_kernels_of(profile, gpu) for gpu in range(num_gpus)], _graph_calls(profile))


def _kernels_of(profile: ProfileData, gpu: int) -> list[Kernel]:
    plane = next(p for p in profile.planes if p.name.split(" ")[0] == f"/device:GPU:{gpu}")
    events = [event for line in plane.lines if line.name.startswith("Stream") for event in line.events]
    return sorted((Kernel(e.name, e.start_ns / 1e3, e.duration_ns / 1e3) for e in events), key=lambda k: k.start)


def _graph_calls(profile: ProfileData) -> dict[str, dict[str, float]]:
    events = [e for p in profile.planes if p.name.startswith("/host:CPU") for line in p.lines for e in line.events]
    calls = {}
    for call in ("execute", "update", "record"):
        times = [e.duration_ns / 1e3 for e in events if e.name == f"command_buffer::{call}"]
        calls[call] = {"calls": len(times), "us": sum(times)}
    return calls
