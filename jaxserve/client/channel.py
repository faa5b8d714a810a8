"""How both clients connect."""

from enum import StrEnum

from grpc_health.v1 import health_pb2

DEFAULT_TARGET = "127.0.0.1:50051"
DEFAULT_MAX_MESSAGE_BYTES = 32 * 1024 * 1024
INFERENCE_SERVICE = "jaxserve.v1.InferenceService"


class Health(StrEnum):
    """What the server's health service says."""

    SERVING = "serving"
    NOT_SERVING = "not_serving"  # loading, draining or failed


def channel_options(max_message_bytes: int, keepalive_time: float) -> list[tuple[str, int]]:
    """gRPC's settings: message limits, and pings while calls are open, so that a dead connection is noticed.

    Args:
        max_message_bytes: largest message sent or received.
        keepalive_time: seconds between pings.
    """
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", int(keepalive_time * 1000)),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def health_of(response: health_pb2.HealthCheckResponse) -> Health:
    """The Python form of a health response."""
    serving = response.status == health_pb2.HealthCheckResponse.SERVING
    return Health.SERVING if serving else Health.NOT_SERVING
