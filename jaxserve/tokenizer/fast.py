"""FastBackend: Hugging Face's fast tokenizers, and the byte-level BPE of GPT-2 from its two files."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken as BackendToken
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from jaxserve.errors import CheckpointError
from jaxserve.tokenizer.added_tokens import AddedToken
from jaxserve.tokenizer.piece_decoder import PieceDecoder, VocabularyPieces

# How Qwen2 cuts text into words (tokenization_qwen2.py); GPT-2's pattern is the library's own.
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class FastBackend:
    """A tokenizer of the `tokenizers` library.

    Args:
        backend: the tokenizer; truncation and padding are turned off.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._pieces = VocabularyPieces(backend)
        self._vocab_size = max(backend.get_vocab().values(), default=-1) + 1

    @classmethod
    def from_file(cls, path: Path) -> "FastBackend":
        """Read tokenizer.json.

        Raises:
            CheckpointError: it is not one.
        """
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises Exception itself
            raise CheckpointError(f"{path}: not a tokenizer: {error}") from error

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id, added tokens included."""
        return self._vocab_size

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of valid Unicode text."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of ids within the vocabulary."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_to_id(self, token: str) -> int | None:
        """Id of a token as the vocabulary spells it."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    def id_to_token(self, token_id: int) -> str | None:
        """How the vocabulary spells a token."""
        token: str | None = self._backend.id_to_token(token_id)
        return token

    def piece_decoder(self, skip_special_tokens: bool, prompt_token_ids: Sequence[int]) -> PieceDecoder:
        """A decoder that takes one token of a sequence at a time."""
        return self._pieces.decoder(skip_special_tokens, prompt_token_ids)


def read_byte_level(vocab: Path, merges: Path, *, qwen2: bool) -> tokenizers.Tokenizer:
    """Byte-level BPE (Radford et al. 2019) from vocab.json and merges.txt, without added tokens.

    Args:
        vocab: tokens and their ids.
        merges: the merges, in order.
        qwen2: cut text into words as Qwen2 does, after Unicode normalization (NFC), and not as GPT-2 does.

    Raises:
        CheckpointError: the files do not belong together or cannot be read.
    """
    try:
        backend = tokenizers.Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:  # the library raises Exception itself
        raise CheckpointError(f"{vocab}, {merges.name}: not a byte-level BPE: {error}") from error
    if qwen2:
        backend.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def add_tokens(backend: tokenizers.Tokenizer, added: Sequence[AddedToken], path: Path) -> None:
    """Give a tokenizer its added tokens.

    Raises:
        CheckpointError: the library would give one another id than the checkpoint does; the message names `path`.
    """
    for token in sorted(added, key=lambda each: each.token_id):
        flags = {"lstrip": token.lstrip, "rstrip": token.rstrip, "single_word": token.single_word}
        entry = BackendToken(token.text, special=token.special, normalized=False, **flags)
        backend.add_special_tokens([entry]) if token.special else backend.add_tokens([entry])
        if backend.token_to_id(token.text) != token.token_id:
            raise CheckpointError(
                f"{path}: token {token.text!r} has the id {token.token_id}, but {backend.token_to_id(token.text)} "
                "would be the next; the ids of added tokens must follow those of the vocabulary"
            )
