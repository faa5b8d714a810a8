"""What a call can raise, one class for each kind of gRPC status a program may want to treat differently."""

from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from jaxserve.errors import JaxserveError

_DETAILS_KEY = "grpc-status-details-bin"
_REQUEST_ID_KEY = "x-request-id"


@dataclass(frozen=True)
class FieldViolation:
    """A request field that the server refused: its protobuf path, such as `sampling.top_p`, and what is wrong."""

    field: str
    description: str


class RpcError(JaxserveError):
    """A call that did not end with OK. Base of the others, and the class of any status not listed below.

    Attributes:
        code: the gRPC status code.
        message: what the server says.
        violations: the fields at fault, if the server named any.
        reason: constant name of the cause, such as `QUEUE_FULL`; None if the server gave none.
        retry_after: seconds after which the server suggests to try again; None if it does not.
        retry_safe: whether the server says that a retry loses and doubles nothing; None if it does not say.
        request_id: the request's id; None if the call did not get that far.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        violations: tuple[FieldViolation, ...] = (),
        reason: str | None = None,
        retry_after: float | None = None,
        retry_safe: bool | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.violations = violations
        self.reason = reason
        self.retry_after = retry_after
        self.retry_safe = retry_safe
        self.request_id = request_id


class InvalidArgumentError(RpcError, ValueError):
    """INVALID_ARGUMENT: a field can never work; see `violations`."""


class UnimplementedError(RpcError, NotImplementedError):
    """UNIMPLEMENTED: a field asks for what is not built yet; see `violations`."""


class AlreadyExistsError(RpcError):
    """ALREADY_EXISTS: a request with the same id is in flight."""


class ResourceExhaustedError(RpcError):
    """RESOURCE_EXHAUSTED: the queue is full, or a message is far above the size limit."""


class UnavailableError(RpcError, ConnectionError):
    """UNAVAILABLE: the server cannot be reached, is loading, is shutting down, or its engine failed."""


class DeadlineExceededError(RpcError, TimeoutError):
    """DEADLINE_EXCEEDED: the call's timeout passed."""


class CancelledError(RpcError):
    """CANCELLED: this side cancelled the call."""


class InternalError(RpcError):
    """INTERNAL: the server met a fault of its own."""


_CLASSES: dict[grpc.StatusCode, type[RpcError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: CancelledError,
    grpc.StatusCode.INTERNAL: InternalError,
}


def from_rpc_error(error: Any) -> RpcError:
    """The typed exception for gRPC's own, synchronous or asynchronous, with google.rpc details unpacked."""
    trailing = dict(error.trailing_metadata() or ())
    status = Status()
    if _DETAILS_KEY in trailing:
        status.ParseFromString(trailing[_DETAILS_KEY])
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        for message in (bad_request, retry, info):
            detail.Unpack(message)
    code = error.code()
    return _CLASSES.get(code, RpcError)(
        code,
        error.details() or "",
        violations=tuple(FieldViolation(v.field, v.description) for v in bad_request.field_violations),
        reason=info.reason or None,
        retry_after=retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None,
        retry_safe=info.metadata["retry_safe"] == "true" if "retry_safe" in info.metadata else None,
        request_id=trailing.get(_REQUEST_ID_KEY),
    )
