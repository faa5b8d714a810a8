"""AddedToken: tokens that a checkpoint's JSON files put on top of its vocabulary, and cutting text at them."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxserve.errors import CheckpointError

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
# Of no use to a model that continues text; one of them that the vocabulary lacks is passed over.
_UNUSED_TOKENS = ("pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in text before anything else is.

    Attributes:
        text: as it is written.
        token_id: its id.
        special: left out when text is decoded without special tokens.
        lstrip: takes the whitespace before it with it.
        rstrip: takes the whitespace behind it with it.
        single_word: only where no letter or digit touches it.
    """

    text: str
    token_id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False

    @property
    def pattern(self) -> str:
        """A regular expression for the token with the whitespace it takes."""
        text = re.escape(self.text)
        if self.single_word:
            text = rf"(?<!\w){text}(?!\w)"
        return (r"\s*" if self.lstrip else "") + text + (r"\s*" if self.rstrip else "")


class TextSplitter:
    """Cuts text at added tokens: the first one found, and of several that begin there the longest.

    Args:
        added: the tokens.
    """

    def __init__(self, added: Iterable[AddedToken]) -> None:
        self._tokens = {token.text: token for token in added}
        longest_first = sorted(self._tokens.values(), key=lambda token: len(token.text), reverse=True)
        self._regex = re.compile("|".join(token.pattern for token in longest_first)) if longest_first else None

    def split(self, text: str) -> Iterator[str | AddedToken]:
        """The parts of a text in order; no part is empty."""
        end = 0
        for match in self._regex.finditer(text) if self._regex is not None else ():
            if match.start() > end:
                yield text[end : match.start()]
            found = match[0]
            yield self._tokens.get(found) or self._tokens[found.strip()]
            end = match.end()
        if end < len(text):
            yield text[end:]


def read_added_tokens(
    directory: Path,
    settings: Mapping[str, Any],
    special_map: Mapping[str, Any],
    added_ids: Mapping[str, Any],
    token_to_id: Callable[[str], int | None],
) -> tuple[AddedToken, ...]:
    """The added tokens of a checkpoint, one for each text.

    Args:
        directory: named in errors.
        settings: tokenizer_config.json.
        special_map: special_tokens_map.json.
        added_ids: added_tokens.json: ids by text.
        token_to_id: of the vocabulary beneath.

    Raises:
        CheckpointError: an entry is malformed, or names a special token that is in no vocabulary.
    """
    tokens: dict[str, AddedToken] = {}
    for text, token_id in added_ids.items():
        tokens[text] = AddedToken(text, _token_id(token_id, directory / "added_tokens.json"), special=False)
    path = directory / "tokenizer_config.json"
    for key, entry in _mapping(settings.get("added_tokens_decoder") or {}, path).items():
        token = _from_entry(entry, _token_id(key, path), path)
        tokens[token.text] = token
    for source, where in ((special_map, directory / "special_tokens_map.json"), (settings, path)):
        for name, entry in _named_entries(source):
            special = token_text(entry)
            if special is None:
                raise CheckpointError(f"{where}: {name} must be text or an object with `content`, is {entry!r}")
            known = tokens.get(special)
            found = known.token_id if known is not None else token_to_id(special)
            if found is None and name not in _UNUSED_TOKENS:
                raise CheckpointError(f"{where}: {name} is {special!r}, which is not in the vocabulary")
            if found is not None:
                tokens[special] = _from_entry(entry, found, where, known)
    return tuple(tokens.values())


def token_text(entry: object) -> str | None:
    """The text of a special token, written as text or as an object with `content`; None if it is neither."""
    if isinstance(entry, Mapping):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _named_entries(source: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in (*SPECIAL_TOKENS, *_UNUSED_TOKENS[1:]):
        if source.get(name) is not None:
            yield name, source[name]
    additional: Sequence[Any] = source.get("additional_special_tokens") or ()
    for entry in additional:
        yield "additional_special_tokens", entry


def _from_entry(entry: object, token_id: int, path: Path, known: AddedToken | None = None) -> AddedToken:
    text = token_text(entry)
    if text is None or not text:
        raise CheckpointError(f"{path}: the added token {token_id} has no text: {entry!r}")
    if not isinstance(entry, Mapping):
        flags = (known.lstrip, known.rstrip, known.single_word) if known is not None else (False, False, False)
        return AddedToken(text, token_id, True, *flags)
    flags = (bool(entry.get("lstrip")), bool(entry.get("rstrip")), bool(entry.get("single_word")))
    # In added_tokens_decoder `special` says which it is; what is named as a special token always is one.
    return AddedToken(text, token_id, bool(entry.get("special", True)) or known is not None, *flags)


def _mapping(value: object, path: Path) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{path}: added_tokens_decoder must be an object, is {type(value).__name__}")
    return value


def _token_id(value: object, path: Path) -> int:
    try:
        token_id = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        token_id = -1
    if token_id < 0 or isinstance(value, bool | float):
        raise CheckpointError(f"{path}: {value!r} is no token id")
    return int(token_id)
