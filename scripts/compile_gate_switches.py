#!/usr/bin/env python3
"""Compiles steps with what is off by default, for H200s without a GPU; fails where the result is not what it must be.

Run as `scripts/compile_gate.py`, whose parts it uses. Everything that the other gates ask of steps, of steps whose
Triton kernels XLA compiles (PALLAS_KERNELS_XLA_TRITON) and of steps whose sums fetch the next weights
(PALLAS_KERNELS_FETCH_AHEAD_MIB), and of both; no kernel of a step spills a register. Takes about half a minute.
"""

import math
import os
import re
from unittest import mock

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_fail_ptx_compilation_on_register_spilling=true"

import compile_gate as gate  # noqa: E402
import compile_gate_devices as devices_gate  # noqa: E402

from jaxserve.runner.buckets import SamplerKind  # noqa: E402
from pallas_kernels import fetch_ahead, platform  # noqa: E402

# The kernels that can fetch, and their grids.
PROGRAMS = re.compile(r"(?:residual_norm|decode)_kernel\S* grid: \[(\d+), (\d+), (\d+)\]")


def num_programs() -> int:
    """Of the kernels that can fetch, in the step that was compiled last."""
    grids = PROGRAMS.findall("\n".join(gate.thunks_of_last_step()))
    return sum(math.prod(map(int, grid)) for grid in grids)


def main() -> int:
    """Compile and print what is wrong; 1 if anything is."""
    buckets = gate.step_buckets()
    few, some, many = (buckets[tokens, True, SamplerKind.GREEDY] for tokens in (1, 32, 256))
    one, four = gate.h200(1), gate.h200(4)
    # Attention, and the sums after it and after the feed-forward.
    fetching = 3 * gate.NUM_LAYERS * fetch_ahead.PROGRAMS
    problems, without, more = [], [], []
    with mock.patch.object(platform, "TRITON_BY_XLA", True):
        problems += gate.check_step(one, buckets[1, True, SamplerKind.FULL])
        problems += gate.check_step(one, many)
        problems += gate.check_step(one, few, skinny=True)
        without.append(num_programs())
        for bucket in (some, few):
            problems += devices_gate.check_step(four, devices_gate.LLAMA, bucket)
            without.append(num_programs())
    with (
        mock.patch.object(fetch_ahead, "FETCH_AHEAD_BYTES", 8 << 20),
        mock.patch.object(fetch_ahead, "is_hopper", lambda: True),
    ):
        problems += gate.check_step(one, few, skinny=True)
        more.append(num_programs() - without[0])
        problems += devices_gate.check_step(four, devices_gate.LLAMA, some)
        more.append(num_programs() - without[1])
        with mock.patch.object(platform, "TRITON_BY_XLA", True):
            problems += devices_gate.check_step(four, devices_gate.LLAMA, few)
            more.append(num_programs() - without[2])
    if more != [fetching] * 3:
        problems.append(f"{more} programs fetch weights, not {fetching} in each step")
    return gate.report_problems(problems)


if __name__ == "__main__":
    raise SystemExit(main())
