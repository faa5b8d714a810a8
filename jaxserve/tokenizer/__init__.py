"""Text to token ids and back: the tokenizer, chat templates, and text as it streams. Never imports jax."""

from jaxserve.tokenizer.chat_format import resolve_chat_template
from jaxserve.tokenizer.detokenizer import StreamDetokenizer, TextDelta
from jaxserve.tokenizer.tokenizer import Tokenizer

__all__ = ["StreamDetokenizer", "TextDelta", "Tokenizer", "resolve_chat_template"]
