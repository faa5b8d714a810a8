"""From one token at a time to text, at a cost that does not grow with the length of the text."""

import codecs
import json
import re
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Protocol

import tokenizers

# How much of the prompt a decoder is shown: a character has at most four bytes, hence tokens, and one goes before it.
NUM_CONTEXT_TOKENS = 8
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class PieceDecoder(Protocol):
    """Turns the tokens of one sequence into text, in order."""

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        ...

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an incomplete character."""
        ...


class VocabularyPieces:
    """What a vocabulary's decoder needs to know, read once a tokenizer: which kind it is, and each token's bytes.

    Attributes:
        special_ids: ids of the special tokens.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self.special_ids = frozenset(i for i, t in backend.get_added_tokens_decoder().items() if t.special)
        types = _decoder_types(json.loads(backend.to_str()).get("decoder"))
        self._is_byte_level = bool(types) and "ByteLevel" in types and types <= {"ByteLevel", "Fuse"}
        self._joins_bytes = "ByteLevel" in types
        self._byte_of_id: dict[int, int] = {}
        if "ByteFallback" in types:
            for token, i in backend.get_vocab().items():
                if match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token):
                    self._byte_of_id[i] = int(match[1], 16)
        self._bytes_of_id: dict[int, bytes] = {}

    def decoder(self, skip_special_tokens: bool, prompt_token_ids: Sequence[int] = ()) -> PieceDecoder:
        """A decoder for one sequence, which goes on from the end of the prompt."""
        skipped = self.special_ids if skip_special_tokens else frozenset()
        decoder: PieceDecoder
        if self._is_byte_level:
            decoder = ByteDecoder(self.token_bytes, skipped)
        else:
            token_bytes = self.token_bytes if self._joins_bytes else None
            decoder = _WindowDecoder(self._backend, skipped, self._byte_of_id, token_bytes)
        seen = islice((i for i in reversed(prompt_token_ids) if i not in skipped), NUM_CONTEXT_TOKENS)
        for token_id in reversed(list(seen)):
            decoder.push(token_id)
        return decoder

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a byte-level token; none for an id that is not in the vocabulary."""
        known = self._bytes_of_id.get(token_id)
        if known is None:
            known = self._bytes_of_id[token_id] = _byte_level_bytes(self._backend.id_to_token(token_id) or "")
        return known


class ByteDecoder:
    """Byte-level BPE: a token is a string of bytes, and the text is their UTF-8.

    Args:
        token_bytes: the bytes of a token.
        skipped: ids of tokens that are not shown.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], skipped: frozenset[int]) -> None:
        self._token_bytes = token_bytes
        self._skipped = skipped
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        return self._utf8.decode(self._token_bytes(token_id))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class ByteGatherer:
    """Gathers bytes that come one at a time until they make a whole character, as sentencepiece does.

    Each byte that can be no part of one becomes U+FFFD.
    """

    def __init__(self) -> None:
        self._pending = b""

    def push(self, byte: int) -> str:
        """The text that this byte completes."""
        data = self._pending + bytes([byte])
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                self._pending = data
                return ""
            # The last byte cannot follow the ones before it, but may begin a character of its own.
            broken, self._pending = self._pending, b""
            return REPLACEMENT * len(broken) + self.push(byte) if broken else REPLACEMENT
        self._pending = b""
        return text

    def flush(self) -> str:
        """What is left when other text follows or no more comes."""
        broken, self._pending = self._pending, b""
        return REPLACEMENT * len(broken)


class _WindowDecoder:
    """Any other decoder: what a token adds after the one before it.

    Decoders such as Metaspace treat the first token of a text differently, so each token is decoded together with
    what came just before, and the part that was there already is cut off. Byte tokens (`<0xE2>`) are gathered until
    they make a whole character, and so are byte-level tokens that stand before further decoding steps.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        skipped: frozenset[int],
        byte_of_id: dict[int, int],
        token_bytes: Callable[[int], bytes] | None,
    ) -> None:
        self._backend = backend
        self._skipped = skipped
        self._byte_of_id = byte_of_id
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._before: list[int] = []  # the tokens last shown, from one whole character to another
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        if token_id in self._skipped or self._backend.id_to_token(token_id) is None:
            return ""
        if token_id in self._byte_of_id:
            return self._push_byte(token_id)
        if self._token_bytes is None:
            return self.flush() + self._show([token_id])
        self._pending.append(token_id)
        self._utf8.decode(self._token_bytes(token_id))
        is_incomplete = bool(self._utf8.getstate()[0])
        return "" if is_incomplete else self.flush()

    def flush(self) -> str:
        pending, self._pending = self._pending, []
        if pending and pending[0] in self._byte_of_id:
            return REPLACEMENT * len(pending)
        return self._show(pending) if pending else ""

    def _push_byte(self, token_id: int) -> str:
        self._pending.append(token_id)
        data = bytes(self._byte_of_id[i] for i in self._pending)
        try:
            data.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                return ""
            # The last byte cannot follow the ones before it, but may begin a character of its own.
            broken, self._pending = self._pending[:-1], []
            if not broken:
                return REPLACEMENT
            return REPLACEMENT * len(broken) + self._push_byte(token_id)
        pending, self._pending = self._pending, []
        return self._show(pending)

    def _show(self, token_ids: list[int]) -> str:
        text = self._added(token_ids)
        self._before = token_ids
        return text

    def _added(self, token_ids: list[int]) -> str:
        before = self._backend.decode(self._before, skip_special_tokens=False) if self._before else ""
        return self._backend.decode(self._before + token_ids, skip_special_tokens=False)[len(before) :]


def _decoder_types(decoder: dict[str, Any] | None) -> set[str]:
    if decoder is None:
        return set()
    if decoder["type"] == "Sequence":
        return set().union(*(_decoder_types(each) for each in decoder["decoders"]))
    return {str(decoder["type"])}


def _byte_level_bytes(token: str) -> bytes:
    # A token with a character that stands for no byte was added as it is.
    try:
        return bytes(BYTE_OF_CHAR[char] for char in token)
    except KeyError:
        return token.encode("utf-8", "replace")


def _byte_of_char() -> dict[str, int]:
    """GPT-2's table (Radford et al. 2019): printable Latin-1 stands for itself, the rest for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF_CHAR = _byte_of_char()
