"""Which tokenizer files a model directory holds, and the backend for them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import processors

from jaxserve.errors import CheckpointError
from jaxserve.tokenizer.added_tokens import SPECIAL_TOKENS, read_added_tokens, token_text
from jaxserve.tokenizer.backend import TokenizerBackend
from jaxserve.tokenizer.fast import FastBackend, add_tokens, read_byte_level
from jaxserve.tokenizer.sentencepiece_backend import DummyPrefix, SentencePieceBackend, read_processor
from jaxserve.tokenizer.tiktoken_backend import QWEN_FILE, TiktokenBackend

# Classes whose tokenizer.model is plain sentencepiece. All of them put the beginning-of-sequence token before a text,
# and nothing behind it, unless tokenizer_config.json says otherwise.
_SENTENCEPIECE_CLASSES = (
    "LlamaTokenizer",
    "LLaMATokenizer",
    "CodeLlamaTokenizer",
    "BaichuanTokenizer",
    "BaiChuanTokenizer",
    "InternLMTokenizer",
    "InternLM2Tokenizer",
    "InternLM3Tokenizer",
    "GemmaTokenizer",
    "YiTokenizer",
)
_QWEN2_CLASS = "Qwen2Tokenizer"
_BYTE_LEVEL_CLASSES = ("GPT2Tokenizer", _QWEN2_CLASS)


@dataclass(frozen=True)
class TokenizerFiles:
    """The JSON files beside a vocabulary, those that exist.

    Attributes:
        directory: where they are.
        settings: tokenizer_config.json.
        special_map: special_tokens_map.json.
        added_ids: added_tokens.json.
    """

    directory: Path
    settings: Mapping[str, Any]
    special_map: Mapping[str, Any]
    added_ids: Mapping[str, Any]

    @classmethod
    def read(cls, directory: Path) -> "TokenizerFiles":
        """Read them.

        Raises:
            CheckpointError: one is not a JSON object; the message names it.
        """
        names = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
        return cls(directory, *(read_json(directory / name) for name in names))

    @property
    def class_name(self) -> str | None:
        """The tokenizer's class, fast or slow."""
        name = self.settings.get("tokenizer_class")
        return name.removesuffix("Fast") if isinstance(name, str) else None

    @property
    def special_tokens(self) -> dict[str, str]:
        """Texts of the named special tokens; tokenizer_config.json's come first."""
        found: dict[str, str] = {}
        for source in (self.special_map, self.settings):
            found |= {name: text for name in SPECIAL_TOKENS if (text := token_text(source.get(name))) is not None}
        return found

    def settings_with(self, special_tokens: Mapping[str, str]) -> dict[str, Any]:
        """tokenizer_config.json, with these special tokens where it names none itself."""
        unnamed = {name: text for name, text in special_tokens.items() if self.settings.get(name) is None}
        return {**self.settings, **unnamed}

    def boolean(self, name: str, default: bool) -> bool:
        """A switch of tokenizer_config.json.

        Raises:
            CheckpointError: it is neither true nor false.
        """
        value = self.settings.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise CheckpointError(
                f"{self.directory / 'tokenizer_config.json'}: {name} must be true or false: {value!r}"
            )
        return value

    def refuse_unsupported(self) -> None:
        """Raise CheckpointError for settings of slow tokenizers that would change what text becomes."""
        path = self.directory / "tokenizer_config.json"
        if self.boolean("split_special_tokens", False):
            raise CheckpointError(f"{path}: split_special_tokens is not supported; set it to false")
        if self.settings.get("sp_model_kwargs"):
            raise CheckpointError(f"{path}: sp_model_kwargs is not supported; remove it")


