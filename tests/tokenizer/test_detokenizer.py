"""Text as it streams is the text of all the tokens, whatever the tokenizer and however they arrive."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxserve.request import SamplingParams
from jaxserve.tokenizer import StreamDetokenizer, TextDelta, Tokenizer
from jaxserve.tokenizer import piece_decoder as pieces

WORDS = st.sampled_from(
    ["the", " the", "  ", "world", "\n", "é", "東京", "😀", "quick", "�", ".", "an added word", "<eos>"]
)
TEXTS = st.one_of(st.text(max_size=30), st.lists(WORDS, max_size=12).map("".join))
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def stream(
    tokenizer: Tokenizer | None, chunks: list[list[int]], prompt: list[int] | None = None, **params: Any
) -> TextDelta:
    """Feed all chunks and add up the deltas."""
    detokenizer = StreamDetokenizer(tokenizer, SamplingParams(**params), prompt or [])
    text, ids, stop = "", [], None
    for i, chunk in enumerate(chunks):
        delta = detokenizer.append(chunk, final=i == len(chunks) - 1)
        text, ids, stop = text + delta.text, ids + delta.token_ids, delta.stop
    return TextDelta(text, ids, stop)


def cut(ids: list[int], data: st.DataObject) -> list[list[int]]:
    sizes = data.draw(st.lists(st.integers(0, 4), max_size=len(ids)))
    chunks, start = [], 0
    for size in sizes:
        chunks.append(ids[start : start + size])
        start += size
    return [*chunks, ids[start:]]


@SHARED
@given(TEXTS, st.booleans(), st.data())
def test_deltas_add_up_to_the_whole_text(any_tokenizer: Tokenizer, text: str, skip: bool, data: st.DataObject) -> None:
    ids = any_tokenizer.encode(text)
    got = stream(any_tokenizer, cut(ids, data), skip_special_tokens=skip)
    assert got == TextDelta(any_tokenizer.decode(ids, skip_special_tokens=skip), ids)


@SHARED
@given(st.data())
def test_any_tokens_of_a_byte_level_vocabulary_give_the_text_of_all_of_them(
    byte_level: Tokenizer, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, byte_level.vocab_size - 1), max_size=40))
    assert stream(byte_level, cut(ids, data)).text == byte_level.decode(ids)


@SHARED
@given(TEXTS, TEXTS, st.data())
def test_the_output_goes_on_from_the_prompt(
    any_tokenizer: Tokenizer, first: str, second: str, data: st.DataObject
) -> None:
    prompt, ids = any_tokenizer.encode(first), any_tokenizer.encode(second, add_special_tokens=False)
    whole = any_tokenizer.decode(prompt + ids)
    before = stream(any_tokenizer, [prompt]).text
    if whole.startswith(before) and any_tokenizer.decode(prompt):
        assert before + stream(any_tokenizer, cut(ids, data), prompt).text == whole


@SHARED
@given(TEXTS, st.lists(st.text("the wor\n.😀京", min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_stop_strings_are_found_as_in_the_whole_text(
    any_tokenizer: Tokenizer, text: str, stops: list[str], data: st.DataObject
) -> None:
    ids = any_tokenizer.encode(text)
    whole = any_tokenizer.decode(ids)
    ends = {end: stop for stop in sorted(stops, key=len) for end in range(len(whole) + 1) if whole[:end].endswith(stop)}
    got = stream(any_tokenizer, cut(ids, data), stop=stops)
    if not ends:
        assert got == TextDelta(whole, ids)
        return
    end = min(ends)
    assert (got.text, got.stop) == (whole[: end - len(ends[end])], ends[end])
    assert got.token_ids == ids[: len(got.token_ids)]
    assert any_tokenizer.decode(got.token_ids).startswith(whole[:end])
    shown = stream(any_tokenizer, [ids], stop=stops, include_stop_str_in_output=True)
    assert shown.text == whole[:end]


def test_the_tokens_counted_end_with_the_one_that_completed_the_stop(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("xyz", add_special_tokens=False)
    assert len(ids) == 3
    detokenizer = StreamDetokenizer(byte_level, SamplingParams(stop="y"))
    assert detokenizer.append(ids) == TextDelta("x", ids[:2], "y")
    assert detokenizer.append(ids, final=True) == TextDelta("", [], "y")


@pytest.mark.parametrize("name", ["byte_level", "llama2_like", "byte_level_in_sequence", "sentencepiece_llama", "qwen"])
def test_an_incomplete_character_is_held_back_and_ends_as_a_replacement(
    name: str, request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(name)
    ids = tokenizer.encode("a😁", add_special_tokens=False)
    detokenizer = StreamDetokenizer(tokenizer, SamplingParams())
    assert detokenizer.append(ids[:-1]).text == "a"
    assert set(detokenizer.append([], final=True).text) == {"�"}


def test_bytes_that_make_no_character_do_not_hold_up_what_follows(llama2_like: Tokenizer) -> None:
    byte = 3  # of <0x00>
    a = llama2_like.encode("a", add_special_tokens=False)[-1]
    detokenizer = StreamDetokenizer(llama2_like, SamplingParams(), [a])
    assert detokenizer.append([byte + 0xE6, byte + 0x41]).text == "�A"
    assert detokenizer.append([byte + 0xFF]).text == "�"
    assert detokenizer.append([byte + 0xE6, a]).text == "�a"


def test_the_first_word_after_a_prompt_keeps_its_space(llama2_like: Tokenizer) -> None:
    the, wor = (llama2_like.encode(word, add_special_tokens=False) for word in ("the", "wor"))
    assert stream(llama2_like, [wor], the).text == " wor"
    assert stream(llama2_like, [wor]).text == "wor"


def test_the_end_token_shows_only_where_special_tokens_do(byte_level: Tokenizer) -> None:
    ids = [*byte_level.encode("fox", add_special_tokens=False), byte_level.eos_token_id or 0]
    assert stream(byte_level, [ids]) == TextDelta("fox", ids)
    assert stream(byte_level, [ids], skip_special_tokens=False).text == "fox<eos>"


def test_without_detokenize_ids_pass_through() -> None:
    assert stream(None, [[5, 6], [7]]) == TextDelta("", [5, 6, 7])


def test_detokenize_false_leaves_the_text_empty(byte_level: Tokenizer) -> None:
    assert stream(byte_level, [[5, 6], [7]], detokenize=False) == TextDelta("", [5, 6, 7])


def test_ids_that_the_model_has_but_the_tokenizer_lacks_add_no_text(any_tokenizer: Tokenizer) -> None:
    ids = any_tokenizer.encode("the", add_special_tokens=False)
    assert stream(any_tokenizer, [ids, [any_tokenizer.vocab_size + 5]]).text == any_tokenizer.decode(ids)


def test_a_token_is_decoded_with_a_few_before_it_however_long_the_text(
    llama2_like: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = 0
    whole = pieces._WindowDecoder._added

    def counted(self: pieces._WindowDecoder, token_ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(self._before) + len(token_ids))
        return whole(self, token_ids)

    monkeypatch.setattr(pieces._WindowDecoder, "_added", counted)
    stream(llama2_like, [[token] for token in llama2_like.encode("the wor 東京😀 é " * 50)])
    assert 0 < longest <= 2 * pieces.NUM_CONTEXT_TOKENS
