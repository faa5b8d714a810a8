"""Generate and GenerateStream through a real server: tokens, text, stops, the stream's contract."""

import asyncio
import time
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from jaxserve.config import SchedulerConfig
from jaxserve.v1 import generate_pb2 as pb
from jaxserve.v1 import options_pb2, prompt_pb2
from tests.support.ascii_tokenizer import BOS, EOS, VOCAB_SIZE, ascii_text, write_tokenizer
from tests.support.live_server import LiveServer, live_server
from tests.support.simulated_engine import SCHEDULER_CONFIG, GatedRunner, simulated_core
from tests.support.simulated_runner import SimulatedRunner, expected_tokens
from tests.support.waiting import until

PROMPT = "def f(x):"
PROMPT_IDS = [BOS, *PROMPT.encode()]


def options(max_tokens: int | None = 24, **stopping: object) -> dict[str, object]:
    return {
        "sampling": options_pb2.SamplingOptions(temperature=0),
        "stopping": options_pb2.StoppingOptions(max_tokens=max_tokens, ignore_eos=True, **stopping),  # type: ignore[arg-type]
    }


async def stream(server: LiveServer, **fields: object) -> list[pb.GenerateStreamResponse]:
    return [event async for event in server.stub.GenerateStream(pb.GenerateStreamRequest(**fields))]


def fold(events: list[pb.GenerateStreamResponse]) -> tuple[str, list[int], pb.CompletionEnd]:
    deltas = [event.delta for event in events if event.HasField("delta")]
    tokens = [token for delta in deltas for token in delta.token_ids]
    return "".join(delta.text for delta in deltas), tokens, events[-1].finished.completions[0]


async def test_a_stream_is_prompt_info_then_deltas_then_one_finished(tokenizer_dir: Path) -> None:
    async with live_server(tokenizer_dir, core=simulated_core(step_delay=0.005)) as server:
        events = await stream(server, text=PROMPT, request_id="mine", **options())
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "prompt_info" and kinds[-1] == "finished"
    assert len(kinds) > 4 and set(kinds[1:-1]) == {"delta"}
    info, usage = events[0].prompt_info, events[-1].finished.usage
    assert (info.request_id, info.model, info.num_prompt_tokens) == ("mine", "arithmetic", len(PROMPT_IDS))
    assert not info.prompt_token_ids
    text, tokens, end = fold(events)
    assert tokens == expected_tokens(PROMPT_IDS, 24, VOCAB_SIZE)
    assert text == ascii_text(tokens)
    assert end.finish_reason == pb.FINISH_REASON_LENGTH and end.WhichOneof("stop_reason") is None
    assert (usage.num_prompt_tokens, usage.num_completion_tokens) == (len(PROMPT_IDS), 24)


async def test_tokens_that_piled_up_while_the_front_end_was_busy_come_in_one_delta(tokenizer_dir: Path) -> None:
    config = SCHEDULER_CONFIG
    runner = GatedRunner(SimulatedRunner(config.num_pages, config.page_size, config.max_num_seqs, VOCAB_SIZE))
    core = simulated_core(runner=runner)
    async with live_server(tokenizer_dir, core=core) as server:
        call = server.stub.GenerateStream(pb.GenerateStreamRequest(text=PROMPT, **options(100)))
        runner.allow(2)
        first = [await call.read(), await call.read()]
        assert [event.WhichOneof("event") for event in first] == ["prompt_info", "delta"]
        runner.open()
        deadline = time.monotonic() + 10
        while core.has_work:  # without a pause for the event loop, in which server and client run
            assert time.monotonic() < deadline
            time.sleep(0.01)
        events = list(first)
        while (event := await call.read()) is not grpc.aio.EOF:
            events.append(event)
    assert len(events) <= 6
    text, tokens, _ = fold(events)
    assert tokens == expected_tokens(PROMPT_IDS, 100, VOCAB_SIZE)
    assert text == ascii_text(tokens)


async def test_generate_answers_what_the_stream_adds_up_to(tokenizer_dir: Path) -> None:
    async with live_server(tokenizer_dir) as server:
        for stop in ([], [ascii_text(expected_tokens(PROMPT_IDS, 24, VOCAB_SIZE))[7:10]]):
            fields = options(stop_strings=stop)
            whole = await server.stub.Generate(pb.GenerateRequest(text=PROMPT, **fields))
            text, tokens, end = fold(await stream(server, text=PROMPT, **fields))
            completion = whole.completions[0]
            assert (completion.text, completion.token_ids, completion.end) == (text, tokens, end)
            assert whole.usage.num_completion_tokens == len(tokens)


