"""Every bad request gets its status and the path of the field at fault; the server goes on."""

import asyncio
import math
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

from jaxserve.client.errors import RpcError, from_rpc_error
from jaxserve.config import SchedulerConfig
from jaxserve.v1 import generate_pb2 as pb
from jaxserve.v1 import inference_pb2, options_pb2, prompt_pb2
from tests.support.ascii_tokenizer import VOCAB_SIZE
from tests.support.live_server import LiveServer, live_server
from tests.support.simulated_engine import GatedRunner, simulated_core
from tests.support.simulated_runner import SimulatedRunner

Sampling, Stopping = options_pb2.SamplingOptions, options_pb2.StoppingOptions
Output, Constraints = options_pb2.OutputOptions, options_pb2.ConstraintOptions
NAN = math.nan


def ids(*values: int) -> prompt_pb2.TokenIds:
    return prompt_pb2.TokenIds(ids=values)


def chat(*messages: tuple[str, str], **fields: Any) -> prompt_pb2.ChatPrompt:
    return prompt_pb2.ChatPrompt(messages=[prompt_pb2.ChatMessage(role=r, content=c) for r, c in messages], **fields)


TEMPLATE_KWARGS = Struct()
TEMPLATE_KWARGS["thinking"] = True

INVALID: list[tuple[str, dict[str, Any]]] = [
    ("prompt", {}),
    ("text", {"text": "", "add_special_tokens": False}),
    ("text", {"text": "x" * 200}),
    ("token_ids.ids", {"token_ids": ids()}),
    ("token_ids.ids[1]", {"token_ids": ids(1, -1)}),
    ("token_ids.ids[0]", {"token_ids": ids(VOCAB_SIZE)}),
    ("token_ids.ids[2]", {"token_ids": ids(1, 2, 2**31 - 1)}),
    ("token_ids.ids", {"token_ids": ids(*[1] * 128)}),
    ("chat.messages", {"chat": chat()}),
    ("chat.messages[1].role", {"chat": chat(("user", "a"), ("", "b"))}),
    ("chat", {"chat": chat(("user", "x" * 200))}),
    ("add_special_tokens", {"token_ids": ids(1), "add_special_tokens": True}),
    ("add_special_tokens", {"chat": chat(("user", "a")), "add_special_tokens": False}),
    ("sampling.temperature", {"text": "a", "sampling": Sampling(temperature=-0.1)}),
    ("sampling.temperature", {"text": "a", "sampling": Sampling(temperature=NAN)}),
    ("sampling.temperature", {"text": "a", "sampling": Sampling(temperature=math.inf)}),
    ("sampling.top_p", {"text": "a", "sampling": Sampling(top_p=0)}),
    ("sampling.top_p", {"text": "a", "sampling": Sampling(top_p=NAN)}),
    ("sampling.top_p", {"text": "a", "sampling": Sampling(top_p=1.5)}),
    ("sampling.top_k", {"text": "a", "sampling": Sampling(top_k=-2)}),
    ("sampling.min_p", {"text": "a", "sampling": Sampling(min_p=-1)}),
    ("sampling.min_p", {"text": "a", "sampling": Sampling(min_p=NAN)}),
    ("stopping.max_tokens", {"text": "a", "stopping": Stopping(max_tokens=0)}),
    ("stopping.max_tokens", {"text": "a", "stopping": Stopping(max_tokens=-5)}),
    ("stopping.min_tokens", {"text": "a", "stopping": Stopping(min_tokens=-1)}),
    ("stopping.min_tokens", {"text": "a", "stopping": Stopping(min_tokens=5, max_tokens=4)}),
    ("stopping.min_tokens", {"text": "a", "stopping": Stopping(min_tokens=500)}),
    ("stopping.stop_strings[1]", {"text": "a", "stopping": Stopping(stop_strings=["a", ""])}),
    ("stopping.stop_strings[0]", {"text": "a", "stopping": Stopping(stop_strings=["a" * 1025])}),
    ("stopping.stop_strings", {"text": "a", "stopping": Stopping(stop_strings=["a"] * 33)}),
    (
        "stopping.stop_strings",
        {"text": "a", "stopping": Stopping(stop_strings=["a"]), "output": Output(detokenize=False)},
    ),
    ("stopping.stop_token_ids[0]", {"text": "a", "stopping": Stopping(stop_token_ids=[-1])}),
    ("stopping.stop_token_ids[1]", {"text": "a", "stopping": Stopping(stop_token_ids=[1, VOCAB_SIZE])}),
    ("stopping.stop_token_ids", {"text": "a", "stopping": Stopping(stop_token_ids=[1] * 33)}),
    ("stopping.time_limit", {"text": "a", "stopping": Stopping(time_limit=Duration())}),
    ("stopping.time_limit", {"text": "a", "stopping": Stopping(time_limit=Duration(seconds=-1))}),
    ("stopping.time_limit", {"text": "a", "stopping": Stopping(time_limit=Duration(seconds=1, nanos=2_000_000_000))}),
    ("stopping.time_limit", {"text": "a", "stopping": Stopping(time_limit=Duration(seconds=1, nanos=-1))}),
    ("model", {"text": "a", "model": "another"}),
    ("model", {"text": "a", "model": ""}),
    ("priority", {"text": "a", "priority": 1}),
    ("request_id", {"text": "a", "request_id": ""}),
    ("request_id", {"text": "a", "request_id": "two words"}),
    ("request_id", {"text": "a", "request_id": "x" * 129}),
    ("request_id", {"text": "a", "request_id": "naïve"}),
]

