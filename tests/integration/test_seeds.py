"""The same seed gives the same tokens, whatever else the engine does."""

from pathlib import Path

import pytest

from jaxserve import LLM, SamplingParams
from jaxserve.engine import core
from tests.support.recorded_models import Recording, generate_checked, recorded_llm, recorded_plans, tokens

PROMPTS = Recording.of("gqa").prompts
SEEDS = [11, -3, 2**62 + 1, 7]
PARAMS = [SamplingParams(max_tokens=24, temperature=1.2, top_p=0.97, seed=seed, ignore_eos=True) for seed in SEEDS]


@pytest.fixture(scope="module")
def llm(compilation_cache_dir: Path) -> LLM:
    """Pages for half of what the prompts and their answers need."""
    return recorded_llm("gqa", compilation_cache_dir, num_pages=22)


@pytest.fixture(scope="module")
def alone(llm: LLM) -> list[list[int]]:
    return [tokens(llm.generate(prompt, p, use_tqdm=False))[0] for prompt, p in zip(PROMPTS, PARAMS, strict=True)]


def test_alone_and_beside_others_and_through_preemption(llm: LLM, alone: list[list[int]]) -> None:
    before = llm.core.stats().num_preemptions
    assert generate_checked(llm, PROMPTS, PARAMS) == alone
    assert llm.core.stats().num_preemptions > before
    assert generate_checked(llm, PROMPTS[::-1], PARAMS[::-1]) == alone[::-1]


@pytest.mark.parametrize("devices", [2, 4])
def test_on_another_number_of_devices(
    devices: int, llm: LLM, alone: list[list[int]], compilation_cache_dir: Path
) -> None:
    """Each device draws for some of the rows. With every restriction, a greedy row, and stop tokens held back."""
    several = recorded_llm("gqa", compilation_cache_dir, num_pages=80, tensor_parallel_size=devices)
    assert generate_checked(several, PROMPTS, PARAMS) == alone
    others = [
        PARAMS[0].replace(top_k=7, min_p=0.02),
        PARAMS[1].replace(temperature=0.0),
        PARAMS[2].replace(top_p=1.0),
        PARAMS[3].replace(stop_token_ids=alone[3][5:9], min_tokens=12),
    ]
    assert generate_checked(several, PROMPTS, others) == generate_checked(llm, PROMPTS, others)


def test_beside_greedy_requests_that_stay_greedy(llm: LLM, alone: list[list[int]]) -> None:
    recording = Recording.of("gqa")
    greedy = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
    answers = generate_checked(llm, PROMPTS, [PARAMS[0], greedy, PARAMS[2], greedy])
    assert answers == [alone[0], recording.greedy[1], alone[2], recording.greedy[3]]


def test_another_seed_gives_other_tokens(llm: LLM, alone: list[list[int]]) -> None:
    others = [p.replace(seed=seed + 1) for p, seed in zip(PARAMS, SEEDS, strict=True)]
    assert all(a != b for a, b in zip(generate_checked(llm, PROMPTS, others), alone, strict=True))


def test_without_a_seed_requests_differ_and_engines_of_one_seed_agree(compilation_cache_dir: Path) -> None:
    def answers(seed: int) -> list[list[int]]:
        llm = recorded_llm("gqa", compilation_cache_dir, num_pages=80, seed=seed)
        return generate_checked(llm, PROMPTS[:1] * 3, SamplingParams(max_tokens=12, temperature=1.5, ignore_eos=True))

    first = answers(0)
    assert len({tuple(answer) for answer in first}) == 3
    assert answers(0) == first
    assert answers(1) != first


@pytest.mark.parametrize("first", [0, 5, 12])
def test_stop_tokens_are_held_back_for_just_min_tokens(llm: LLM, alone: list[list[int]], first: int) -> None:
    """The first token that is new from here on is made a stop token."""
    plain = alone[3]
    index = next(i for i in range(first, len(plain)) if plain[i] not in plain[:i])
    stop = plain[index]
    params = PARAMS[3].replace(stop_token_ids=[stop])
    allowed = generate_checked(llm, [PROMPTS[3]], params.replace(min_tokens=index))[0]
    held = generate_checked(llm, [PROMPTS[3]], params.replace(min_tokens=index + 1))[0]
    assert allowed == plain[: index + 1]
    assert len(held) > index + 1 and held[:index] == plain[:index] and held[index] != stop


def test_one_step_at_a_time_gives_what_two_in_flight_give(
    llm: LLM, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_flight: list[int] = []
    dispatch = llm.core.runner.dispatch

    def counted_dispatch(plan: object) -> object:
        in_flight.append(len(llm.core._in_flight))
        return dispatch(plan)  # type: ignore[arg-type]

    monkeypatch.setattr(llm.core.runner, "dispatch", counted_dispatch)
    assert generate_checked(llm, PROMPTS, PARAMS) == alone
    assert max(in_flight) == 1
    in_flight.clear()
    monkeypatch.setattr(core, "PIPELINE_DEPTH", 1)
    assert generate_checked(llm, PROMPTS, PARAMS) == alone
    assert set(in_flight) == {0}


def test_tokens_in_flight_never_pass_through_the_host(llm: LLM, alone: list[list[int]]) -> None:
    plans = recorded_plans(llm)
    assert generate_checked(llm, PROMPTS[:1], PARAMS[0]) == alone[:1]
    assert [plan.feeds_back for plan in plans] == [[False]] + [[True]] * (len(plans) - 1)
