"""The one reading of prompts, which `LLM` and the clients share."""

from typing import Any

import pytest

from jaxserve.client.requests import generation
from jaxserve.errors import InvalidRequestError
from jaxserve.prompt import read_prompt


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("text", ("text", None)),
        ({"prompt": "text"}, ("text", None)),
        ([1, 2], (None, [1, 2])),
        ({"prompt_token_ids": (1, 2)}, (None, [1, 2])),
    ],
)
def test_every_form_gives_either_text_or_token_ids(prompt: Any, read: tuple[str | None, list[int] | None]) -> None:
    assert read_prompt(prompt) == read


@pytest.mark.parametrize(
    "prompt", [{"prompt": "a", "multi_modal_data": 1}, {"prompt": "a", "prompt_token_ids": [1]}, {}, {"text": "a"}]
)
def test_a_mapping_with_keys_that_would_be_ignored_is_refused_by_the_client_too(prompt: Any) -> None:
    with pytest.raises(InvalidRequestError, match="either `prompt` or `prompt_token_ids`"):
        generation(prompt, None, None, {})
