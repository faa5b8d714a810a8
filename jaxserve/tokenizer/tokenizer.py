"""Tokenizer: what a model directory says about turning text into token ids and back."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxserve.errors import InvalidRequestError
from jaxserve.request import SamplingParams
from jaxserve.tokenizer.added_tokens import TextSplitter
from jaxserve.tokenizer.backend import TokenizerBackend
from jaxserve.tokenizer.chat_format import ChatFormat, read_chat_format
from jaxserve.tokenizer.loading import TokenizerFiles, load_backend
from jaxserve.tokenizer.piece_decoder import PieceDecoder


class Tokenizer:
    """A model's tokenizer with its special tokens and chat format. Safe to share between threads.

    Args:
        backend: the vocabulary and the library that reads it.
        special_tokens: texts of `bos_token`, `eos_token`, `unk_token` and `pad_token`, those that exist.
        chat_format: how conversations are written; None if that is not known.
    """

    def __init__(
        self,
        backend: TokenizerBackend,
        special_tokens: Mapping[str, str] | None = None,
        chat_format: ChatFormat | None = None,
    ) -> None:
        self._backend = backend
        self._special_tokens = dict(special_tokens or {})
        self._vocab_size = backend.vocab_size
        self._chat_format = chat_format
        self._chat_splitter = TextSplitter(chat_format.split_at if chat_format is not None else ())

    @classmethod
    def load(cls, directory: Path, chat_template: str | None = None) -> "Tokenizer":
        """Read a vocabulary (tokenizer.json, tokenizer.model, qwen.tiktoken, or vocab.json with merges.txt).

        Beside it, where they exist: tokenizer_config.json, special_tokens_map.json, added_tokens.json and the chat
        template.

        Args:
            directory: where they are.
            chat_template: a built-in format's name or a template's path, instead of the checkpoint's own.

        Raises:
            CheckpointError: there is no vocabulary, or a file cannot be read; the message names it.
        """
        files = TokenizerFiles.read(directory)
        backend, special_tokens = load_backend(files)
        return cls(backend, special_tokens, read_chat_format(files, backend, special_tokens, chat_template))

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
        return self._chat_format is not None

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
        return self._backend.encode(text, add_special_tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids.

        Raises:
            InvalidRequestError: an id lies outside the vocabulary.
        """
        if ids and not (min(ids) >= 0 and max(ids) < self._vocab_size):
            i = next(i for i, token in enumerate(ids) if not 0 <= token < self._vocab_size)
            raise InvalidRequestError(f"token_ids[{i}]", f"must be from 0 to {self._vocab_size - 1}, got {ids[i]}")
        return self._backend.decode(ids, skip_special_tokens)

    def piece_decoder(self, skip_special_tokens: bool = True, prompt_token_ids: Sequence[int] = ()) -> PieceDecoder:
        """A decoder that takes one token of a sequence at a time, going on from the end of the prompt."""
        return self._backend.piece_decoder(skip_special_tokens, prompt_token_ids)

    def apply_chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation, as the model's own template lays it out.

        A template writes the special tokens it wants, so none are added to its text; some built-in formats say
        otherwise.

        Args:
            messages: each with `role` and `content`.
            add_generation_prompt: end with what opens the assistant's turn.

        Raises:
            InvalidRequestError: the model has no template, or the template refuses the messages, fails, or needs too
                much time or memory.
        """
        chat = self._chat_format
        if chat is None:
            raise InvalidRequestError(
                "messages",
                "the model has no chat template; send a text prompt instead, or start with one (chat_template)",
            )
        text = chat.template.render(messages, add_generation_prompt)
        if not chat.split_at:
            return self.encode(text, add_special_tokens=chat.add_special_tokens)
        ids: list[int] = []
        for part in self._chat_splitter.split(text):
            ids += self.encode(part, add_special_tokens=False) if isinstance(part, str) else [part.token_id]
        return ids

    def chat_params(self, params: SamplingParams) -> SamplingParams:
        """The parameters for an answer in a conversation: tokens that end a turn end it, unless `ignore_eos` is set.

        They are those of the built-in formats; other models name theirs as end-of-sequence tokens.

        Raises:
            InvalidRequestError: with them there are too many stop token ids.
        """
        ids = self._chat_format.stop_token_ids if self._chat_format is not None else ()
        if not ids or params.ignore_eos:
            return params
        return params.replace(stop_token_ids=[*(params.stop_token_ids or ()), *ids])

    def _special_id(self, name: str) -> int | None:
        text = self._special_tokens.get(name)
        return None if text is None else self._backend.token_to_id(text)
