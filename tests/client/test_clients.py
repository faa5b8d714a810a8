"""Both clients against a real server on the runner of arithmetic."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxserve.client import (
    AlreadyExistsError,
    AsyncClient,
    CancelledError,
    Client,
    DeadlineExceededError,
    Health,
    InvalidArgumentError,
    UnavailableError,
)
from jaxserve.errors import InvalidRequestError, UnsupportedError
from jaxserve.request import FinishReason, RequestOutput, SamplingParams
from tests.support.ascii_tokenizer import BOS, VOCAB_SIZE, ascii_text
from tests.support.live_server import live_server
from tests.support.simulated_engine import simulated_core
from tests.support.simulated_runner import expected_tokens
from tests.support.waiting import until

GREEDY_FIELDS: dict[str, Any] = {"temperature": 0, "max_tokens": 20, "ignore_eos": True}
GREEDY = SamplingParams(**GREEDY_FIELDS)
EXPECTED = expected_tokens([BOS, *b"hello"], 20, VOCAB_SIZE)
ENDLESS = GREEDY.replace(max_tokens=None)


def use_sync(target: str) -> tuple[list[RequestOutput], list[str]]:
    """The same questions in every form a prompt can have; the answers, and the texts of one stream's deltas."""
    with Client(target) as client:
        client.wait_until_ready(10)
        answers = [
            client.generate("hello", GREEDY),
            client.generate({"prompt": "hello"}, GREEDY),
            client.generate([BOS, *b"hello"], GREEDY),
            client.generate({"prompt_token_ids": [BOS, *b"hello"]}, **GREEDY_FIELDS),
        ]
        with client.generate_stream("hello", GREEDY) as stream:
            texts = [delta.text for delta in stream]
            answers.append(stream.output)
        answers.append(client.generate_stream("hello", GREEDY).read())
        assert client.health() is Health.SERVING
        assert client.model_info().name == "arithmetic"
        assert client.server_info().load.num_running_requests == 0
        assert client.detokenize(client.tokenize("hello")) == "hello"
        assert client.tokenize(messages=[{"role": "user", "content": "a"}]) == [*b"[user]a\n[assistant]"]
    return answers, texts


async def use_async(target: str) -> tuple[list[RequestOutput], list[str]]:
    """As `use_sync`."""
    async with AsyncClient(target) as client:
        await client.wait_until_ready(10)
        answers = [
            await client.generate("hello", GREEDY),
            await client.generate({"prompt": "hello"}, GREEDY),
            await client.generate([BOS, *b"hello"], GREEDY),
            await client.generate(
                {"prompt_token_ids": [BOS, *b"hello"]}, temperature=0, max_tokens=20, ignore_eos=True
            ),
        ]
        async with client.generate_stream("hello", GREEDY) as stream:
            texts = [delta.text async for delta in stream]
            answers.append(stream.output)
        answers.append(await client.generate_stream("hello", GREEDY).read())
        assert await client.health() is Health.SERVING
        assert (await client.model_info()).name == "arithmetic"
        assert (await client.server_info()).load.num_running_requests == 0
        assert await client.detokenize(await client.tokenize("hello")) == "hello"
        assert await client.tokenize(messages=[{"role": "user", "content": "a"}]) == [*b"[user]a\n[assistant]"]
    return answers, texts


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_every_form_of_a_prompt_gets_the_same_answer(tokenizer_dir: Path, kind: str) -> None:
    async with live_server(tokenizer_dir) as server:
        if kind == "sync":
            answers, texts = await asyncio.to_thread(use_sync, server.target)
        else:
            answers, texts = await use_async(server.target)
    assert "".join(texts) == ascii_text(EXPECTED)
    for answer in answers:
        completion = answer.outputs[0]
        assert (completion.token_ids, completion.text) == (EXPECTED, ascii_text(EXPECTED))
        assert completion.finish_reason is FinishReason.LENGTH and completion.stop_reason is None
        assert answer.finished and answer.prompt_token_ids == [BOS, *b"hello"]
        assert answer.prompt in ("hello", None) and answer.request_id


async def test_without_parameters_the_defaults_of_sampling_params_hold(tokenizer_dir: Path) -> None:
    async with live_server(tokenizer_dir) as server, AsyncClient(server.target) as client:
        assert len((await client.generate("hello", ignore_eos=True)).outputs[0].token_ids) == 16
        answer = await client.generate(messages=[{"role": "user", "content": "hi"}], ignore_eos=True, max_tokens=3)
        assert bytes(answer.prompt_token_ids) == b"[user]hi\n[assistant]" and answer.prompt is None


