"""The forms in which Python callers give a prompt, offline and through the client alike."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

from jaxserve.errors import InvalidRequestError

# Text, token ids, `{"prompt": text}` or `{"prompt_token_ids": ids}`.
Prompt = str | Sequence[int] | Mapping[str, Any]
PROMPT_KEYS = frozenset({"prompt", "prompt_token_ids"})


def read_prompt(prompt: Prompt) -> tuple[str | None, list[int] | None]:
    """A prompt's text and token ids; exactly one of them is None.

    Raises:
        InvalidRequestError: a wrong type, or a mapping with other keys than one of the two.
    """
    if isinstance(prompt, Mapping):
        unknown = set(prompt) - PROMPT_KEYS
        if unknown or len(prompt) != 1:
            raise InvalidRequestError(
                "prompt", f"must have either `prompt` or `prompt_token_ids`, got the keys {list(prompt)}"
            )
        if "prompt_token_ids" in prompt:
            return None, _read_token_ids("prompt_token_ids", prompt["prompt_token_ids"])
        prompt = prompt["prompt"]
        if not isinstance(prompt, str):
            raise InvalidRequestError("prompt", f"must be text, got {prompt!r}")
    if isinstance(prompt, str):
        return prompt, None
    return None, _read_token_ids("prompt", prompt)


def _read_token_ids(field: str, ids: object) -> list[int]:
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise InvalidRequestError(field, f"must be a list of token ids, got {ids!r}")
    listed = list(ids)
    for i, token in enumerate(listed):
        if not isinstance(token, Integral):
            raise InvalidRequestError(f"{field}[{i}]", f"must be a token id, got {token!r}")
    return [int(token) for token in listed]
