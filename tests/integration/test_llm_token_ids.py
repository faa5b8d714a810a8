"""The offline API without a tokenizer."""

from pathlib import Path

import pytest

from jaxserve import SamplingParams
from jaxserve.errors import InvalidRequestError
from tests.support.recorded_models import recorded_llm

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


def test_lower_priorities_run_first(compilation_cache_dir: Path) -> None:
    settings = {"num_pages": 30, "max_num_seqs": 1, "scheduling_policy": "priority"}
    llm = recorded_llm("gqa", compilation_cache_dir, **settings)
    order: list[str] = []
    step = llm.core.step

    def watched_step() -> object:
        updates = step()
        order.extend(update.request_id for update in updates if update.finish_reason)
        return updates

    llm.core.step = watched_step  # type: ignore[method-assign, assignment]
    llm.generate([[3], [4], [5]], GREEDY.replace(max_tokens=3), use_tqdm=False, priority=[2, 0, 1])
    assert order == ["1", "2", "0"]


def test_without_a_tokenizer_prompts_and_answers_are_token_ids(compilation_cache_dir: Path) -> None:
    llm = recorded_llm("gqa", compilation_cache_dir, num_pages=30)
    answer = llm.generate([3, 4, 5], GREEDY.replace(max_tokens=4), use_tqdm=False)[0].outputs[0]
    assert (answer.text, len(answer.token_ids)) == ("", 4)
    for wrong, field in (
        (lambda: llm.generate("text"), "prompt"),
        (lambda: llm.generate([1], SamplingParams(stop="x")), "stop"),
        (lambda: llm.chat([{"role": "user", "content": "hi"}]), "prompt"),
        (lambda: llm.get_tokenizer(), "prompt"),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            wrong()
        assert caught.value.field == field
