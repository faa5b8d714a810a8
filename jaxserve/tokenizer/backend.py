"""TokenizerBackend: what Tokenizer needs of the library that reads a model's vocabulary."""

from collections.abc import Sequence
from typing import Protocol

from jaxserve.tokenizer.piece_decoder import PieceDecoder


class TokenizerBackend(Protocol):
    """Text to token ids and back, for one kind of vocabulary file. Safe to share between threads."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id, added tokens included."""
        ...

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of valid Unicode text. Special tokens written out in it become their ids."""
        ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of ids within the vocabulary; U+FFFD for bytes that make no character."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """Id of a token as the vocabulary spells it; None if there is none."""
        ...

    def id_to_token(self, token_id: int) -> str | None:
        """How the vocabulary spells a token; None if there is none with that id."""
        ...

    def piece_decoder(self, skip_special_tokens: bool, prompt_token_ids: Sequence[int]) -> PieceDecoder:
        """A decoder that takes one token of a sequence at a time, going on from the end of the prompt."""
        ...