UNBUILT: list[tuple[str, dict[str, Any]]] = [
    ("sampling.n", {"sampling": Sampling(n=2)}),
    ("sampling.n", {"sampling": Sampling(n=0)}),
    ("sampling.presence_penalty", {"sampling": Sampling(presence_penalty=0.5)}),
    ("sampling.frequency_penalty", {"sampling": Sampling(frequency_penalty=NAN)}),
    ("sampling.repetition_penalty", {"sampling": Sampling(repetition_penalty=1.1)}),
    ("output.logprobs", {"output": Output(logprobs=0)}),
    ("output.prompt_logprobs", {"output": Output(prompt_logprobs=1)}),
    ("constraints.logit_bias", {"constraints": Constraints(logit_bias={5: 1.0})}),
    ("constraints.allowed_token_ids", {"constraints": Constraints(allowed_token_ids=[1])}),
    ("constraints.bad_words", {"constraints": Constraints(bad_words=["a"])}),
    ("constraints.json_schema", {"constraints": Constraints(json_schema="")}),
    ("constraints.regex", {"constraints": Constraints(regex="a+")}),
    ("constraints.choices", {"constraints": Constraints(choices=options_pb2.Choices())}),
    ("constraints.ebnf_grammar", {"constraints": Constraints(ebnf_grammar="root ::= 'a'")}),
    ("adapter", {"adapter": ""}),
    ("chat.template_kwargs", {"chat": chat(("user", "a"), template_kwargs=TEMPLATE_KWARGS)}),
]


async def refusal(call: Any) -> RpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def stream_refusal(call: Any) -> RpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            raise AssertionError("a refused stream sent an event")
    return from_rpc_error(caught.value)


async def both_refuse(server: LiveServer, code: grpc.StatusCode, path: str, fields: dict[str, Any]) -> None:
    errors = (
        await refusal(server.stub.Generate(pb.GenerateRequest(**fields))),
        await stream_refusal(server.stub.GenerateStream(pb.GenerateStreamRequest(**fields))),
    )
    for error in errors:
        assert error.code is code, f"{fields}: {error}"
        assert [violation.field for violation in error.violations] == [path], fields
        assert error.violations[0].description


async def test_a_value_that_can_never_work_is_invalid_argument_at_its_path(tokenizer_dir: Path) -> None:
    async with live_server(tokenizer_dir) as server:
        for path, fields in INVALID:
            await both_refuse(server, grpc.StatusCode.INVALID_ARGUMENT, path, fields)
        stats = await server.engine.stats()
        assert stats.num_finished == stats.num_steps == 0


async def test_what_is_not_built_is_unimplemented_at_its_path(tokenizer_dir: Path) -> None:
    async with live_server(tokenizer_dir) as server:
        for path, fields in UNBUILT:
            prompt = {} if "chat" in fields else {"text": "a"}
            await both_refuse(server, grpc.StatusCode.UNIMPLEMENTED, path, prompt | fields)
        assert (await server.engine.stats()).num_steps == 0


async def test_defaults_given_explicitly_are_accepted(tokenizer_dir: Path) -> None:
    request = pb.GenerateRequest(
        text="a",
        sampling=Sampling(
            temperature=1, top_p=1, top_k=0, min_p=0, n=1, presence_penalty=0, frequency_penalty=0, repetition_penalty=1
        ),
        stopping=Stopping(max_tokens=2, min_tokens=0, ignore_eos=False),
        output=Output(detokenize=True, skip_special_tokens=True),
        constraints=Constraints(),
        priority=0,
        model="arithmetic",
        add_special_tokens=True,
    )
    async with live_server(tokenizer_dir) as server:
        assert (await server.stub.Generate(request)).usage.num_completion_tokens == 2


async def test_without_tokenizer_text_is_refused_and_so_are_stop_strings() -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    async with live_server(None) as server:
        await both_refuse(server, invalid, "text", {"text": "a"})
        await both_refuse(server, invalid, "chat", {"chat": chat(("user", "a"))})
        await both_refuse(
            server, invalid, "output.detokenize", {"token_ids": ids(1), "output": Output(detokenize=True)}
        )
        await both_refuse(
            server, invalid, "stopping.stop_strings", {"token_ids": ids(1), "stopping": Stopping(stop_strings=["a"])}
        )


