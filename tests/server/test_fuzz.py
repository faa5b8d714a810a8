"""Any value in any field of any request: the server answers or refuses, stays SERVING and leaks no page."""

import asyncio
import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from jaxserve.v1 import generate_pb2, inference_pb2
from tests.support.live_server import LiveServer, live_server

# For each field, examples of so many requests each, the first of which sets it.
EXAMPLES_A_FIELD = 5
REQUESTS_AN_EXAMPLE = 4
INT32 = st.sampled_from([-(2**31), -2, -1, 0, 1, 2, 31, 64, 127, 128, 129, 130, 2**31 - 1]) | st.integers(-5, 200)
INT64 = st.sampled_from([-(2**63), -1, 0, 2**63 - 1, 315_576_000_000]) | INT32
DOUBLE = st.floats(0, 2) | st.sampled_from([math.nan, math.inf, -math.inf, -1.0, -0.0, 5e-324, 1.0, 1.0000001, 1e308])
STRING = st.sampled_from(["", "a", "arithmetic", "\x00", "é", "\U0001f600", "{{ x }}", "y" * 2000]) | st.text(
    max_size=30
)
SCALARS = {
    FieldDescriptor.TYPE_INT32: INT32,
    FieldDescriptor.TYPE_INT64: INT64,
    FieldDescriptor.TYPE_DOUBLE: DOUBLE,
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_STRING: STRING,
}
# Refusals of these kinds are answers; any other status is a defect.
ANSWERS = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
METHODS = {
    "Generate": generate_pb2.GenerateRequest,
    "GenerateStream": generate_pb2.GenerateStreamRequest,
    "Tokenize": inference_pb2.TokenizeRequest,
    "Detokenize": inference_pb2.DetokenizeRequest,
    "GetModelInfo": inference_pb2.GetModelInfoRequest,
}
FieldPath = tuple[FieldDescriptor, ...]


def leaves(descriptor: Descriptor, above: FieldPath = ()) -> Iterator[FieldPath]:
    """Every field that holds a value of its own, by the way to it; message fields too, since they can be set empty."""
    for field in descriptor.fields:
        path = (*above, field)
        yield path
        is_open = field.type == FieldDescriptor.TYPE_MESSAGE and not field.is_repeated
        # Struct holds itself; setting it empty is enough.
        if is_open and field.message_type.full_name != "google.protobuf.Struct":
            yield from leaves(field.message_type, path)


def dotted(path: FieldPath) -> str:
    return ".".join(field.name for field in path)


LEAVES = {method: list(leaves(kind.DESCRIPTOR)) for method, kind in METHODS.items()}
FIELDS = [(method, path) for method in LEAVES for path in LEAVES[method]]


def put(message: Any, path: FieldPath, data: st.DataObject) -> None:
    """Set the field at the end of a path to any value of its type."""
    for field in path[:-1]:
        message = getattr(message, field.name)
    field = path[-1]
    if field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type.GetOptions().map_entry:
        getattr(message, field.name).update(data.draw(st.dictionaries(INT32, DOUBLE, max_size=3)))
    elif field.type == FieldDescriptor.TYPE_MESSAGE and field.is_repeated:
        for _ in range(data.draw(st.integers(0, 3))):
            added = getattr(message, field.name).add()
            for inner in field.message_type.fields:
                put(added, (inner,), data)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        getattr(message, field.name).SetInParent()
    elif field.is_repeated:
        getattr(message, field.name).extend(data.draw(st.lists(SCALARS[field.type], max_size=40)))
    else:
        setattr(message, field.name, data.draw(SCALARS[field.type]))


def draw_request(
    data: st.DataObject, tried: set[tuple[str, str]], method: str, first: FieldPath
) -> tuple[str, Message]:
    """A request that would be answered, with `first` and a few other fields replaced; adds them to `tried`."""
    request = METHODS[method]()
    if "prompt" in request.DESCRIPTOR.oneofs_by_name:
        request.text = data.draw(st.text(alphabet="abc\n", max_size=40))
    for path in (first, *data.draw(st.lists(st.sampled_from(LEAVES[method]), max_size=4))):
        put(request, path, data)
        tried.add((method, dotted(path)))
    return method, request


def draw_requests(
    data: st.DataObject, tried: set[tuple[str, str]], field: tuple[str, FieldPath]
) -> Iterator[tuple[str, Message]]:
    """One request that sets the field, and others that set any."""
    yield draw_request(data, tried, *field)
    for _ in range(REQUESTS_AN_EXAMPLE - 1):
        yield draw_request(data, tried, *data.draw(st.sampled_from(FIELDS)))


async def call(
    server: LiveServer, method: str, request: Message, leave_after: int | None, timeout: float | None
) -> None:
    rpc = getattr(server.stub, method)(request, timeout=timeout)
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
        if method != "GenerateStream":
            if leave_after is not None:
                await asyncio.sleep(0.001 * leave_after)
                rpc.cancel()
            await rpc
        else:
            read = 0
            while leave_after is None or read < leave_after:
                if await rpc.read() is grpc.aio.EOF:
                    break
                read += 1
            else:
                rpc.cancel()
    code = await rpc.code()
    assert code in ANSWERS, f"{method}: {code} {await rpc.details()}\n{request}"


async def check_idle(server: LiveServer) -> None:
    health: Any = health_pb2_grpc.HealthStub(server.channel)
    status = (await health.Check(health_pb2.HealthCheckRequest())).status
    assert status == health_pb2.HealthCheckResponse.SERVING
    async with asyncio.timeout(10):
        while True:
            load = (await server.stub.GetServerInfo(inference_pb2.GetServerInfoRequest())).load
            if load.num_running_requests == load.num_waiting_requests == 0:
                break
    assert load.num_free_pages + load.num_cached_pages == load.num_pages == 64


def test_no_value_of_any_field_harms_the_server_or_costs_a_page(tokenizer_dir: Path) -> None:
    tried: set[tuple[str, str]] = set()

    @settings(
        max_examples=EXAMPLES_A_FIELD,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        derandomize=True,
        database=None,
    )
    @given(data=st.data())
    def send(data: st.DataObject, field: tuple[str, FieldPath]) -> None:
        async def some() -> None:
            async with asyncio.TaskGroup() as tasks:
                for method, request in draw_requests(data, tried, field):
                    leave_after = data.draw(st.none() | st.integers(0, 4))
                    timeout = data.draw(st.none() | st.sampled_from([0.0, 0.01]))
                    tasks.create_task(call(server, method, request, leave_after, timeout))
            await check_idle(server)

        runner.run(some())

    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        server = runner.run(stack.enter_async_context(live_server(tokenizer_dir)))
        try:
            for field in FIELDS:
                send(field=field)
            runner.run(check_idle(server))
        finally:
            runner.run(stack.aclose())
    assert tried == {(method, dotted(path)) for method, path in FIELDS}
