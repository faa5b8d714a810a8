#!/usr/bin/env python3
"""Compiles steps whose Triton kernels XLA compiles, for H200s without a GPU, and fails where the result is not what it
must be.

Run as `scripts/compile_gate.py`, whose parts it uses. Everything that the other gates ask of the step of a few
sequences, of many, and of several GPUs, with PALLAS_KERNELS_XLA_TRITON=1; no kernel of a step spills a register. Takes
about a minute.
"""

import os
from unittest import mock

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_fail_ptx_compilation_on_register_spilling=true"

import compile_gate as gate  # noqa: E402
import compile_gate_devices as devices_gate  # noqa: E402

from jaxserve.runner.buckets import SamplerKind  # noqa: E402
from pallas_kernels import platform  # noqa: E402


def main() -> int:
    """Compile and print what is wrong; 1 if anything is."""
    buckets = gate.step_buckets()
    one, four = gate.h200(1), gate.h200(4)
    problems = []
    with mock.patch.object(platform, "TRITON_BY_XLA", True):
        problems += gate.check_step(one, buckets[1, True, SamplerKind.FULL])
        problems += gate.check_step(one, buckets[1, True, SamplerKind.GREEDY], skinny=True)
        problems += gate.check_step(one, buckets[256, True, SamplerKind.GREEDY])
        for tokens in (1, 32):
            problems += devices_gate.check_step(four, devices_gate.LLAMA, buckets[tokens, True, SamplerKind.GREEDY])
    return gate.report_problems(problems)


if __name__ == "__main__":
    raise SystemExit(main())
