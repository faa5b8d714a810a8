"""Greedy tokens through the whole engine equal those of the original implementation, whatever the engine does."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaxserve import LLM
from jaxserve.engine import build
from jaxserve.scheduler.scheduler import Scheduler
from tests.support.recorded_models import (
    FAMILY_CASES,
    LLAMA_CASES,
    Recording,
    generate_checked,
    greedy_params,
    recorded_llm,
    recorded_plans,
    tokens,
)

PAGE_SIZE = 4
# Tokens of a case's prompts together. rope_dynamic's are fewer.
ALL_PROMPTS = 67
# For all prompts of a case and their answers, and for half of that: little more than one sequence of the longest kind.
ENOUGH_PAGES = 45
FEW_PAGES = 22


def ways(cases: Iterable[str], *devices: int) -> list[Any]:
    return [pytest.param((case, n), id=f"{case}-{n}dev") for case in cases for n in devices]


# Rope scaling does not depend on the mesh.
LLAMA_WAYS = ways(LLAMA_CASES, 1, 2) + ways((c for c in LLAMA_CASES if not c.startswith("rope")), 4)
# With the engine's smallest steps only, which are what chunks, preemption and prefix hits need.
EVERY_WAY = LLAMA_WAYS + ways(FAMILY_CASES, 1, 2)


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest, compilation_cache_dir: Path) -> tuple[LLM, Recording]:
    case, devices = request.param
    llm = recorded_llm(
        case,
        compilation_cache_dir,
        tensor_parallel_size=devices,
        page_size=PAGE_SIZE,
        num_pages=ENOUGH_PAGES,
        max_num_batched_tokens=ALL_PROMPTS,
    )
    return llm, Recording.of(case)


def start_afresh(llm: LLM, max_num_batched_tokens: int, num_pages: int) -> None:
    """A new scheduler, with nothing cached, over the same pool and the same compiled steps."""
    config = llm.core.scheduler.config
    config = replace(config, max_num_batched_tokens=max_num_batched_tokens, num_pages=num_pages)
    llm.core.scheduler = Scheduler(config, llm.info.limits.eos_token_ids)


@pytest.mark.parametrize("engine", LLAMA_WAYS, indirect=True)
def test_whole_prompts_in_one_step(engine: tuple[LLM, Recording]) -> None:
    llm, recording = engine
    start_afresh(llm, ALL_PROMPTS, ENOUGH_PAGES)
    plans = recorded_plans(llm)
    assert generate_checked(llm, recording.prompts, greedy_params()) == recording.greedy
    assert plans[0].query_lens == [len(prompt) for prompt in recording.prompts]
    assert llm.core.stats().num_preemptions == 0


@pytest.mark.parametrize("engine", EVERY_WAY, indirect=True)
def test_chunked_prefill_and_forced_preemption(engine: tuple[LLM, Recording]) -> None:
    llm, recording = engine
    start_afresh(llm, 4, FEW_PAGES)
    plans = recorded_plans(llm)
    assert generate_checked(llm, recording.prompts, greedy_params()) == recording.greedy
    assert max(plan.num_tokens for plan in plans) == 4  # every longer prompt came in chunks
    assert llm.core.stats().num_preemptions > 0


@pytest.mark.parametrize("engine", EVERY_WAY, indirect=True)
def test_prefix_hits_and_copies_on_write(engine: tuple[LLM, Recording]) -> None:
    llm, recording = engine
    start_afresh(llm, 4, FEW_PAGES)
    # A prompt of whole pages, cached wholly: its last token is computed again, in a copy of its page.
    full = recording.grown_to_multiples(PAGE_SIZE)
    for prompt, greedy in zip(full.prompts, full.greedy, strict=True):
        assert generate_checked(llm, [prompt], greedy_params(len(greedy))) == [greedy]
        plans = recorded_plans(llm)
        again = llm.generate([prompt], greedy_params(len(greedy)), use_tqdm=False)
        assert tokens(again) == [greedy]
        assert again[0].num_cached_tokens == len(prompt) - 1
        assert [len(plan.page_copies) for plan in plans] == [1] + [0] * (len(plans) - 1)
    # A prompt whose last page is not full: whole pages are shared and the rest is computed.
    prompt, greedy = recording.prompts[-1] + recording.greedy[-1][:1], recording.greedy[-1][1:]
    shared = llm.generate([prompt], greedy_params(len(greedy)), use_tqdm=False)
    assert tokens(shared) == [greedy]
    assert 0 < shared[0].num_cached_tokens <= len(prompt) // PAGE_SIZE * PAGE_SIZE
    assert llm.core.stats().num_prefix_hit_tokens > 0


def test_shapes_for_decoding_alone(compilation_cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CPU_DEFAULTS", replace(build.CPU_DEFAULTS, split_decode=True))
    recording = Recording.of("gqa")
    for devices in (1, 2):
        llm = recorded_llm("gqa", compilation_cache_dir, tensor_parallel_size=devices, num_pages=FEW_PAGES)
        assert generate_checked(llm, recording.prompts, greedy_params()) == recording.greedy
        assert llm.core.stats().num_preemptions > 0
