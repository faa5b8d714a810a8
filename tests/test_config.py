"""Settings are checked when they are made, and say what is wrong."""

import dataclasses
from typing import Any

import pytest

from jaxserve.config import EngineConfig, SchedulerConfig, ServerConfig
from jaxserve.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "model must name a local directory"),
        ({"dtype": "int8"}, "dtype must be auto, float32, bfloat16 or float16, got 'int8'"),
        ({"load_format": "pickle"}, "load_format must be auto, safetensors, orbax or dummy, got 'pickle'"),
        ({"scheduling_policy": "lifo"}, "scheduling_policy must be fcfs or priority, got 'lifo'"),
        ({"gpu_memory_utilization": 0.0}, "gpu_memory_utilization must be above 0 and at most 1, got 0.0"),
        ({"gpu_memory_utilization": 1.01}, "gpu_memory_utilization must be above 0"),
        ({"gpu_memory_utilization": float("nan")}, "gpu_memory_utilization must be above 0"),
        ({"compile_all": True, "compile_ahead": False}, "give one of them"),
        *(
            ({name: value}, f"{name} must be at least 1, got {value}")
            for value in (0, -3)
            for name in (
                "max_model_len",
                "tensor_parallel_size",
                "num_pages",
                "page_size",
                "max_num_seqs",
                "max_num_batched_tokens",
                "max_num_queued_requests",
            )
        ),
    ],
    ids=str,
)
def test_engine_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EngineConfig(**{"model": "m"} | changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"page_size": 0}, "page_size must be at least 1, got 0"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1, got 0"),
        ({"max_num_seqs": 9}, "max_num_batched_tokens (8) must be at least max_num_seqs (9)"),
        ({"num_pages": 8}, "KV pool of 7 pages of 4 tokens cannot hold one sequence of max_model_len=30"),
    ],
    ids=str,
)
def test_scheduler_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    settings = {"num_pages": 9, "page_size": 4, "max_num_seqs": 2, "max_num_batched_tokens": 8, "max_model_len": 30}
    SchedulerConfig(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        SchedulerConfig(**settings | changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": -1}, "port must be from 0 to 65535, got -1"),
        ({"port": 65536}, "port must be from 0 to 65535, got 65536"),
        ({"max_message_bytes": 1023}, "max_message_bytes must be at least 1024, got 1023"),
        ({"drain_timeout": -0.1}, "drain_timeout must be at least 0 seconds, got -0.1"),
        ({"drain_timeout": float("nan")}, "drain_timeout must be at least 0 seconds"),
    ],
    ids=str,
)
def test_server_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerConfig(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize("config", [EngineConfig(model="m"), ServerConfig(), SchedulerConfig(num_pages=300)])
def test_settings_cannot_be_changed_afterwards(config: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, 1)


def test_a_model_is_called_by_its_directory_unless_named() -> None:
    assert EngineConfig(model="/models/Llama-3/").model_name == "Llama-3"
    assert EngineConfig(model="demo").model_name == "demo"
    assert EngineConfig(model="/models/Llama-3", served_model_name="chat").model_name == "chat"
