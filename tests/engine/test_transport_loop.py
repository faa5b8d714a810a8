"""The engine's loop and its client over a real ZeroMQ socket."""

import asyncio

import msgspec
import pytest
import zmq

from jaxserve.config import SchedulerConfig
from jaxserve.engine.client import EngineClient, EngineState
from jaxserve.engine.messages import AddRequest
from jaxserve.errors import DuplicateRequestError, EngineDeadError, QueueFullError
from jaxserve.request import FinishReason, Request, RequestUpdate, SamplingParams
from tests.support.ascii_tokenizer import VOCAB_SIZE
from tests.support.simulated_engine import SCHEDULER_CONFIG, GatedRunner, engine_info, engine_thread, simulated_core
from tests.support.simulated_runner import SimulatedRunner, expected_tokens
from tests.support.waiting import until

PROMPT = [5, 6, 7]


def request(request_id: str, max_tokens: int | None = 6, prompt: list[int] | None = None) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=prompt or PROMPT,
        params=SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True),
    )


def gated_runner() -> GatedRunner:
    config = SCHEDULER_CONFIG
    return GatedRunner(SimulatedRunner(config.num_pages, config.page_size, config.max_num_seqs, VOCAB_SIZE))


async def connected(endpoint: str) -> EngineClient:
    client = EngineClient(endpoint)
    client.connect()
    await client.wait_until_ready()
    return client


async def collect(client: EngineClient, asked: Request) -> tuple[list[int], FinishReason | None]:
    tokens: list[int] = []
    reason = None
    async for update in client.submit(asked):
        tokens += update.token_ids
        reason = update.finish_reason
    return tokens, reason


async def test_requests_of_two_front_ends_get_their_own_tokens() -> None:
    with engine_thread(simulated_core(), engine_info()) as endpoint:
        clients = [await connected(endpoint), await connected(endpoint)]
        prompts = [[i + 1, 2 * i + 1] for i in range(8)]
        answers = await asyncio.gather(
            *(collect(clients[i % 2], request(f"r{i}", 9, prompt)) for i, prompt in enumerate(prompts))
        )
        for prompt, (tokens, reason) in zip(prompts, answers, strict=True):
            assert tokens == expected_tokens(prompt, 9, VOCAB_SIZE)
            assert reason is FinishReason.LENGTH
        for client in clients:
            await client.close()


async def test_an_id_in_flight_is_refused_from_the_same_and_from_another_front_end() -> None:
    runner = gated_runner()
    with engine_thread(simulated_core(runner=runner), engine_info()) as endpoint:
        one, two = await connected(endpoint), await connected(endpoint)
        stream = one.submit(request("same", 60))
        with pytest.raises(DuplicateRequestError):
            one.submit(request("same"))
        # Only once the engine has the first one: messages of different front ends come in any order.
        runner.allow(1)
        first = await anext(stream)
        refused = asyncio.create_task(_drain(two.submit(request("same"))))
        while not refused.done():
            runner.allow(1)
            await asyncio.sleep(0.02)
        with pytest.raises(DuplicateRequestError):
            await refused
        runner.open()
        tokens = first.token_ids + [token async for update in stream for token in update.token_ids]
        assert tokens == expected_tokens(PROMPT, 60, VOCAB_SIZE)
        await one.close()
        await two.close()


async def test_an_id_can_be_used_again_after_an_abort_and_gets_no_stale_tokens() -> None:
    runner = gated_runner()
    with engine_thread(simulated_core(runner=runner), engine_info()) as endpoint:
        client = await connected(endpoint)
        first = client.submit(request("again", None))
        runner.allow(3)
        await anext(first)
        first.close()
        second = client.submit(request("again", 6, [9, 9]))
        runner.open()
        tokens = [token async for update in second for token in update.token_ids]
        assert tokens == expected_tokens([9, 9], 6, VOCAB_SIZE)
        await client.close()


async def test_the_admission_limit_reaches_the_submitter_with_a_delay() -> None:
    config = SchedulerConfig(
        num_pages=65,
        page_size=4,
        max_num_seqs=1,
        max_num_batched_tokens=32,
        max_model_len=128,
        max_num_queued_requests=1,
    )
    runner = gated_runner()
    with engine_thread(simulated_core(config, runner), engine_info(config)) as endpoint:
        client = await connected(endpoint)
        streams = [client.submit(request(f"r{i}")) for i in range(4)]
        runner.open()
        results = await asyncio.gather(*(_drain(stream) for stream in streams), return_exceptions=True)
        refused = [error for error in results if isinstance(error, QueueFullError)]
        assert refused and len(refused) < 4
        assert all(error.limit == 1 and error.retry_after > 0 for error in refused)
        await client.close()


async def _drain(stream: object) -> None:
    async for _ in stream:  # type: ignore[attr-defined]
        pass


async def test_requests_of_a_front_end_that_is_gone_are_aborted() -> None:
    core = simulated_core(step_delay=0.01)
    with engine_thread(core, engine_info()) as endpoint:
        with zmq.Context() as context, context.socket(zmq.DEALER) as gone:
            gone.connect(endpoint)
            gone.send(msgspec.msgpack.encode(AddRequest(0, request("orphan", None))))
            await until(lambda: core.used_pages and core.used_pages[-1] > 0)
            # As when its process is killed: the connection closes and nothing is said.
            gone.close(linger=0)
        witness = await connected(endpoint)
        await until(lambda: core.aborts)
        stats = await witness.stats()
        assert stats.num_running == stats.num_used_pages == 0
        await witness.close()


async def test_a_failing_step_ends_every_stream_and_the_client_is_dead() -> None:
    with engine_thread(simulated_core(fail_at_step=3), engine_info()) as endpoint:
        client = await connected(endpoint)
        states: list[EngineState] = []
        client.on_state_change(states.append)
        results = await asyncio.gather(
            *(collect(client, request(f"r{i}", None)) for i in range(3)), return_exceptions=True
        )
        assert all(isinstance(result, EngineDeadError) for result in results)
        assert states == [EngineState.DEAD]
        with pytest.raises(EngineDeadError):
            client.submit(request("late"))
        with pytest.raises(EngineDeadError):
            await client.stats()
        await client.close()


async def test_a_client_notices_that_the_engine_is_gone_without_a_word() -> None:
    with engine_thread(simulated_core(), engine_info()) as endpoint:
        client = await connected(endpoint)
    await until(lambda: client.state is EngineState.DEAD)
    await client.close()


async def test_a_client_may_connect_before_the_engine_listens(tmp_path: object) -> None:
    endpoint = f"ipc://{tmp_path}/late"
    client = EngineClient(endpoint)
    client.connect()
    with engine_thread(simulated_core(), engine_info(), endpoint):
        assert (await client.wait_until_ready()).model_name == "arithmetic"
        await client.close()


async def test_updates_that_nobody_reads_are_merged_into_one() -> None:
    with engine_thread(simulated_core(), engine_info()) as endpoint:
        client = await connected(endpoint)
        stream = client.submit(request("slow reader", 20))
        await until(lambda: client.num_requests == 0)
        updates = [update async for update in stream]
        assert updates == [
            RequestUpdate("slow reader", expected_tokens(PROMPT, 20, VOCAB_SIZE), FinishReason.LENGTH, None, 0)
        ]
        await client.close()