async def test_text_token_ids_and_chat_reach_the_engine_as_the_same_prompt(tokenizer_dir: Path) -> None:
    chat_text = "[user]hi\n[assistant]"
    chat = prompt_pb2.ChatPrompt(messages=[prompt_pb2.ChatMessage(role="user", content="hi")])
    output = options_pb2.OutputOptions(include_prompt_token_ids=True)
    prompts = (
        {"chat": chat},
        {"text": chat_text, "add_special_tokens": False},
        {"token_ids": prompt_pb2.TokenIds(ids=chat_text.encode())},
    )
    async with live_server(tokenizer_dir) as server:
        for prompt in prompts:
            answer = await server.stub.Generate(pb.GenerateRequest(output=output, **prompt, **options()))
            assert bytes(answer.prompt_info.prompt_token_ids).decode() == chat_text
            assert answer.completions[0].token_ids == expected_tokens([*chat_text.encode()], 24, VOCAB_SIZE)


@pytest.mark.parametrize("include", [False, True])
async def test_a_stop_string_across_tokens_ends_the_text_before_or_after_it(tokenizer_dir: Path, include: bool) -> None:
    tokens = expected_tokens(PROMPT_IDS, 40, VOCAB_SIZE)
    spelled = ascii_text(tokens)
    stop = spelled[11:15]
    first = spelled.index(stop)
    core = simulated_core(step_delay=0.005)
    async with live_server(tokenizer_dir, core=core) as server:
        fields = options(max_tokens=None, stop_strings=["never there", stop], include_stop_string=include)
        text, seen, end = fold(await stream(server, text=PROMPT, **fields))
        # The engine is told to go no further.
        await until(lambda: len(core.aborts) == 1)
    assert text == spelled[: first + (len(stop) if include else 0)]
    assert end.finish_reason == pb.FINISH_REASON_STOP and end.stop_string == stop
    # The tokens are those up to the one that completed the stop string.
    assert ascii_text(seen) == spelled[: first + len(stop)] and seen == tokens[: len(seen)]


async def test_a_beginning_of_a_stop_string_that_comes_to_nothing_is_shown(tokenizer_dir: Path) -> None:
    spelled = ascii_text(expected_tokens(PROMPT_IDS, 24, VOCAB_SIZE))
    almost = spelled[-3:] + "~no~"
    async with live_server(tokenizer_dir) as server:
        text, _, end = fold(await stream(server, text=PROMPT, **options(stop_strings=[almost])))
    assert text == spelled and end.finish_reason == pb.FINISH_REASON_LENGTH


@pytest.mark.parametrize("include", [False, True])
async def test_a_stop_token_is_counted_and_its_text_shown_only_if_asked(tokenizer_dir: Path, include: bool) -> None:
    tokens = expected_tokens(PROMPT_IDS, 24, VOCAB_SIZE)
    stop = next(token for token in tokens if 32 < token < 127)
    through = tokens[: tokens.index(stop) + 1]
    async with live_server(tokenizer_dir) as server:
        fields = options(stop_token_ids=[stop], include_stop_string=include)
        text, seen, end = fold(await stream(server, text=PROMPT, **fields))
    assert seen == through and text == ascii_text(through if include else through[:-1])
    assert end.finish_reason == pb.FINISH_REASON_STOP and end.stop_token_id == stop


