"""CallGuard: what every call of jaxserve.v1 passes: readiness, size, errors, and the count of calls in flight."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import Message

from jaxserve.errors import InvalidRequestError, UnsupportedError
from jaxserve.server import status
from jaxserve.server.conversion import field_path, largest_field
from jaxserve.server.lifecycle import Lifecycle
from jaxserve.v1 import inference_pb2 as pb

_Context = grpc.aio.ServicerContext[Any, Any]
_Behavior = Callable[[Any, _Context], Awaitable[Any]]

GUARDED_PREFIX = "/jaxserve.v1."
# Answers whatever the engine's state.
ALWAYS_ANSWERED = "/jaxserve.v1.InferenceService/GetServerInfo"
# What RetryInfo says while the engine loads, and while the server shuts down (a replacement needs time to come up).
STARTING_RETRY_S = 1.0
DRAINING_RETRY_S = 1.0


class CallGuard(grpc.aio.ServerInterceptor):
    """Wraps each handler of the inference service; the health service and reflection pass untouched.

    Args:
        lifecycle: calls are refused unless it is READY.
        max_message_bytes: larger requests are refused.

    Attributes:
        idle: set while no guarded call is in flight.
    """

    def __init__(self, lifecycle: Lifecycle, max_message_bytes: int) -> None:
        self._lifecycle = lifecycle
        self._max_message_bytes = max_message_bytes
        self._in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """The handler of a call, wrapped."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(GUARDED_PREFIX):
            return handler
        needs_engine = method != ALWAYS_ANSWERED
        make: Any
        if handler.response_streaming:
            make, behavior = grpc.unary_stream_rpc_method_handler, handler.unary_stream
        else:
            make, behavior = grpc.unary_unary_rpc_method_handler, handler.unary_unary
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(
            self._wrap(behavior, needs_engine),  # type: ignore[arg-type]
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return wrapped

    def _wrap(self, behavior: _Behavior, needs_engine: bool) -> _Behavior:
        async def guarded(request: Message, context: _Context) -> Any:
            self._in_flight += 1
            self.idle.clear()
            try:
                if needs_engine:
                    self._check_ready()
                self._check_size(request)
                return await behavior(request, context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                await status.abort(context, _with_path(error, request))
            finally:
                self._in_flight -= 1
                if self._in_flight == 0:
                    self.idle.set()

        return guarded

    def _check_ready(self) -> None:
        match self._lifecycle.state:
            case pb.SERVER_STATE_STARTING:
                raise status.UnavailableError(
                    "SERVER_STARTING", "the engine is still loading the model", retry_after=STARTING_RETRY_S
                )
            case pb.SERVER_STATE_DRAINING:
                raise status.UnavailableError(
                    "SERVER_DRAINING", "the server is shutting down", retry_after=DRAINING_RETRY_S
                )
            case pb.SERVER_STATE_FAILED:
                raise status.UnavailableError(
                    "ENGINE_FAILED", self._lifecycle.reason or "the engine has failed", retry_after=DRAINING_RETRY_S
                )

    def _check_size(self, request: Message) -> None:
        size = request.ByteSize()
        if size > self._max_message_bytes:
            raise InvalidRequestError(
                largest_field(request),
                f"the message has {size} bytes, but the server accepts at most {self._max_message_bytes}",
            )


def _with_path(error: Exception, request: Message) -> Exception:
    """The same error with its field named as protobuf's path."""
    if isinstance(error, InvalidRequestError | UnsupportedError):
        return type(error)(field_path(error.field, request), error.description)
    return error
