"""Whole prompts in one step, then decoding together: greedy tokens equal those of the original implementation."""

from pathlib import Path

import pytest

from jaxserve import LLM
from tests.support.recorded_models import (
    EVERY_WAY,
    Recording,
    generate_checked,
    greedy_params,
    recorded_llm,
    recorded_plans,
)

# The prompts of a case together. rope_dynamic's are shorter.
ALL_PROMPTS = 67


@pytest.fixture(scope="module")
def roomy(request: pytest.FixtureRequest, compilation_cache_dir: Path) -> tuple[LLM, Recording]:
    """All prompts fit one step and all sequences the pool; nothing is remembered."""
    case, devices = request.param
    llm = recorded_llm(
        case,
        compilation_cache_dir,
        tensor_parallel_size=devices,
        max_num_batched_tokens=ALL_PROMPTS,
        num_pages=1 + 4 * 18,
        enable_prefix_caching=False,
    )
    return llm, Recording.of(case)


@pytest.mark.parametrize("roomy", EVERY_WAY, indirect=True)
def test_whole_prompts_in_one_step(roomy: tuple[LLM, Recording]) -> None:
    llm, recording = roomy
    plans = recorded_plans(llm)
    assert generate_checked(llm, recording.prompts, greedy_params()) == recording.greedy
    assert plans[0].query_lens == [len(prompt) for prompt in recording.prompts]
    assert llm.core.stats().num_preemptions == 0
