"""What the machine can run, for `implementation=None`."""

from functools import cache
from importlib.util import find_spec

import jax

# What XLA's assembler of CUDA 12.8 and later reads; Triton's newest default may be ahead of it.
PTX_VERSION = 87


@cache
def triton_can_run() -> bool:
    """Whether the first device is an NVIDIA GPU and jax_triton is installed."""
    device = jax.devices()[0]
    is_cuda = device.platform == "gpu" and "rocm" not in device.client.platform_version.lower()
    return is_cuda and find_spec("jax_triton") is not None
