"""Telling what to change when a device's memory runs out at start."""

from contextlib import AbstractContextManager

from jaxserve.config import EngineConfig
from jaxserve.errors import ConfigError
from jaxserve.runner.device_memory import out_of_memory_as


def explained_out_of_memory(config: EngineConfig, doing: str, advice: str) -> AbstractContextManager[None]:
    """Turn XLA's error within the block into one that says what to change.

    Args:
        config: the settings.
        doing: what took the memory.
        advice: what takes less of it.

    Raises:
        ConfigError: the memory ran out. Other errors pass.
    """
    message = (
        f"a device's memory ran out while {doing}; {advice}, raise gpu_memory_utilization (it is "
        f"{config.gpu_memory_utilization}) or tensor_parallel_size (it is {config.tensor_parallel_size}), or end "
        "other processes that hold the device's memory"
    )
    return out_of_memory_as(ConfigError, message)
