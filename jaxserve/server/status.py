"""From exceptions to gRPC statuses with google.rpc details."""

import logging
from typing import Any, NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from grpc_status import rpc_status

from jaxserve.errors import (
    DuplicateRequestError,
    EngineDeadError,
    InvalidRequestError,
    JaxserveError,
    QueueFullError,
    UnsupportedError,
)

logger = logging.getLogger(__name__)

ERROR_DOMAIN = "jaxserve"


class UnavailableError(JaxserveError):
    """The server cannot take or finish a call now. gRPC: UNAVAILABLE with ErrorInfo, and RetryInfo if one may help.

    Attributes:
        reason: constant name for programs, such as `SERVER_DRAINING`.
        retry_after: seconds after which a retry may succeed; None if this server will not serve again.
        retry_safe: whether no part of the answer was sent, so that a retry loses and doubles nothing.
    """

    def __init__(self, reason: str, message: str, *, retry_after: float | None, retry_safe: bool = True) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after = retry_after
        self.retry_safe = retry_safe


class RequestEndedError(JaxserveError):
    """The engine gave up a request whose deadline passed or that was aborted. gRPC: DEADLINE_EXCEEDED or CANCELLED."""

    def __init__(self, deadline: bool) -> None:
        super().__init__("the call's deadline passed" if deadline else "the request was aborted")
        self.deadline = deadline


def error_status(error: Exception) -> Status:
    """The status of an exception. Anything not raised on purpose becomes INTERNAL and says nothing of its insides."""
    message = str(error)
    match error:
        case InvalidRequestError():
            return _status(code_pb2.INVALID_ARGUMENT, message, _bad_request(error.field, error.description))
        case UnsupportedError():
            return _status(code_pb2.UNIMPLEMENTED, message, _bad_request(error.field, error.description))
        case QueueFullError():
            return _status(code_pb2.RESOURCE_EXHAUSTED, message, _retry(error.retry_after), _info("QUEUE_FULL", True))
        case DuplicateRequestError():
            return _status(code_pb2.ALREADY_EXISTS, message, _info("DUPLICATE_REQUEST_ID", False))
        case EngineDeadError():
            return _status(code_pb2.UNAVAILABLE, message, _info("ENGINE_FAILED", True))
        case UnavailableError():
            retry = [] if error.retry_after is None else [_retry(error.retry_after)]
            return _status(code_pb2.UNAVAILABLE, message, *retry, _info(error.reason, error.retry_safe))
        case RequestEndedError():
            return _status(code_pb2.DEADLINE_EXCEEDED if error.deadline else code_pb2.CANCELLED, message)
        case _:
            logger.error("a call failed unexpectedly", exc_info=error)
            return _status(code_pb2.INTERNAL, "internal error; see the server's log", _info("INTERNAL", False))


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", error: Exception) -> NoReturn:
    """End a call with the status of an exception, keeping the trailing metadata set so far."""
    status = rpc_status.to_status(error_status(error))
    trailing = (*(context.trailing_metadata() or ()), *status.trailing_metadata)
    await context.abort(status.code, status.details, trailing)


def _status(code: code_pb2.Code, message: str, *details: Message) -> Status:
    status = Status(code=code, message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def _bad_request(field: str, description: str) -> error_details_pb2.BadRequest:
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
    return error_details_pb2.BadRequest(field_violations=[violation])


def _retry(seconds: float) -> error_details_pb2.RetryInfo:
    delay = Duration()
    delay.FromNanoseconds(int(seconds * 1e9))
    return error_details_pb2.RetryInfo(retry_delay=delay)


def _info(reason: str, retry_safe: bool) -> error_details_pb2.ErrorInfo:
    metadata = {"retry_safe": "true" if retry_safe else "false"}
    return error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN, metadata=metadata)
