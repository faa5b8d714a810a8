"""Tokenizer: what a model directory says about turning text into token ids and back."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from jaxserve.errors import CheckpointError, InvalidRequestError
from jaxserve.tokenizer.chat_template import ChatTemplate
from jaxserve.tokenizer.piece_decoder import PieceDecoder, VocabularyPieces

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


class Tokenizer:
    """A Hugging Face fast tokenizer with its special tokens and chat template. Safe to share between threads.

    Args:
        backend: the tokenizer itself; truncation and padding are turned off.
        special_tokens: texts of `bos_token`, `eos_token`, `unk_token` and `pad_token`, those that exist.
        chat_template: the model's Jinja template; None if it has none.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str] | None = None,
        chat_template: str | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._special_tokens = dict(special_tokens or {})
        self._pieces = VocabularyPieces(backend)
        self._vocab_size = max(backend.get_vocab().values(), default=-1) + 1
        self._chat_template = None
        if chat_template is not None:
            self._chat_template = ChatTemplate(chat_template, self._special_tokens)

    @classmethod
    def load(cls, directory: Path) -> "Tokenizer":
        """Read tokenizer.json and, where they exist, tokenizer_config.json, special_tokens_map.json and the template.

        Raises:
            CheckpointError: tokenizer.json is missing, or a file cannot be read; the message names it.
        """
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no such file. jaxserve reads fast tokenizers (tokenizer.json) only; "
                "convert others with Hugging Face's transformers, or start with skip_tokenizer_init"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises Exception itself
            raise CheckpointError(f"{path}: not a tokenizer: {error}") from error
        settings = _read_json(directory / "tokenizer_config.json")
        special: dict[str, str] = {}
        for source in (_read_json(directory / "special_tokens_map.json"), settings):
            special |= {name: text for name in _SPECIAL_TOKENS if (text := _token_text(source.get(name))) is not None}
        return cls(backend, special, _read_chat_template(directory, settings))

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id, added tokens included."""
        return self._vocab_size

    @property
    def bos_token_id(self) -> int | None:
        """Id of the beginning-of-sequence token; None if there is none."""
        return self._special_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Id of the end-of-sequence token; None if there is none."""
        return self._special_id("eos_token")

    @property
    def has_chat_template(self) -> bool:
        """Whether `apply_chat_template` can be used."""
        return self._chat_template is not None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            add_special_tokens: put the model's own around it, such as the beginning-of-sequence token.

        Raises:
            InvalidRequestError: the text holds half a surrogate pair, which is no character.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError("prompt", f"is not valid Unicode text: {error}") from error
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids.

        Raises:
            InvalidRequestError: an id lies outside the vocabulary.
        """
        if ids and not (min(ids) >= 0 and max(ids) < self._vocab_size):
            i = next(i for i, token in enumerate(ids) if not 0 <= token < self._vocab_size)
            raise InvalidRequestError(f"token_ids[{i}]", f"must be from 0 to {self._vocab_size - 1}, got {ids[i]}")
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def piece_decoder(self, skip_special_tokens: bool = True, prompt_token_ids: Sequence[int] = ()) -> PieceDecoder:
        """A decoder that takes one token of a sequence at a time, going on from the end of the prompt."""
        return self._pieces.decoder(skip_special_tokens, prompt_token_ids)

    def apply_chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation, as the model's own template lays it out.

        The template writes the special tokens it wants, so none are added to its text.

        Args:
            messages: each with `role` and `content`.
            add_generation_prompt: end with what opens the assistant's turn.

        Raises:
            InvalidRequestError: the model has no template, or the template refuses the messages, fails, or needs too
                much time or memory.
        """
        if self._chat_template is None:
            raise InvalidRequestError("messages", "the model has no chat template; send a text prompt instead")
        text = self._chat_template.render(messages, add_generation_prompt)
        return self.encode(text, add_special_tokens=False)

    def _special_id(self, name: str) -> int | None:
        text = self._special_tokens.get(name)
        if text is None:
            return None
        token_id: int | None = self._backend.token_to_id(text)
        return token_id


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, holds {type(content).__name__}")
    return content


def _token_text(token: object) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _read_chat_template(directory: Path, settings: dict[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name; the plain conversation is `default`
        named = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{directory / 'tokenizer_config.json'}: chat_template must be text")
    return template
