"""When the clients try a call again, against a server of raw handlers that fails at first."""

import asyncio
from typing import Any

import grpc
import pytest

from jaxserve.client import AsyncClient, Client, RetryPolicy, UnavailableError
from jaxserve.request import RequestOutput, SamplingParams
from jaxserve.v1 import generate_pb2 as pb
from jaxserve.v1 import inference_pb2

GREEDY = SamplingParams(temperature=0, max_tokens=20)


@pytest.mark.parametrize("failures", [2, 9])
async def test_a_call_without_answer_is_tried_again_a_limited_number_of_times(failures: int) -> None:
    calls = 0

    async def handler(request: bytes, context: Any) -> bytes:
        nonlocal calls
        calls += 1
        if calls <= failures:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return inference_pb2.TokenizeResponse(token_ids=[7]).SerializeToString()

    async with _raw_server({"Tokenize": grpc.unary_unary_rpc_method_handler(handler)}) as target:
        policy = RetryPolicy(max_attempts=3, initial_backoff=0.01)
        async with AsyncClient(target, retry=policy) as client:
            if failures == 2:
                assert await client.tokenize("a") == [7]
            else:
                with pytest.raises(UnavailableError):
                    await client.tokenize("a")
    assert calls == 3


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_stream_is_tried_again_only_before_its_first_message(kind: str, begun: bool) -> None:
    calls = 0

    async def handler(request: bytes, context: Any) -> None:
        nonlocal calls
        calls += 1
        info = pb.GenerateStreamResponse(prompt_info=pb.PromptInfo(request_id="r"))
        if begun:
            await context.write(info.SerializeToString())
        if calls == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        end = pb.CompletionEnd(finish_reason=pb.FINISH_REASON_LENGTH)
        finished = pb.GenerateStreamResponse(finished=pb.GenerationFinished(completions=[end]))
        for message in (info, finished):
            await context.write(message.SerializeToString())

    def read_sync(target: str) -> RequestOutput:
        with Client(target, retry=RetryPolicy(initial_backoff=0.01)) as client:
            return client.generate_stream("a", GREEDY).read()

    async with _raw_server({"GenerateStream": grpc.unary_stream_rpc_method_handler(handler)}) as target:
        async with AsyncClient(target, retry=RetryPolicy(initial_backoff=0.01)) as client:
            stream = client.generate_stream("a", GREEDY)
            reading = asyncio.to_thread(read_sync, target) if kind == "sync" else stream.read()
            if kind == "sync":
                stream.cancel()
                calls = 0
            if begun:
                with pytest.raises(UnavailableError):
                    await reading
                assert calls == 1
            else:
                assert (await reading).finished
                assert calls == 2


class _raw_server:
    """A server of raw handlers of the inference service; gives its target."""

    def __init__(self, handlers: dict[str, Any]) -> None:
        self._server = grpc.aio.server()
        generic = grpc.method_handlers_generic_handler("jaxserve.v1.InferenceService", handlers)
        self._server.add_generic_rpc_handlers((generic,))

    async def __aenter__(self) -> str:
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return f"127.0.0.1:{port}"

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)
