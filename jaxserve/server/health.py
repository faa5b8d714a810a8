"""The standard health service, grpc.health.v1, answering with the state of the engine and not of the listener."""

import contextlib
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from jaxserve.server.lifecycle import Lifecycle
from jaxserve.v1 import inference_pb2 as pb

INFERENCE_SERVICE = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
_Context = grpc.aio.ServicerContext[Any, Any]


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Check and Watch for `""` (the server as a whole) and `jaxserve.v1.InferenceService`.

    SERVING only while requests are served: NOT_SERVING while the engine loads, while the server drains, and once the
    engine has failed.
    """

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    async def Check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> health_pb2.HealthCheckResponse:
        """The state now; NOT_FOUND for a service this server does not have."""
        if not _known(request.service):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} here")
        return health_pb2.HealthCheckResponse(status=_status(self._lifecycle.state))

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: _Context) -> None:
        """The state now and each change; SERVICE_UNKNOWN, and no end, for a service this server does not have."""
        last: int | None = None
        async with contextlib.aclosing(self._lifecycle.states()) as states:
            async for state in states:
                known = _known(request.service)
                status = _status(state) if known else health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
                if status != last:
                    await context.write(health_pb2.HealthCheckResponse(status=status))
                last = status


def _known(service: str) -> bool:
    return service in ("", INFERENCE_SERVICE)


def _status(state: pb.ServerState) -> int:
    if state == pb.SERVER_STATE_READY:
        return health_pb2.HealthCheckResponse.SERVING
    return health_pb2.HealthCheckResponse.NOT_SERVING