async def test_a_message_over_the_cap_names_its_largest_field(tokenizer_dir: Path) -> None:
    async with live_server(tokenizer_dir, max_message_bytes=4096) as server:
        cases = (
            ("text", {"text": "x" * 5000, "model": "m" * 100}),
            ("token_ids", {"token_ids": ids(*[1] * 5000)}),
            ("constraints", {"text": "a", "constraints": Constraints(regex="x" * 5000)}),
        )
        for path, fields in cases:
            error = await refusal(server.stub.Generate(pb.GenerateRequest(**fields)))
            assert (error.code, error.violations[0].field) == (grpc.StatusCode.INVALID_ARGUMENT, path)
        # At the cap exactly the message is read, and refused only for what it says.
        request = inference_pb2.TokenizeRequest(text="x" * 4093)
        assert request.ByteSize() == 4096
        error = await refusal(server.stub.Tokenize(request))
        assert error.violations[0].description.startswith("makes an answer of")
        request.text = "x" * 2000
        assert len((await server.stub.Tokenize(request)).token_ids) == 2001
        # Far above it gRPC itself refuses to read.
        error = await refusal(server.stub.Generate(pb.GenerateRequest(text="x" * 50_000)))
        assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.retry_after is None


async def test_tokenize_and_detokenize_are_each_others_inverse_and_refuse_what_they_cannot_read(
    tokenizer_dir: Path,
) -> None:
    async with live_server(tokenizer_dir) as server:
        tokens = (await server.stub.Tokenize(inference_pb2.TokenizeRequest(text="hello"))).token_ids
        assert tokens == [129, *b"hello"]
        long = "word " * 1000
        request = inference_pb2.TokenizeRequest(text=long, add_special_tokens=False)
        tokens = (await server.stub.Tokenize(request)).token_ids
        assert (await server.stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=tokens))).text == long
        request = inference_pb2.DetokenizeRequest(token_ids=[129, 65, 128])
        assert (await server.stub.Detokenize(request)).text == "A"
        request.skip_special_tokens = False
        assert (await server.stub.Detokenize(request)).text == "<bos>A<eos>"
        refused = (
            (server.stub.Tokenize, inference_pb2.TokenizeRequest(), "prompt"),
            (server.stub.Tokenize, inference_pb2.TokenizeRequest(text="a", model="b"), "model"),
            (server.stub.Tokenize, inference_pb2.TokenizeRequest(chat=chat()), "chat.messages"),
            (server.stub.Detokenize, inference_pb2.DetokenizeRequest(token_ids=[1, -1]), "token_ids[1]"),
            (server.stub.Detokenize, inference_pb2.DetokenizeRequest(token_ids=[VOCAB_SIZE]), "token_ids[0]"),
            (server.stub.Detokenize, inference_pb2.DetokenizeRequest(model="b"), "model"),
            (server.stub.GetModelInfo, inference_pb2.GetModelInfoRequest(model="b"), "model"),
        )
        for method, message, path in refused:
            error = await refusal(method(message))
            assert (error.code, error.violations[0].field) == (grpc.StatusCode.INVALID_ARGUMENT, path)


async def test_an_id_in_flight_already_exists_and_is_free_again_afterwards(tokenizer_dir: Path) -> None:
    core = simulated_core(step_delay=0.02)
    async with live_server(tokenizer_dir, core=core) as server:
        request = pb.GenerateStreamRequest(text="a", request_id="one", stopping=Stopping(ignore_eos=True))
        first = server.stub.GenerateStream(request)
        await first.read()
        error = await stream_refusal(server.stub.GenerateStream(request))
        assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "DUPLICATE_REQUEST_ID")
        first.cancel()
        while server.engine.num_requests:
            await asyncio.sleep(0.005)
        again = server.stub.GenerateStream(request)
        assert (await again.read()).prompt_info.request_id == "one"
        again.cancel()


async def test_a_full_queue_is_resource_exhausted_with_a_delay(tokenizer_dir: Path) -> None:
    scheduler = SchedulerConfig(
        num_pages=65,
        page_size=4,
        max_num_seqs=1,
        max_num_batched_tokens=32,
        max_model_len=128,
        max_num_queued_requests=2,
    )
    runner = GatedRunner(SimulatedRunner(65, 4, 1, VOCAB_SIZE))
    async with live_server(tokenizer_dir, core=simulated_core(scheduler, runner), scheduler=scheduler) as server:
        calls = [
            asyncio.ensure_future(server.stub.Generate(pb.GenerateRequest(text="a", stopping=Stopping(max_tokens=3))))
            for _ in range(8)
        ]
        while server.engine.num_requests + sum(call.done() for call in calls) < 8:
            await asyncio.sleep(0.005)
        runner.open()
        results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [from_rpc_error(result) for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert 1 <= len(refused) <= 6
    for error in refused:
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert error.retry_after is not None and error.retry_after > 0 and error.retry_safe is True


async def test_an_unexpected_fault_is_internal_and_tells_nothing_of_the_insides(
    tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with live_server(tokenizer_dir) as server:

        def fail(request: object) -> None:
            raise RuntimeError("secret path /home/someone")

        monkeypatch.setattr(server.engine, "submit", fail)
        error = await refusal(server.stub.Generate(pb.GenerateRequest(text="a")))
        assert error.code is grpc.StatusCode.INTERNAL and "secret" not in str(error)