async def test_every_sampling_parameter_reaches_the_engine_unchanged(
    tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(
        max_tokens=7,
        min_tokens=2,
        temperature=0.7,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        seed=-(2**63),
        stop=["END", "é"],
        stop_token_ids=[3, 4],
        ignore_eos=True,
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        time_limit=12.345678901,
    )
    async with live_server(tokenizer_dir) as server, AsyncClient(server.target) as client:
        seen: list[SamplingParams] = []
        submit = server.engine.submit
        monkeypatch.setattr(server.engine, "submit", lambda request: (seen.append(request.params), submit(request))[1])
        for asked in (params, SamplingParams(), SamplingParams(max_tokens=None, detokenize=False, top_k=-1)):
            await client.generate("a", asked)
            assert seen.pop() == asked.replace(stop=list(asked.stop) if asked.stop else None)


async def test_stop_reasons_are_told_as_vllm_tells_them(tokenizer_dir: Path) -> None:
    async with live_server(tokenizer_dir) as server, AsyncClient(server.target) as client:
        text = ascii_text(EXPECTED)
        stopped = (await client.generate("hello", GREEDY.replace(stop=text[4:7]))).outputs[0]
        assert (stopped.finish_reason, stopped.stop_reason) == (FinishReason.STOP, text[4:7])
        assert stopped.text == text[: text.index(text[4:7])]
        stopped = (await client.generate("hello", GREEDY.replace(stop_token_ids=[EXPECTED[3]]))).outputs[0]
        assert (stopped.finish_reason, stopped.stop_reason) == (FinishReason.STOP, EXPECTED[3])
        prompt = next(p for p in range(1, 128) if 128 in expected_tokens([p], 60, VOCAB_SIZE))
        ended = (await client.generate([prompt], temperature=0, max_tokens=60)).outputs[0]
        assert (ended.finish_reason, ended.stop_reason) == (FinishReason.STOP, None)


async def test_leaving_a_stream_ends_the_request(tokenizer_dir: Path) -> None:
    def leave(target: str) -> None:
        with Client(target) as client, client.generate_stream("a", ENDLESS) as stream:
            next(stream)

    async with live_server(tokenizer_dir, core=simulated_core(step_delay=0.02)) as server:
        await asyncio.to_thread(leave, server.target)
        await until(lambda: len(server.core.aborts) == 1)
        async with AsyncClient(server.target) as client:
            async with client.generate_stream("a", ENDLESS) as stream:
                await anext(stream)
            await until(lambda: len(server.core.aborts) == 2)
            reader = asyncio.create_task(client.generate("a", ENDLESS))
            await until(lambda: server.engine.num_requests == 1)
            reader.cancel()
            await until(lambda: len(server.core.aborts) == 3)


async def test_a_cancelled_stream_raises_and_keeps_what_it_read(tokenizer_dir: Path) -> None:
    def cancel(target: str) -> RequestOutput:
        with Client(target) as client:
            stream = client.generate_stream("a", ENDLESS)
            next(stream)
            stream.cancel()
            with pytest.raises(CancelledError):
                stream.read()
            return stream.output

    async with live_server(tokenizer_dir, core=simulated_core(step_delay=0.02)) as server:
        output = await asyncio.to_thread(cancel, server.target)
    tokens = output.outputs[0].token_ids
    assert not output.finished and tokens and tokens == expected_tokens([BOS, 97], len(tokens), VOCAB_SIZE)


async def test_a_timeout_is_both_an_rpc_error_and_a_timeout_error(tokenizer_dir: Path) -> None:
    async with (
        live_server(tokenizer_dir, core=simulated_core(step_delay=0.05)) as server,
        AsyncClient(server.target) as client,
    ):
        with pytest.raises(TimeoutError) as caught:
            await client.generate("a", ENDLESS, timeout=0.2)
        assert isinstance(caught.value, DeadlineExceededError)
        with pytest.raises(DeadlineExceededError):
            await client.generate_stream("a", ENDLESS, timeout=0.2).read()


async def test_refusals_carry_their_fields(tokenizer_dir: Path) -> None:
    async with live_server(tokenizer_dir, core=simulated_core(step_delay=0.02)) as server:
        async with AsyncClient(server.target) as client:
            with pytest.raises(InvalidArgumentError) as caught:
                await client.generate([1, 999], GREEDY)
            assert [violation.field for violation in caught.value.violations] == ["token_ids.ids[1]"]
            assert isinstance(caught.value, ValueError) and caught.value.request_id
            with pytest.raises(InvalidArgumentError):
                await client.generate("a", model="another")
            async with client.generate_stream("a", ENDLESS, request_id="one") as stream:
                await anext(stream)
                with pytest.raises(AlreadyExistsError):
                    await client.generate("a", request_id="one")


async def test_what_can_be_refused_here_is_not_sent() -> None:
    with Client("127.0.0.1:1") as client:
        for arguments in ((), ("a", None, "both"), ({"text": "a"},), ([2**40],), (["a"],)):
            messages = [{"role": "user", "content": "a"}] if "both" in arguments else None
            with pytest.raises(InvalidRequestError):
                client.generate(*arguments[:1], messages=messages)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError):
            client.generate("a", temperature=float("nan"))
        with pytest.raises(InvalidRequestError):
            client.generate("a", max_tokens=2**40)
        with pytest.raises(UnsupportedError):
            client.generate("a", n=2)
        with pytest.raises(TypeError, match="max_token"):
            client.generate("a", max_token=2)


async def test_waiting_for_a_server_that_never_comes_ends_with_a_timeout() -> None:
    def wait() -> None:
        with Client("127.0.0.1:1") as client:
            client.wait_until_ready(0.4)

    with pytest.raises(DeadlineExceededError):
        await asyncio.to_thread(wait)
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(DeadlineExceededError):
            await client.wait_until_ready(0.4)
        with pytest.raises(UnavailableError):
            await client.health()


def test_client_and_front_end_import_no_jax() -> None:
    modules = "jaxserve.client, jaxserve.server.serve, jaxserve.engine.client, jaxserve.engine.process"
    code = f"import sys, {modules}; print(sorted({{'jax', 'jaxlib', 'flax', 'torch'}} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]"
