"""The Python clients of the gRPC service. Imports neither jax nor anything that does."""

from jaxserve.client.aio import AsyncClient, AsyncGenerationStream
from jaxserve.client.answers import Delta, PromptInfo
from jaxserve.client.channel import Health
from jaxserve.client.errors import (
    AlreadyExistsError,
    CancelledError,
    DeadlineExceededError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    RpcError,
    UnavailableError,
    UnimplementedError,
)
from jaxserve.client.retry import RetryPolicy
from jaxserve.client.sync import Client, GenerationStream

__all__ = [
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncGenerationStream",
    "CancelledError",
    "Client",
    "DeadlineExceededError",
    "Delta",
    "FieldViolation",
    "GenerationStream",
    "Health",
    "InternalError",
    "InvalidArgumentError",
    "PromptInfo",
    "ResourceExhaustedError",
    "RetryPolicy",
    "RpcError",
    "UnavailableError",
    "UnimplementedError",
]
