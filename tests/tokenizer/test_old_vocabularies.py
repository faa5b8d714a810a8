"""sentencepiece, tiktoken and vocab.json with merges.txt: the ids are those of the libraries themselves."""

import json
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxserve.errors import CheckpointError
from jaxserve.tokenizer import Tokenizer
from jaxserve.tokenizer.sentencepiece_backend import SentencePieceBackend
from jaxserve.tokenizer.tiktoken_backend import QWEN_PATTERN, QWEN_SPECIAL_TOKENS
from tests.support import old_vocabularies as old

KINDS = ("llama", "gemma", "baichuan", "unigram")
BOS, EOS = 1, 2


@cache
def _backend(kind: str) -> SentencePieceBackend:
    return SentencePieceBackend(old.sentencepiece_model(kind), Path("tokenizer.model"))


def _llama(directory: Path, **settings: Any) -> Tokenizer:
    return Tokenizer.load(old.write_sentencepiece(directory, **settings))


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_sentencepiece_ids_are_the_librarys_own(kind: str, legacy: bool, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(old.write_sentencepiece(tmp_path, kind, legacy=legacy))
    processor = old.processor(kind)
    texts = [text for text in old.TRICKY_TEXTS if text != "<s>"]
    assert [tokenizer.encode(text) for text in texts] == [[BOS, *processor.encode(text)] for text in texts]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(st.data())
def test_sentencepiece_text_is_the_librarys_own_for_any_tokens(kind: str, data: st.DataObject) -> None:
    processor = old.processor(kind)
    ids = data.draw(st.lists(st.integers(3, processor.vocab_size() - 1), max_size=30))
    assert _backend(kind).decode(ids, skip_special_tokens=True) == processor.decode(ids)


def test_special_tokens_in_text_become_their_ids(tmp_path: Path) -> None:
    tokenizer = _llama(tmp_path, legacy=False)
    assert tokenizer.encode("<s>", add_special_tokens=False) == [BOS]
    assert tokenizer.encode("a</s>", add_special_tokens=False) == [*old.processor().encode("a"), EOS]
    assert tokenizer.decode([BOS, *old.processor().encode("a"), EOS]) == "a"
    assert tokenizer.decode([BOS, *old.processor().encode("a"), EOS], skip_special_tokens=False) == "<s> a</s>"


def test_legacy_puts_a_space_before_every_part_and_otherwise_only_before_the_text(tmp_path: Path) -> None:
    legacy = _llama(tmp_path / "legacy", legacy=True)
    newer = _llama(tmp_path / "newer", legacy=False)
    none = _llama(tmp_path / "none", legacy=False, add_prefix_space=False)
    first, without = old.processor().encode("the"), old.processor(adds_space=False).encode("the")
    assert first != without
    text = "the</s>the"
    assert legacy.encode(text) == [BOS, *first, EOS, *first]
    assert newer.encode(text) == [BOS, *first, EOS, *without]
    assert none.encode(text) == [BOS, *without, EOS, *without]
    for tokenizer in (legacy, newer, none):
        assert tokenizer.decode(tokenizer.encode(text)) == "thethe"


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ({}, (True, False)),
        ({"add_bos_token": False}, (False, False)),
        ({"add_bos_token": True, "add_eos_token": True}, (True, True)),
        ({"add_bos_token": False, "add_eos_token": True, "tokenizer_class": "MadeUpTokenizer"}, (False, True)),
    ],
)
def test_what_stands_around_a_text_is_what_the_config_says(
    ends: dict[str, Any], expected: tuple[bool, bool], tmp_path: Path
) -> None:
    plain = old.processor().encode("fox")
    before, after = expected
    assert _llama(tmp_path, **ends).encode("fox") == [BOS] * before + plain + [EOS] * after


def test_added_tokens_are_found_before_the_vocabulary_is_asked(tmp_path: Path) -> None:
    size = old.processor().vocab_size()
    added = {
        "2": {"content": "</s>", "special": True},
        str(size): {"content": "<|im_end|>", "special": True, "rstrip": True},
        str(size + 1): {"content": "fox", "special": False, "single_word": True},
    }
    tokenizer = _llama(tmp_path, legacy=False, added_tokens_decoder=added)
    plain = old.processor(adds_space=False)
    assert tokenizer.vocab_size == size + 2
    assert tokenizer.encode("<|im_end|>  a", add_special_tokens=False) == [size, *plain.encode("a")]
    assert tokenizer.encode("fox", add_special_tokens=False) == [size + 1]
    assert size + 1 not in tokenizer.encode("foxes")
    assert tokenizer.decode([size, size + 1]) == "fox"
    assert tokenizer.decode([size, size + 1], skip_special_tokens=False) == "<|im_end|>fox"