def load_backend(files: TokenizerFiles) -> tuple[TokenizerBackend, dict[str, str]]:
    """The backend of a model directory, and the texts of its special tokens.

    tokenizer.json is taken if it is there, else tokenizer.model (sentencepiece), qwen.tiktoken, or vocab.json with
    merges.txt.

    Raises:
        CheckpointError: none of them is there, or a file cannot be read or asks for what is not implemented.
    """
    directory = files.directory
    if (directory / "tokenizer.json").is_file():
        return FastBackend.from_file(directory / "tokenizer.json"), files.special_tokens
    if (directory / "tokenizer.model").is_file():
        return _load_sentencepiece(files, directory / "tokenizer.model")
    if (directory / QWEN_FILE).is_file():
        # Qwen 1's special tokens are part of its definition. Text ends with the first of them.
        return TiktokenBackend.from_file(directory / QWEN_FILE), {"eos_token": "<|endoftext|>"}
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        return _load_byte_level(files)
    raise CheckpointError(
        f"{directory / 'tokenizer.json'}: no such file, nor tokenizer.model, {QWEN_FILE}, or vocab.json with "
        "merges.txt beside it. Name another directory (tokenizer), or start with skip_tokenizer_init"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file.

    Raises:
        CheckpointError: it cannot be read or is no object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, holds {type(content).__name__}")
    return content


def _load_sentencepiece(files: TokenizerFiles, path: Path) -> tuple[TokenizerBackend, dict[str, str]]:
    explicit = all(isinstance(files.settings.get(f"add_{end}_token"), bool) for end in ("bos", "eos"))
    if files.class_name not in _SENTENCEPIECE_CLASSES and not explicit:
        raise CheckpointError(
            f"{files.directory / 'tokenizer_config.json'}: tokenizer_class {files.class_name!r} is not known, so "
            "whether a text begins or ends with a special token is not either. Set add_bos_token and add_eos_token, or "
            f"tokenizer_class to one of {', '.join(_SENTENCEPIECE_CLASSES)}"
        )
    files.refuse_unsupported()
    model = path.read_bytes()
    processor = read_processor(model, path)
    own = {"bos_token": processor.bos_id(), "eos_token": processor.eos_id(), "unk_token": processor.unk_id()}
    special = {name: processor.id_to_piece(i) for name, i in own.items() if i >= 0} | files.special_tokens

    def piece_id(piece: str) -> int | None:
        token_id = processor.piece_to_id(piece)
        return token_id if processor.id_to_piece(token_id) == piece else None

    added = read_added_tokens(
        files.directory, files.settings_with(special), files.special_map, files.added_ids, piece_id
    )
    ids = {token.text: token.token_id for token in added}
    before, after = _ends(files, special, ids.get, begins=True)
    prefix: DummyPrefix = "every" if files.boolean("legacy", True) else "first"
    if not files.boolean("add_prefix_space", True):
        prefix = "none"
    return SentencePieceBackend(model, path, added=added, prefix=prefix, before=before, after=after), special


def _load_byte_level(files: TokenizerFiles) -> tuple[TokenizerBackend, dict[str, str]]:
    name = files.class_name or "GPT2Tokenizer"  # GPT-2's own checkpoint names none
    path = files.directory / "tokenizer_config.json"
    if name not in _BYTE_LEVEL_CLASSES:
        raise CheckpointError(
            f"{path}: tokenizer_class {name!r} with vocab.json and merges.txt is not supported; supported: "
            f"{', '.join(_BYTE_LEVEL_CLASSES)}. Others need a tokenizer.json"
        )
    files.refuse_unsupported()
    if files.boolean("add_prefix_space", False):
        raise CheckpointError(
            f"{path}: add_prefix_space is not supported with vocab.json and merges.txt, since slow and fast tokenizers "
            "disagree on it; bring a tokenizer.json"
        )
    backend = read_byte_level(
        files.directory / "vocab.json", files.directory / "merges.txt", qwen2=name == _QWEN2_CLASS
    )
    own = {"eos_token": "<|endoftext|>"} | ({} if name == _QWEN2_CLASS else {"bos_token": "<|endoftext|>"})
    special = own | files.special_tokens
    added = read_added_tokens(
        files.directory, files.settings_with(special), files.special_map, files.added_ids, backend.token_to_id
    )
    add_tokens(backend, added, path)
    before, after = _ends(files, special, backend.token_to_id, begins=False)
    if before or after:
        names = {i: backend.id_to_token(i) for i in (*before, *after)}
        template = [*(names[i] for i in before), "$A", *(names[i] for i in after)]
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(name, i) for i, name in names.items()]
        )
    return FastBackend(backend), special


def _ends(
    files: TokenizerFiles, special_tokens: Mapping[str, str], token_to_id: Callable[[str], int | None], *, begins: bool
) -> tuple[list[int], list[int]]:
    """Ids that stand before and behind a text, as add_bos_token and add_eos_token say."""
    ends: list[list[int]] = []
    for name, default in (("bos_token", begins), ("eos_token", False)):
        ids: list[int] = []
        if files.boolean(f"add_{name}", default):
            token_id = token_to_id(special_tokens[name]) if name in special_tokens else None
            if token_id is None:
                raise CheckpointError(
                    f"{files.directory / 'tokenizer_config.json'}: add_{name} is true, but there is no {name}"
                )
            ids.append(token_id)
        ends.append(ids)
    return ends[0], ends[1]