async def test_a_token_that_ends_a_turn_of_the_chosen_chat_format_ends_the_answer(tmp_path: Path) -> None:
    directory = write_tokenizer(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        file = directory / name
        file.write_text(file.read_text().replace("<bos>", "<eoa>"))
    eoa = BOS

    def prompt(content: str) -> list[int]:
        return [eoa, *f"<|User|>:{content}\n<|Bot|>:".encode()]

    content = next(c for c in "abcdefghijklmnop" if eoa in expected_tokens(prompt(c), 60, VOCAB_SIZE)[1:])
    through = expected_tokens(prompt(content), 60, VOCAB_SIZE, stop_token_ids=(EOS, eoa))
    request = pb.GenerateRequest(
        chat=prompt_pb2.ChatPrompt(messages=[prompt_pb2.ChatMessage(role="user", content=content)])
    )
    request.sampling.temperature, request.stopping.max_tokens = 0, 60
    async with live_server(directory, chat_template="internlm") as server:
        chat = (await server.stub.Generate(request)).completions[0]
        request.token_ids.ids[:] = prompt(content)
        plain = (await server.stub.Generate(request)).completions[0]
    assert chat.token_ids == through and chat.end.stop_token_id == eoa
    assert plain.token_ids == expected_tokens(prompt(content), 60, VOCAB_SIZE, stop_token_ids=(EOS,))
    assert len(plain.token_ids) > len(through)


async def test_the_models_own_end_token_ends_the_answer_unless_ignored(tokenizer_dir: Path) -> None:
    prompt = next(p for p in range(1, 128) if EOS in expected_tokens([p], 60, VOCAB_SIZE)[1:])
    through = expected_tokens([prompt], 60, VOCAB_SIZE, stop_token_ids=(EOS,))
    async with live_server(tokenizer_dir) as server:
        request = pb.GenerateRequest(token_ids=prompt_pb2.TokenIds(ids=[prompt]))
        request.sampling.temperature = 0
        completion = (await server.stub.Generate(request)).completions[0]
        assert completion.token_ids == through and completion.end.stop_token_id == EOS
        request.stopping.ignore_eos, request.stopping.max_tokens = True, 60
        completion = (await server.stub.Generate(request)).completions[0]
        assert completion.token_ids == expected_tokens([prompt], 60, VOCAB_SIZE)


async def test_unset_max_tokens_fills_the_context(tokenizer_dir: Path) -> None:
    async with live_server(tokenizer_dir) as server:
        answer = await server.stub.Generate(pb.GenerateRequest(text=PROMPT, **options(max_tokens=None)))
    assert answer.usage.num_prompt_tokens + answer.usage.num_completion_tokens == 128
    assert answer.completions[0].end.finish_reason == pb.FINISH_REASON_LENGTH


async def test_time_limit_keeps_what_there_is(tokenizer_dir: Path) -> None:
    async with live_server(tokenizer_dir, core=simulated_core(step_delay=0.02)) as server:
        fields = options(max_tokens=None, time_limit=Duration(nanos=300_000_000))
        answer = await server.stub.Generate(pb.GenerateRequest(text=PROMPT, **fields))
    completion = answer.completions[0]
    assert completion.end.finish_reason == pb.FINISH_REASON_DEADLINE
    assert completion.token_ids == expected_tokens(PROMPT_IDS, len(completion.token_ids), VOCAB_SIZE)


async def test_a_repeated_prompt_reports_its_cached_tokens(tokenizer_dir: Path) -> None:
    async with live_server(tokenizer_dir) as server:
        answers = [await server.stub.Generate(pb.GenerateRequest(text="x" * 40, **options())) for _ in range(2)]
    first, second = (answer.usage.num_cached_tokens for answer in answers)
    assert first == 0 and second >= 36
    assert answers[1].prompt_info.num_cached_tokens == second


async def test_without_detokenize_there_are_token_ids_only(tokenizer_dir: Path) -> None:
    async with live_server(tokenizer_dir) as server:
        output = options_pb2.OutputOptions(detokenize=False)
        answer = await server.stub.Generate(pb.GenerateRequest(text=PROMPT, output=output, **options()))
    assert answer.completions[0].text == ""
    assert answer.completions[0].token_ids == expected_tokens(PROMPT_IDS, 24, VOCAB_SIZE)


async def test_a_server_without_tokenizer_answers_token_ids_with_token_ids() -> None:
    async with live_server(None) as server:
        request = pb.GenerateRequest(token_ids=prompt_pb2.TokenIds(ids=[1, 2]), **options())
        completion = (await server.stub.Generate(request)).completions[0]
        assert completion.text == "" and completion.token_ids == expected_tokens([1, 2], 24, VOCAB_SIZE)


async def test_lower_priorities_run_first_under_the_priority_policy(tokenizer_dir: Path) -> None:
    scheduler = SchedulerConfig(
        num_pages=65,
        page_size=4,
        max_num_seqs=1,
        max_num_batched_tokens=32,
        max_model_len=128,
        scheduling_policy="priority",
    )
    order: list[str] = []

    async def ask(server: LiveServer, name: str, priority: int) -> None:
        await server.stub.Generate(pb.GenerateRequest(text="a", request_id=name, priority=priority, **options(60)))
        order.append(name)

    core = simulated_core(scheduler, step_delay=0.005)
    async with live_server(tokenizer_dir, core=core, scheduler=scheduler) as server:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ask(server, "first", 0))
            while server.engine.num_requests < 1:
                await asyncio.sleep(0.005)
            for name, priority in (("later", 7), ("sooner", -3)):
                tasks.create_task(ask(server, name, priority))
    assert order.index("sooner") < order.index("later")
