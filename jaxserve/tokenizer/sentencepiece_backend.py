"""SentencePieceBackend: `tokenizer.model` (Kudo and Richardson 2018) of Llama 1 and 2, Baichuan, InternLM, Gemma."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import sentencepiece

from jaxserve.errors import CheckpointError
from jaxserve.tokenizer.added_tokens import AddedToken, TextSplitter
from jaxserve.tokenizer.piece_decoder import NUM_CONTEXT_TOKENS, ByteGatherer, PieceDecoder

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
# A protobuf message that is appended is merged: normalizer_spec (field 3) with add_dummy_prefix (field 3) false.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"

# Where the space goes that sentencepiece puts before a text: before every part between special tokens (transformers
# calls that legacy), before a part that begins the whole text, or nowhere.
DummyPrefix = Literal["every", "first", "none"]


@dataclass(frozen=True, slots=True)
class Piece:
    """What a token adds to a text.

    Attributes:
        text: its text, with the space before it.
        byte: for a byte token (`<0xE2>`), the byte instead.
        is_ordinary: it is sentencepiece that writes it.
        is_special: it is left out if special tokens are.
    """

    text: str
    byte: int | None = None
    is_ordinary: bool = True
    is_special: bool = False


class SentencePieceBackend:
    """A sentencepiece model with added tokens on top.

    Args:
        model: the content of tokenizer.model.
        path: named in errors.
        added: tokens found in text before sentencepiece sees it.
        prefix: where a space is put before text, if the model says so at all.
        before: ids that `add_special_tokens` puts before a text.
        after: ids that it puts behind.

    Raises:
        CheckpointError: the model cannot be read, or puts its spaces behind words.
    """

    def __init__(
        self,
        model: bytes,
        path: Path,
        *,
        added: Sequence[AddedToken] = (),
        prefix: DummyPrefix = "every",
        before: Sequence[int] = (),
        after: Sequence[int] = (),
    ) -> None:
        self._processor = read_processor(model, path)
        self._plain = read_processor(model + _NO_DUMMY_PREFIX, path)
        self._prefix = prefix
        self._before, self._after = list(before), list(after)
        self._splitter = TextSplitter(added)
        self._added = {token.token_id: token for token in added}
        self._added_ids = {token.text: token.token_id for token in added}
        self._pieces: dict[int, Piece] = {}
        self._vocab_size = max([self._processor.vocab_size(), *(i + 1 for i in self._added)])
        # What the model does is asked of the library itself, not read from its file.
        normalized = self._processor.normalize("a")
        if normalized == f"a{SPACE}":
            raise CheckpointError(f"{path}: spaces behind words (treat_whitespace_as_suffix) are not supported")
        self.adds_space = normalized.startswith(SPACE)
        self.drops_spaces = SPACE * 2 not in self._processor.normalize("a  b")

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id, added tokens included."""
        return self._vocab_size

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of valid Unicode text."""
        ids = list(self._before) if add_special_tokens else []
        for i, part in enumerate(self._splitter.split(text)):
            if isinstance(part, AddedToken):
                ids.append(part.token_id)
            else:
                has_prefix = self._prefix == "every" or (self._prefix == "first" and i == 0)
                ids += (self._processor if has_prefix else self._plain).encode(part)
        return ids + self._after if add_special_tokens else ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of ids within the vocabulary."""
        decoder = self.piece_decoder(skip_special_tokens, ())
        return "".join([*map(decoder.push, ids), decoder.flush()])

    def token_to_id(self, token: str) -> int | None:
        """Id of a token as the vocabulary spells it."""
        if token in self._added_ids:
            return self._added_ids[token]
        token_id = self._processor.piece_to_id(token)
        return token_id if self._processor.id_to_piece(token_id) == token else None

    def id_to_token(self, token_id: int) -> str | None:
        """How the vocabulary spells a token."""
        if token_id in self._added:
            return self._added[token_id].text
        return self._processor.id_to_piece(token_id) if 0 <= token_id < self._processor.vocab_size() else None

    def piece_decoder(self, skip_special_tokens: bool, prompt_token_ids: Sequence[int]) -> PieceDecoder:
        """A decoder that takes one token of a sequence at a time."""
        begins = len(prompt_token_ids) <= NUM_CONTEXT_TOKENS
        decoder = _SentencePieceDecoder(self, skip_special_tokens, begins)
        for token_id in prompt_token_ids[-NUM_CONTEXT_TOKENS:]:
            decoder.push(token_id)
        return decoder

    def piece(self, token_id: int) -> "Piece":
        """What a token adds to a text, looked up once; nothing for an id outside the vocabulary."""
        known = self._pieces.get(token_id)
        if known is None:
            known = self._pieces[token_id] = self._look_up(token_id)
        return known

    def _look_up(self, token_id: int) -> "Piece":
        added = self._added.get(token_id)
        if added is not None:
            return Piece(added.text, is_ordinary=False, is_special=added.special)
        if not 0 <= token_id < self._processor.vocab_size():
            return Piece("", is_ordinary=False)
        piece = str(self._processor.id_to_piece(token_id))
        if self._processor.is_control(token_id):
            return Piece(piece, is_ordinary=False, is_special=True)
        if self._processor.is_byte(token_id):
            return Piece("", byte=int(piece.removeprefix("<0x").removesuffix(">"), 16))
        if self._processor.is_unknown(token_id):
            return Piece(str(self._processor.decode([token_id])))
        return Piece(piece.replace(SPACE, " "))

    @property
    def begins_after_special(self) -> bool:
        """Whether text behind a special token begins anew, its first space being the one put there."""
        return self._prefix == "every"

    @property
    def begins_with_space(self) -> bool:
        """Whether a text's first space is dropped when it is decoded."""
        return (self.adds_space and self._prefix != "none") or self.drops_spaces


class _SentencePieceDecoder:
    """What sentencepiece's own decoder does, one token at a time."""

    def __init__(self, backend: SentencePieceBackend, skip_special_tokens: bool, begins: bool) -> None:
        self._backend = backend
        self._skip = skip_special_tokens
        self._begins = begins and backend.begins_with_space
        self._bytes = ByteGatherer()

    def push(self, token_id: int) -> str:
        piece = self._backend.piece(token_id)
        if not piece.is_ordinary:
            return self._push_added(piece)
        if piece.byte is not None:
            self._begins = False
            return self._bytes.push(piece.byte)
        shown, text = self.flush(), piece.text
        if self._begins and text.startswith(" "):
            text = text[1:]
            # A model that drops surplus spaces goes on dropping them until there is text.
            self._begins = self._backend.drops_spaces
        if shown or text:
            self._begins = False
        return shown + text

    def flush(self) -> str:
        return self._bytes.flush()

    def _push_added(self, piece: Piece) -> str:
        shown = self.flush()
        if not (piece.is_special and self._skip):
            shown += piece.text
        if self._backend.begins_after_special:
            self._begins = self._backend.begins_with_space
        elif shown:
            self._begins = False
        return shown


def read_processor(model: bytes, path: Path) -> sentencepiece.SentencePieceProcessor:
    """A sentencepiece model from its file's content.

    Raises:
        CheckpointError: it is none.
    """
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except Exception as error:  # the library raises RuntimeError and others
        raise CheckpointError(f"{path}: not a sentencepiece model: {error}") from error
