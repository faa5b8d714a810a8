"""The exceptions jaxserve raises on purpose.

Each names what was wrong and what to change. The server maps them to gRPC statuses (`jaxserve.server.status`), the
offline `LLM` and the command line show them as they are.
"""


class JaxserveError(Exception):
    """Base of every error that jaxserve raises on purpose."""


class ConfigError(JaxserveError, ValueError):
    """An engine or server setting is out of range or contradicts another; nothing was started."""


class CheckpointError(JaxserveError):
    """A model directory cannot be served: the message names the file, and the tensor or key, at fault."""


class InvalidRequestError(JaxserveError, ValueError):
    """A request field has a value that can never work. gRPC: INVALID_ARGUMENT with BadRequest.

    Attributes:
        field: the field at fault, as SamplingParams or the prompt names it, such as `temperature` or
            `prompt_token_ids[3]`.
        description: what is wrong with it and what to send instead.
    """

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class UnsupportedError(JaxserveError, NotImplementedError):
    """A field is valid but what it asks for is not built yet. gRPC: UNIMPLEMENTED.

    Attributes:
        field: the field at fault.
        description: what is not supported and what to do instead.
    """

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class DeviceLostError(JaxserveError):
    """A device waited in vain for another. The step's tokens have no meaning, and the engine cannot go on."""


class DeviceMemoryError(JaxserveError):
    """A step found no room for its temporaries on a device. What it was given is lost, and the engine cannot go on."""


class QueueFullError(JaxserveError):
    """The admission limit on waiting requests is reached. gRPC: RESOURCE_EXHAUSTED with RetryInfo.

    Attributes:
        retry_after: seconds after which a retry is likely to be admitted.
    """

    def __init__(self, limit: int, retry_after: float) -> None:
        super().__init__(f"the queue already holds {limit} waiting requests; retry after {retry_after:.1f} s")
        self.limit = limit
        self.retry_after = retry_after


class DuplicateRequestError(JaxserveError):
    """A request with the same id is still in flight. gRPC: ALREADY_EXISTS."""


class EngineDeadError(JaxserveError):
    """The engine failed or its process ended; no request can be served until it is restarted. gRPC: UNAVAILABLE."""
