"""What the machine can run, and what `implementation=None` therefore stands for."""

import os
from functools import cache
from importlib.util import find_spec
from typing import Literal, get_args

import jax

# For the kernels that jax_triton launches: what XLA's assembler of CUDA 12.8 and later reads; Triton's newest default
# may be ahead of it.
PTX_VERSION = 87
# Whether XLA compiles and launches Triton kernels itself (`triton_call`), or leaves them all to jax_triton: a way out
# should the Triton in XLA compile one wrongly.
TRITON_BY_XLA = os.environ.get("PALLAS_KERNELS_XLA_TRITON", "1") == "1"
NUM_SMS = 132  # streaming multiprocessors of an H100 or H200; only how work is cut depends on it


Implementation = Literal["reference", "triton"]


def pick_implementation(asked: Implementation | None, *, takes_triton: bool = True) -> Implementation:
    """What computes an operation: the implementation asked for, or the best that can run.

    Args:
        asked: what the caller named; None leaves the choice.
        takes_triton: whether the Triton kernels take these arguments at all.

    Raises:
        ValueError: there is no such implementation.
    """
    if asked is None:
        return "triton" if takes_triton and triton_can_run() else "reference"
    if asked not in get_args(Implementation):
        raise ValueError(f"unknown implementation {asked!r}; there are: {', '.join(get_args(Implementation))}")
    return asked


@cache
def triton_can_run() -> bool:
    """Whether the first device is an NVIDIA GPU and jax_triton is installed."""
    device = jax.devices()[0]
    is_cuda = device.platform == "gpu" and "rocm" not in device.client.platform_version.lower()
    return is_cuda and find_spec("jax_triton") is not None


@cache
def is_hopper() -> bool:
    """Whether the first device is an NVIDIA GPU of compute capability 9.0, an H100 or H200."""
    return getattr(jax.devices()[0], "compute_capability", None) == "9.0"
