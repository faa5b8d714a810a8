"""TiktokenBackend: Qwen 1's `qwen.tiktoken`, byte-level BPE by ranks with special tokens known by name."""

import base64
import unicodedata
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import tiktoken

from jaxserve.errors import CheckpointError
from jaxserve.tokenizer.piece_decoder import NUM_CONTEXT_TOKENS, ByteDecoder, PieceDecoder

QWEN_FILE = "qwen.tiktoken"
# How Qwen cuts text into words, and its special tokens, in the order of their ids behind the ranks (QwenLM's
# tokenization_note.md and tokenizer).
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))


class TiktokenBackend:
    """Qwen 1's tokenizer. It puts no special tokens around a text.

    Args:
        ranks: the id of each byte string.
    """

    def __init__(self, ranks: dict[bytes, int]) -> None:
        first = max(ranks.values()) + 1
        self._special = {token: first + i for i, token in enumerate(QWEN_SPECIAL_TOKENS)}
        self._token_bytes = {token_id: token for token, token_id in ranks.items()}
        self._token_bytes |= {token_id: token.encode() for token, token_id in self._special.items()}
        self._special_ids = frozenset(self._special.values())
        self._ranks = ranks
        self._encoding = tiktoken.Encoding(
            "qwen", pat_str=QWEN_PATTERN, mergeable_ranks=ranks, special_tokens=self._special
        )

    @classmethod
    def from_file(cls, path: Path) -> "TiktokenBackend":
        """Read a file of lines `base64 rank`.

        Raises:
            CheckpointError: a line is not of that form, or a byte or a rank is missing.
        """
        ranks: dict[bytes, int] = {}
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if not line.strip():
                continue
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
            except ValueError as error:
                raise CheckpointError(f"{path}: line {number} is not `base64 rank`: {error}") from error
        if sorted(ranks.values()) != list(range(len(ranks))):
            raise CheckpointError(f"{path}: the ranks are not the numbers from 0 to {len(ranks) - 1}")
        if any(bytes([byte]) not in ranks for byte in range(256)):
            raise CheckpointError(f"{path}: a single byte has no rank")
        return cls(ranks)

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id, special tokens included."""
        return len(self._token_bytes)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of valid Unicode text, which is normalized (NFC) first."""
        return self._encoding.encode(unicodedata.normalize("NFC", text), allowed_special="all", disallowed_special=())

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of ids within the vocabulary."""
        skipped = self._special_ids if skip_special_tokens else frozenset()
        return b"".join(self._token_bytes[i] for i in ids if i not in skipped).decode("utf-8", "replace")

    def token_to_id(self, token: str) -> int | None:
        """Id of a special token, or of an ordinary one that is text."""
        return self._special.get(token, self._ranks.get(token.encode("utf-8", "surrogatepass")))

    def id_to_token(self, token_id: int) -> str | None:
        """A token's text, with U+FFFD for bytes that make no character."""
        token = self._token_bytes.get(token_id)
        return None if token is None else token.decode("utf-8", "replace")

    def piece_decoder(self, skip_special_tokens: bool, prompt_token_ids: Sequence[int]) -> PieceDecoder:
        """A decoder that takes one token of a sequence at a time."""
        skipped = self._special_ids if skip_special_tokens else frozenset()
        decoder = ByteDecoder(lambda token_id: self._token_bytes.get(token_id, b""), skipped)
        seen = islice((i for i in reversed(prompt_token_ids) if i not in skipped), NUM_CONTEXT_TOKENS)
        for token_id in reversed(list(seen)):
            decoder.push(token_id)
        return decoder
