"""Tokenizer: reading a model directory, encoding, decoding, chat."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend

from jaxserve.errors import CheckpointError, InvalidRequestError
from jaxserve.tokenizer import Tokenizer
from jaxserve.tokenizer.fast import FastBackend

CONFIG: dict[str, Any] = {"bos_token": "<bos>", "eos_token": {"content": "<eos>", "lstrip": False}}
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
USER = [{"role": "user", "content": "fox"}]


def write(directory: Path, backend: Backend, **files: object) -> Path:
    (directory / "tokenizer.json").write_text(backend.to_str())
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def test_special_tokens_come_from_the_tokenizer_config(tmp_path: Path, byte_level_backend: Backend) -> None:
    tokenizer = Tokenizer.load(write(tmp_path, byte_level_backend, tokenizer_config=CONFIG))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tokenizer.vocab_size == byte_level_backend.get_vocab_size()


def test_special_tokens_come_from_the_map_where_the_config_has_none(
    tmp_path: Path, byte_level_backend: Backend
) -> None:
    files = {"special_tokens_map": {"eos_token": "<eos>"}, "tokenizer_config": {"eos_token": None}}
    tokenizer = Tokenizer.load(write(tmp_path, byte_level_backend, **files))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (None, 1)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path / "tokenizer.json")):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_config", "special_tokens_map"])
@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1]"])
def test_a_broken_file_is_named(tmp_path: Path, byte_level_backend: Backend, name: str, content: bytes) -> None:
    write(tmp_path, byte_level_backend)
    (tmp_path / f"{name}.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}.json"):
        Tokenizer.load(tmp_path)


def test_encode_adds_the_models_special_tokens_unless_told_not_to(byte_level: Tokenizer) -> None:
    plain = byte_level.encode("fox", add_special_tokens=False)
    assert byte_level.encode("fox") == [byte_level.bos_token_id, *plain]


def test_encode_of_half_a_surrogate_pair_is_an_invalid_request(byte_level: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="prompt"):
        byte_level.encode("a\ud800")


@pytest.mark.parametrize("token", [-1, 10**6, 2**31, 2**64])
def test_decode_of_an_id_outside_the_vocabulary_is_an_invalid_request(byte_level: Tokenizer, token: int) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        byte_level.decode([0, token])
    assert caught.value.field == "token_ids[1]"


def test_decode_shows_special_tokens_on_request(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("fox")
    assert (byte_level.decode(ids), byte_level.decode(ids, skip_special_tokens=False)) == ("fox", "<bos>fox")


def test_a_tokenizer_saved_with_truncation_cuts_nothing(byte_level_backend: Backend) -> None:
    backend = Backend.from_str(byte_level_backend.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    text = "The quick brown fox " * 5
    assert Tokenizer(FastBackend(backend)).decode(Tokenizer(FastBackend(backend)).encode(text)) == text


def test_a_chat_template_writes_its_special_tokens_once(tmp_path: Path, byte_level_backend: Backend) -> None:
    config = {**CONFIG, "chat_template": TEMPLATE}
    tokenizer = Tokenizer.load(write(tmp_path, byte_level_backend, tokenizer_config=config))
    assert tokenizer.apply_chat_template(USER) == tokenizer.encode("fox")


def test_a_template_file_goes_before_the_config(tmp_path: Path, byte_level_backend: Backend) -> None:
    write(tmp_path, byte_level_backend, tokenizer_config={**CONFIG, "chat_template": "other"})
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    assert Tokenizer.load(tmp_path).apply_chat_template(USER)[0] == 0


def test_of_several_templates_the_default_is_taken(tmp_path: Path, byte_level_backend: Backend) -> None:
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]
    config = {**CONFIG, "chat_template": several}
    tokenizer = Tokenizer.load(write(tmp_path, byte_level_backend, tokenizer_config=config))
    assert tokenizer.decode(tokenizer.apply_chat_template(USER)) == "fox"


def test_without_a_template_chat_is_an_invalid_request(byte_level: Tokenizer) -> None:
    assert not byte_level.has_chat_template
    with pytest.raises(InvalidRequestError, match="no chat template"):
        byte_level.apply_chat_template(USER)


def test_the_package_does_not_import_jax() -> None:
    code = "import sys, jaxserve.tokenizer; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
