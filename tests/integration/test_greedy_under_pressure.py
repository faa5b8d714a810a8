"""Chunks, preemption, shared pages: greedy tokens still equal those of the original implementation."""

from dataclasses import replace
from pathlib import Path

import pytest

from jaxserve import LLM
from jaxserve.engine import build
from tests.support.recorded_models import (
    EVERY_WAY,
    Recording,
    generate_checked,
    greedy_params,
    recorded_llm,
    recorded_plans,
    tokens,
)

PAGE_SIZE = 4
# Holds one sequence of the longest kind and little more; the four of a case need twice as many.
FEW_PAGES = 22


@pytest.fixture(scope="module")
def cramped(request: pytest.FixtureRequest, compilation_cache_dir: Path) -> tuple[LLM, Recording]:
    """Steps of four tokens and half the pages needed."""
    case, devices = request.param
    llm = recorded_llm(
        case, compilation_cache_dir, tensor_parallel_size=devices, page_size=PAGE_SIZE, num_pages=FEW_PAGES
    )
    return llm, Recording.of(case)


@pytest.mark.parametrize("cramped", EVERY_WAY, indirect=True)
def test_chunked_prefill_and_forced_preemption(cramped: tuple[LLM, Recording]) -> None:
    llm, recording = cramped
    plans = recorded_plans(llm)
    assert generate_checked(llm, recording.prompts, greedy_params()) == recording.greedy
    assert max(plan.num_tokens for plan in plans) == PAGE_SIZE  # every longer prompt came in chunks
    assert llm.core.stats().num_preemptions > 0


@pytest.mark.parametrize("cramped", EVERY_WAY, indirect=True)
def test_prefix_hits_and_copies_on_write(cramped: tuple[LLM, Recording]) -> None:
    llm, recording = cramped
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
    for devices in (1, 2):
        llm = recorded_llm(
            "gqa", compilation_cache_dir, tensor_parallel_size=devices, page_size=PAGE_SIZE, num_pages=FEW_PAGES
        )
        recording = Recording.of("gqa")
        assert generate_checked(llm, recording.prompts, greedy_params()) == recording.greedy
        assert llm.core.stats().num_preemptions > 0
