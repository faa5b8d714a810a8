#!/usr/bin/env python3
"""Compiles steps with what is off by default, for H200s without a GPU; fails where the result is not what it must be.

Run as `scripts/compile_gate.py`, whose parts it uses. Everything that the other gates ask of steps, of steps whose
Triton kernels XLA compiles (PALLAS_KERNELS_XLA_TRITON) and of steps whose sums fetch the next weights
(PALLAS_KERNELS_FETCH_AHEAD_MIB), and of both; no kernel of a step spills a register. Takes about half a minute.
"""

import os
from unittest import mock

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_fail_ptx_compilation_on_register_spilling=true"

import compile_gate as gate  # noqa: E402
import compile_gate_devices as devices_gate  # noqa: E402

from jaxserve.runner.buckets import SamplerKind  # noqa: E402
from pallas_kernels import fetch_ahead, platform  # noqa: E402

FETCHING = "_fetching_kernel"


def fetching_kernels(wanted: int) -> list[str]:
    """What is wrong with how many kernels fetch in the step that was compiled last."""
    found = sum(FETCHING in line for line in gate.thunks_of_last_step())
    return [] if found == wanted else [f"{found} kernels fetch weights, not {wanted}"]


def main() -> int:
    """Compile and print what is wrong; 1 if anything is."""
    buckets = gate.step_buckets()
    few, some, many = (buckets[tokens, True, SamplerKind.GREEDY] for tokens in (1, 32, 256))
    one, four = gate.h200(1), gate.h200(4)
    # Attention, and the sums after it and after the feed-forward.
    fetching = 3 * gate.NUM_LAYERS
    problems = []
    with mock.patch.object(platform, "TRITON_BY_XLA", True):
        problems += gate.check_step(one, buckets[1, True, SamplerKind.FULL])
        problems += gate.check_step(one, few, skinny=True)
        problems += gate.check_step(one, many)
        for bucket in (few, some):
            problems += devices_gate.check_step(four, devices_gate.LLAMA, bucket) + fetching_kernels(0)
    with (
        mock.patch.object(fetch_ahead, "FETCH_AHEAD_BYTES", 8 << 20),
        mock.patch.object(fetch_ahead, "is_hopper", lambda: True),
    ):
        problems += gate.check_step(one, few, skinny=True) + fetching_kernels(fetching)
        problems += devices_gate.check_step(four, devices_gate.LLAMA, some) + fetching_kernels(fetching)
        with mock.patch.object(platform, "TRITON_BY_XLA", True):
            problems += devices_gate.check_step(four, devices_gate.LLAMA, few) + fetching_kernels(fetching)
    return gate.report_problems(problems)


if __name__ == "__main__":
    raise SystemExit(main())