def test_tokens_of_added_tokens_json_and_of_the_special_tokens_map_are_read(tmp_path: Path) -> None:
    size = old.processor().vocab_size()
    old.write_sentencepiece(tmp_path, legacy=False, pad_token="<pad>")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|a|>": size, "<|b|>": size + 1}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["<|b|>"]}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("<|a|><|b|>", add_special_tokens=False) == [size, size + 1]
    assert tokenizer.decode([size, size + 1]) == "<|a|>"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tokenizer_class": "T5Tokenizer"}, "T5Tokenizer.*add_bos_token"),
        ({"additional_special_tokens": ["<|nowhere|>"]}, "nowhere.*not in the vocabulary"),
        ({"added_tokens_decoder": {"x": {"content": "y"}}}, "no token id"),
        ({"added_tokens_decoder": {"9": {}}}, "has no text"),
        ({"added_tokens_decoder": ["9"]}, "must be an object"),
        ({"add_bos_token": "yes"}, "add_bos_token must be true or false"),
        ({"split_special_tokens": True}, "split_special_tokens"),
        ({"sp_model_kwargs": {"enable_sampling": True}}, "sp_model_kwargs"),
        ({"eos_token": 7}, "eos_token must be text"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        _llama(tmp_path, **config)


def test_a_broken_sentencepiece_model_is_named(tmp_path: Path) -> None:
    old.write_sentencepiece(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match="tokenizer.model"):
        Tokenizer.load(tmp_path)


def _tiktoken() -> tiktoken.Encoding:
    ranks = old.qwen_ranks()
    special = {token: len(ranks) + i for i, token in enumerate(QWEN_SPECIAL_TOKENS)}
    return tiktoken.Encoding("reference", pat_str=QWEN_PATTERN, mergeable_ranks=ranks, special_tokens=special)


@pytest.mark.parametrize("text", [*old.TRICKY_TEXTS, "a<|im_start|>user\nhi<|im_end|>\n<|extra_204|>"])
def test_qwen_ids_and_text_are_tiktokens_own(text: str, qwen: Tokenizer) -> None:
    encoding, normalized = _tiktoken(), unicodedata.normalize("NFC", text)
    ids = encoding.encode(normalized, allowed_special="all")
    assert qwen.encode(text) == ids
    assert qwen.decode(ids, skip_special_tokens=False) == normalized


def test_qwens_special_tokens_follow_the_ranks(qwen: Tokenizer) -> None:
    first = len(old.qwen_ranks())
    assert qwen.vocab_size == first + 208
    assert qwen.eos_token_id == first
    assert qwen.encode("<|endoftext|><|im_start|><|im_end|><|extra_0|>") == [first, first + 1, first + 2, first + 3]
    assert qwen.decode([first + 1, *qwen.encode("x"), first + 2]) == "x"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"YQ== 0\nYg==\n", "line 2"), (b"YQ== 1\n", "ranks are not the numbers"), (b"YQ== 0\n", "single byte")],
)
def test_a_broken_rank_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("text", old.TRICKY_TEXTS)
def test_gpt2_and_qwen2_files_give_back_what_they_took(text: str, gpt2: Tokenizer, tmp_path: Path) -> None:
    assert gpt2.decode(gpt2.encode(text)) == text
    qwen2 = Tokenizer.load(old.write_byte_level(tmp_path, tokenizer_class="Qwen2Tokenizer"))
    assert qwen2.decode(qwen2.encode(text)) == unicodedata.normalize("NFC", text)
    # The same merges and the same words as Qwen 1's, hence the same ids.
    assert qwen2.encode(text) == _tiktoken().encode(unicodedata.normalize("NFC", text))


def test_gpt2_adds_no_token_unless_told_to(gpt2: Tokenizer, tmp_path: Path) -> None:
    end = gpt2.eos_token_id
    assert end == gpt2.bos_token_id == gpt2.vocab_size - 1
    assert end not in gpt2.encode("fox")
    told = Tokenizer.load(old.write_byte_level(tmp_path, add_bos_token=True))
    assert told.encode("fox") == [end, *gpt2.encode("fox")]
    assert gpt2.encode("fox<|endoftext|>") == [*gpt2.encode("fox"), end]


def test_added_tokens_of_a_byte_level_vocabulary_keep_their_ids(gpt2: Tokenizer, tmp_path: Path) -> None:
    size = gpt2.vocab_size
    added = {
        str(size): {"content": "<|im_start|>", "special": True},
        str(size + 1): {"content": "ab", "special": False},
    }
    tokenizer = Tokenizer.load(old.write_byte_level(tmp_path, added_tokens_decoder=added))
    assert tokenizer.encode("<|im_start|>ab") == [size, size + 1]
    assert tokenizer.decode([size, size + 1]) == "ab"


def test_an_added_token_whose_id_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    added = {"5000": {"content": "<|im_start|>", "special": True}}
    with pytest.raises(CheckpointError, match="id 5000"):
        Tokenizer.load(old.write_byte_level(tmp_path, added_tokens_decoder=added))


def test_an_unknown_byte_level_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="BartTokenizer.*GPT2Tokenizer"):
        Tokenizer.load(old.write_byte_level(tmp_path, tokenizer_class="BartTokenizer"))


def test_a_space_before_byte_level_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="add_prefix_space"):
        Tokenizer.load(old.write_byte_level(tmp_path, add_prefix_space=True))


def test_tokenizer_json_comes_before_the_older_files(tmp_path: Path, byte_level_backend: Any) -> None:
    old.write_sentencepiece(tmp_path)
    (tmp_path / "tokenizer.json").write_text(byte_level_backend.to_str())
    assert Tokenizer.load(tmp_path).vocab_size == byte_level_backend.get_vocab_size()
