"""The offline API on the bundled model: prompts of every kind, stops, lengths, and errors that leave nothing behind."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxserve import LLM, SamplingParams
from jaxserve.errors import ConfigError, InvalidRequestError, UnsupportedError
from jaxserve.request import CompletionOutput, FinishReason
from jaxserve.tokenizer import Tokenizer

PROMPT = "def fibonacci(n):"
MAX_MODEL_LEN = 64
GREEDY = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)


@pytest.fixture(scope="module")
def demo(compilation_cache_dir: Path) -> LLM:
    return LLM(
        "demo",
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        compile_ahead=False,
        compilation_cache_dir=str(compilation_cache_dir),
    )


@pytest.fixture
def llm(demo: LLM) -> Iterator[LLM]:
    """The engine, which every test must leave idle, with all pages free."""
    yield demo
    stats = demo.core.stats()
    assert (stats.num_waiting, stats.num_running, stats.num_used_pages) == (0, 0, 0)
    demo.core.scheduler.check_integrity()


@pytest.fixture(scope="module")
def plain(demo: LLM) -> CompletionOutput:
    """What follows the prompt greedily, with nothing to stop it."""
    return demo.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs[0]


@pytest.fixture(scope="module")
def tokenizer(demo: LLM) -> Tokenizer:
    return demo.get_tokenizer()


def complete(llm: LLM, prompt: Any = PROMPT, **changes: Any) -> CompletionOutput:
    return llm.generate(prompt, GREEDY.replace(**changes), use_tqdm=False)[0].outputs[0]


def test_prompts_of_every_kind_mean_the_same(llm: LLM, plain: CompletionOutput, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(PROMPT)
    kinds: list[Any] = [PROMPT, ids, tuple(ids), np.array(ids), {"prompt": PROMPT}, {"prompt_token_ids": ids}]
    for prompt in kinds:
        output = llm.generate(prompt, GREEDY, use_tqdm=False)[0]
        assert output.outputs[0].token_ids == plain.token_ids
        assert output.prompt_token_ids == ids
    outputs = llm.generate(kinds, GREEDY, use_tqdm=False)
    assert [output.outputs[0] for output in outputs] == [plain] * len(kinds)
    assert [output.prompt for output in outputs] == [PROMPT, None, None, None, PROMPT, None]


def test_text_is_what_the_tokens_spell(plain: CompletionOutput, tokenizer: Tokenizer) -> None:
    assert len(plain.token_ids) == 30
    assert plain.text == tokenizer.decode(plain.token_ids)
    assert "return" in plain.text or "for" in plain.text or "if" in plain.text


def test_outputs_are_in_the_order_of_the_prompts_whichever_ends_first(llm: LLM) -> None:
    prompts = ["import os", "class A:", "for i in", "x = ", "while True:", "print("]
    params = [GREEDY.replace(max_tokens=n) for n in (20, 1, 9, 30, 2, 5)]
    together = llm.generate(prompts, params, use_tqdm=False)
    assert [output.prompt for output in together] == prompts
    assert [len(output.outputs[0].token_ids) for output in together] == [20, 1, 9, 30, 2, 5]
    alone = [llm.generate(p, s, use_tqdm=False)[0].outputs for p, s in zip(prompts, params, strict=True)]
    assert [output.outputs for output in together] == alone
    assert len({output.request_id for output in together}) == 6


def test_no_prompts_give_no_outputs(llm: LLM) -> None:
    assert llm.generate([], use_tqdm=False) == []


def stop_across_tokens(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    """A string that begins within one token's text and ends within a later one's, found nowhere before."""
    whole = tokenizer.decode(token_ids)
    for i in range(6, len(token_ids) - 2):
        border = len(tokenizer.decode(token_ids[:i]))
        stop = whole[border - 1 : border + 2]
        if whole.index(stop) == border - 1:
            return stop
    raise AssertionError("the text repeats itself")


def test_text_ends_before_a_stop_string_that_lies_across_tokens(
    llm: LLM, plain: CompletionOutput, tokenizer: Tokenizer
) -> None:
    stop = stop_across_tokens(tokenizer, plain.token_ids)
    answer = complete(llm, stop=["never in the text", stop])
    assert answer.text == plain.text[: plain.text.index(stop)]
    assert (answer.finish_reason, answer.stop_reason) == (FinishReason.STOP, stop)
    assert answer.token_ids == plain.token_ids[: len(answer.token_ids)]
    # The tokens go up to the one that completed the stop string, and no further.
    spelled = tokenizer.decode(answer.token_ids)
    assert stop in spelled and stop not in tokenizer.decode(answer.token_ids[:-1])
    shown = complete(llm, stop=stop, include_stop_str_in_output=True)
    assert shown.text == answer.text + stop


def test_a_stop_token_ends_the_answer_and_leaves_no_text(
    llm: LLM, plain: CompletionOutput, tokenizer: Tokenizer
) -> None:
    stop = next(t for i, t in enumerate(plain.token_ids) if i >= 5 and t not in plain.token_ids[:i])
    end = plain.token_ids.index(stop)
    answer = complete(llm, stop_token_ids=[stop])
    assert (answer.finish_reason, answer.stop_reason) == (FinishReason.STOP, stop)
    assert answer.token_ids == plain.token_ids[: end + 1]
    assert answer.text == tokenizer.decode(plain.token_ids[:end])
    shown = complete(llm, stop_token_ids=[stop], include_stop_str_in_output=True)
    assert shown.text == tokenizer.decode(plain.token_ids[: end + 1])


def test_min_tokens_puts_a_stop_token_off(llm: LLM, plain: CompletionOutput) -> None:
    stop = plain.token_ids[3]
    assert len(complete(llm, stop_token_ids=[stop]).token_ids) <= 4
    answer = complete(llm, stop_token_ids=[stop], min_tokens=12)
    assert len(answer.token_ids) >= 12 and stop not in answer.token_ids[:12]


def test_the_model_s_end_token_ends_the_answer_unless_ignored(llm: LLM, tokenizer: Tokenizer) -> None:
    """Nothing makes the bundled model end soon, so a setting makes any token its end."""
    scheduler = llm.core.scheduler
    plain = complete(llm, max_tokens=8)
    scheduler._eos_token_ids = (plain.token_ids[4],)
    try:
        ended = complete(llm, max_tokens=8, ignore_eos=False)
        ignored = complete(llm, max_tokens=8)
    finally:
        scheduler._eos_token_ids = llm.info.limits.eos_token_ids
    assert (ended.finish_reason, ended.stop_reason) == (FinishReason.STOP, None)
    assert ended.token_ids == plain.token_ids[: plain.token_ids.index(plain.token_ids[4]) + 1]
    assert ignored == plain


def test_without_max_tokens_the_answer_fills_the_context(llm: LLM, tokenizer: Tokenizer) -> None:
    answer = complete(llm, max_tokens=None)
    assert len(tokenizer.encode(PROMPT)) + len(answer.token_ids) == MAX_MODEL_LEN
    assert answer.finish_reason is FinishReason.LENGTH


def test_a_prompt_one_short_of_the_context_gets_one_token(llm: LLM) -> None:
    assert len(complete(llm, [5] * (MAX_MODEL_LEN - 1), max_tokens=None).token_ids) == 1


def test_a_shared_prefix_is_counted(llm: LLM) -> None:
    prompt = list(range(100, 140))
    first, second = (llm.generate(prompt, GREEDY.replace(max_tokens=2), use_tqdm=False)[0] for _ in range(2))
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 32)


def test_a_time_limit_ends_the_answer_with_what_there_is(llm: LLM) -> None:
    answer = complete(llm, max_tokens=None, time_limit=1e-9)
    assert (answer.finish_reason, answer.text) == (FinishReason.DEADLINE, "")


def test_without_detokenize_there_are_only_token_ids(llm: LLM, plain: CompletionOutput) -> None:
    answer = complete(llm, detokenize=False)
    assert (answer.text, answer.token_ids) == ("", plain.token_ids)


def test_chat_goes_through_the_model_s_template(llm: LLM, tokenizer: Tokenizer) -> None:
    hello = [{"role": "user", "content": "Add two numbers"}]
    longer = [*hello, {"role": "assistant", "content": "a + b"}, {"role": "user", "content": "And now?"}]
    single = llm.chat(hello, GREEDY, use_tqdm=False)
    several = llm.chat([hello, longer], GREEDY, use_tqdm=False)
    assert single[0].prompt_token_ids == tokenizer.apply_chat_template(hello)
    assert several[0].outputs == single[0].outputs
    assert several[1].prompt_token_ids == tokenizer.apply_chat_template(longer)
    unopened = llm.chat(hello, GREEDY, use_tqdm=False, add_generation_prompt=False)
    assert unopened[0].prompt_token_ids == tokenizer.apply_chat_template(hello, add_generation_prompt=False)


def test_tokens_that_end_a_turn_end_an_answer_of_chat(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    hello = [{"role": "user", "content": "Add two numbers"}]
    whole = llm.chat(hello, GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    stop = next(token for token in whole[3:] if token not in whole[:3])

    def chat_params(params: SamplingParams) -> SamplingParams:
        return params.replace(stop_token_ids=[stop])

    monkeypatch.setattr(llm.get_tokenizer(), "chat_params", chat_params)
    (answer,) = llm.chat(hello, GREEDY, use_tqdm=False)
    assert answer.outputs[0].token_ids == whole[: whole.index(stop) + 1]


def test_a_conversation_that_the_template_refuses_is_an_error(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="the roles are system, user and assistant") as caught:
        llm.chat([{"role": "robot", "content": "hi"}], use_tqdm=False)
    assert caught.value.field == "messages"


@pytest.mark.parametrize(
    ("prompts", "field"),
    [
        ([[]], "prompt"),
        ([[1] * MAX_MODEL_LEN], "prompt"),
        ([[1, 2, 4096]], "prompt_token_ids[2]"),
        ([[1, -1]], "prompt_token_ids[1]"),
        ([[1, "a"]], "prompt[1]"),
        ([[1, None]], "prompt[1]"),
        ([[1, 2.0]], "prompt[1]"),
        (None, "prompt"),
        (7, "prompt"),
        ([None], "prompt"),
        ([b"bytes"], "prompt"),
        ("half a surrogate \ud800", "prompt"),
        ({}, "prompt"),
        ({"text": "a"}, "prompt"),
        ({"prompt": "a", "prompt_token_ids": [1]}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt_token_ids": "abc"}, "prompt_token_ids"),
        ({"prompt_token_ids": 3}, "prompt_token_ids"),
        ({"prompt_token_ids": ["a"]}, "prompt_token_ids[0]"),
    ],
    ids=repr,
)
def test_a_prompt_that_cannot_work_is_refused_by_name(llm: LLM, prompts: Any, field: str) -> None:
    """Beside a good prompt, of which nothing is computed."""
    steps = llm.core.stats().num_steps
    listed = [PROMPT, *prompts] if isinstance(prompts, list) else prompts
    with pytest.raises(InvalidRequestError) as caught:
        llm.generate(listed, GREEDY, use_tqdm=False)
    assert caught.value.field == field
    assert llm.core.stats().num_steps == steps


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"sampling_params": [GREEDY]}, "sampling_params"),
        ({"sampling_params": [GREEDY] * 3}, "sampling_params"),
        ({"sampling_params": GREEDY.replace(stop_token_ids=[3, 4096])}, "stop_token_ids[1]"),
        ({"sampling_params": GREEDY.replace(max_tokens=None, min_tokens=MAX_MODEL_LEN)}, "min_tokens"),
        ({"priority": [1]}, "priority"),
        ({"priority": [0, 1]}, "priority"),
    ],
    ids=str,
)
def test_parameters_that_fit_neither_prompts_nor_model_are_refused_by_name(
    llm: LLM, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        llm.generate([PROMPT, PROMPT], use_tqdm=False, **{"sampling_params": GREEDY} | options)
    assert caught.value.field == field


def test_what_is_not_built_is_refused(llm: LLM) -> None:
    with pytest.raises(UnsupportedError) as caught:
        llm.generate(PROMPT, SamplingParams(n=2), use_tqdm=False)
    assert caught.value.field == "n"


def test_unknown_settings_and_bad_ones_are_refused() -> None:
    with pytest.raises(TypeError, match="max_seqs"):
        LLM("demo", max_seqs=3)
    with pytest.raises(ConfigError, match="dtype must be"):
        LLM("demo", dtype="int8")


def test_an_interrupted_run_leaves_no_request_behind(
    llm: LLM, plain: CompletionOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = llm.core.step, iter(range(5))

    def interrupted_step() -> object:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(llm.core, "step", interrupted_step)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([PROMPT] * 6, GREEDY, use_tqdm=False)
    stats = llm.core.stats()
    assert (stats.num_waiting, stats.num_running, stats.num_used_pages) == (0, 0, 0)
    monkeypatch.undo()
    assert complete(llm) == plain


def test_progress_is_reported_unless_turned_off(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate([PROMPT] * 2, GREEDY.replace(max_tokens=1), use_tqdm=False)
    assert capsys.readouterr().err == ""
    llm.generate([PROMPT] * 2, GREEDY.replace(max_tokens=1))
    assert re.fullmatch(r"Generating: 0 of 2\nGenerating: 2 of 2 after \d+\.\d s\n", capsys.readouterr().err)
