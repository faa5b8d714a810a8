"""Chat formats of models that came without a template: the ids their own code would make, and when they are taken."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxserve.config import EngineConfig
from jaxserve.errors import CheckpointError, ConfigError, InvalidRequestError
from jaxserve.request import SamplingParams
from jaxserve.tokenizer import Tokenizer, resolve_chat_template
from jaxserve.tokenizer.chat_format import BUILT_IN_FORMATS
from tests.support import old_vocabularies as old

BOS, EOS = 1, 2
TALK = [
    {"role": "user", "content": "the fox"},
    {"role": "assistant", "content": "lazy dog."},
    {"role": "user", "content": "大语言模型?"},
]
SYSTEM = [{"role": "system", "content": "quick"}, *TALK]
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)


def _reserved(name: str) -> int:
    return old.processor("baichuan").piece_to_id(name)


def _write(directory: Path, name: str, content: dict[str, Any]) -> None:
    (directory / name).write_text(json.dumps(content))


def _baichuan(directory: Path, config: dict[str, Any], generation: dict[str, Any]) -> Tokenizer:
    old.write_sentencepiece(directory, "baichuan", tokenizer_class="BaichuanTokenizer", add_bos_token=False)
    _write(directory, "config.json", config)
    _write(directory, "generation_config.json", generation)
    return Tokenizer.load(directory)


def test_vicuna_is_one_line_with_answers_closed_by_the_end_token(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(old.write_sentencepiece(tmp_path, legacy=False), "vicuna")
    with_prefix, without = old.processor(), old.processor(adds_space=False)
    opening = with_prefix.encode(f"{VICUNA_SYSTEM} USER: the fox ASSISTANT: lazy dog.")
    rest = without.encode("USER: 大语言模型? ASSISTANT:")
    assert tokenizer.apply_chat_template(TALK) == [BOS, *opening, EOS, *rest]
    text = tokenizer.decode(tokenizer.apply_chat_template(SYSTEM), skip_special_tokens=False)
    assert text.startswith("<s> quick USER: the fox ASSISTANT: ")


def test_baichuan_tokenizes_each_turn_by_itself_behind_its_reserved_token(tmp_path: Path) -> None:
    user, assistant = _reserved("<reserved_106>"), _reserved("<reserved_107>")
    ids = {"user_token_id": user, "assistant_token_id": assistant}
    tokenizer = _baichuan(tmp_path, {"architectures": ["BaichuanForCausalLM"]}, ids)
    encode = old.processor("baichuan").encode
    turns = [user, *encode("the fox"), assistant, *encode("lazy dog."), user, *encode("大语言模型?")]
    assert tokenizer.apply_chat_template(TALK) == [*turns, assistant]
    assert tokenizer.apply_chat_template(SYSTEM) == [*encode("quick"), *turns, assistant]
    assert tokenizer.apply_chat_template(TALK, add_generation_prompt=False) == turns


def test_qwen_is_chatml_with_a_system_message_always(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(old.write_qwen(tmp_path), "qwen")
    start, end = (tokenizer.encode(token) for token in ("<|im_start|>", "<|im_end|>"))

    def turn(role: str, content: str) -> list[int]:
        newline = tokenizer.encode("\n")
        return [*start, *tokenizer.encode(role), *newline, *tokenizer.encode(content), *end, *newline]

    turns = [*turn("user", "the fox"), *turn("assistant", "lazy dog."), *turn("user", "大语言模型?")]
    opened = [*start, *tokenizer.encode("assistant"), *tokenizer.encode("\n")]
    default = turn("system", "You are a helpful assistant.")
    assert tokenizer.apply_chat_template(TALK) == [*default, *turns, *opened]
    assert tokenizer.apply_chat_template(SYSTEM) == [*turn("system", "quick"), *turns, *opened]


def test_internlm_closes_answers_with_eoa_and_stops_there(tmp_path: Path) -> None:
    size = old.processor().vocab_size()
    added = {str(size): {"content": "<eoa>", "special": True}}
    directory = old.write_sentencepiece(tmp_path, tokenizer_class="InternLMTokenizer", added_tokens_decoder=added)
    tokenizer = Tokenizer.load(directory, "internlm")
    encode = old.processor().encode
    opening = encode("<|System|>:quick\n<|User|>:the fox\n<|Bot|>:lazy dog.")
    assert tokenizer.apply_chat_template(SYSTEM) == [BOS, *opening, size, *encode("\n<|User|>:大语言模型?\n<|Bot|>:")]
    assert tokenizer.chat_params(SamplingParams()).stop_token_ids == [size]


def test_turn_tokens_end_an_answer_beside_those_asked_for_unless_ends_are_ignored(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(old.write_qwen(tmp_path), "qwen")
    first = tokenizer.encode("<|endoftext|>")[0]
    assert tokenizer.chat_params(SamplingParams(stop_token_ids=[7])).stop_token_ids == [7, first + 2, first + 1]
    ignoring = SamplingParams(ignore_eos=True)
    assert tokenizer.chat_params(ignoring) == ignoring
    plain = Tokenizer.load(tmp_path)
    assert plain.chat_params(SamplingParams()) == SamplingParams()


@pytest.mark.parametrize("name", BUILT_IN_FORMATS)
def test_a_role_that_a_format_does_not_have_is_refused(name: str, tmp_path: Path) -> None:
    if name == "qwen":
        tokenizer = Tokenizer.load(old.write_qwen(tmp_path), name)
    else:
        added = {str(old.processor().vocab_size()): {"content": "<eoa>", "special": True}}
        tokenizer = Tokenizer.load(old.write_sentencepiece(tmp_path, added_tokens_decoder=added), name)
    for messages in ([{"role": "tool", "content": "x"}], [*TALK, {"role": "system", "content": "late"}]):
        with pytest.raises(InvalidRequestError, match="is not known here"):
            tokenizer.apply_chat_template(messages)


def test_qwens_format_is_taken_by_itself_where_the_checkpoint_says_that_it_chats(tmp_path: Path) -> None:
    old.write_qwen(tmp_path)
    _write(tmp_path, "generation_config.json", {"chat_format": "chatml"})
    assert Tokenizer.load(tmp_path).has_chat_template
    _write(tmp_path, "generation_config.json", {"chat_format": "raw"})
    assert not Tokenizer.load(tmp_path).has_chat_template


@pytest.mark.parametrize(
    ("config", "generation"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, {"user_token_id": 195, "assistant_token_id": 196}),
        ({"architectures": ["BaichuanForCausalLM"]}, {"user_token_id": 195}),
        ({}, {}),
    ],
)
def test_baichuans_format_is_not_taken_by_itself_without_both_ids_and_the_architecture(
    config: dict[str, Any], generation: dict[str, Any], tmp_path: Path
) -> None:
    assert not _baichuan(tmp_path, config, generation).has_chat_template


def test_the_checkpoints_own_template_comes_first_and_a_chosen_one_before_it(tmp_path: Path) -> None:
    old.write_qwen(tmp_path)
    _write(tmp_path, "generation_config.json", {"chat_format": "chatml"})
    (tmp_path / "chat_template.jinja").write_text("own")
    chosen = tmp_path / "chosen.jinja"
    chosen.write_text("chosen {{ eos_token }}")
    own, other = Tokenizer.load(tmp_path), Tokenizer.load(tmp_path, str(chosen))
    assert own.decode(own.apply_chat_template(TALK)) == "own"
    assert other.decode(other.apply_chat_template(TALK), skip_special_tokens=False) == "chosen <|endoftext|>"
    assert own.chat_params(SamplingParams()) == SamplingParams()


@pytest.mark.parametrize(("name", "token"), [("qwen", "im_end"), ("internlm", "eoa")])
def test_a_format_whose_tokens_are_not_there_is_refused(name: str, token: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{name}.*{token}"):
        Tokenizer.load(old.write_sentencepiece(tmp_path), name)


def test_a_template_is_a_built_in_name_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.jinja").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert resolve_chat_template(None) is None
    assert resolve_chat_template("vicuna") == "vicuna"
    assert resolve_chat_template("mine.jinja") == str(tmp_path / "mine.jinja")
    with pytest.raises(ConfigError, match="'vicunya' is neither a file nor one of the built-in .*vicuna"):
        resolve_chat_template("vicunya")


def test_the_setting_names_every_built_in_format() -> None:
    documented = (EngineConfig.__doc__ or "").split("chat_template:")[1].split("served_model_name:")[0]
    assert all(f"`{name}`" in documented for name in BUILT_IN_FORMATS)
