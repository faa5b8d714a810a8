"""Sampling parameters and requests are checked, and the field at fault is named."""

from typing import Any

import msgspec
import pytest

from jaxserve.errors import InvalidRequestError, JaxserveError, UnsupportedError
from jaxserve.request import (
    MAX_STOP_STRING_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    ModelLimits,
    SamplingParams,
    validate_request,
)

NAN, INF = float("nan"), float("inf")
LIMITS = ModelLimits(vocab_size=100, max_model_len=20, eos_token_ids=(2,))

IN_RANGE: list[dict[str, Any]] = [
    {"max_tokens": 1},
    {"max_tokens": None, "min_tokens": 5},
    {"min_tokens": 16},
    {"temperature": 0.0},
    {"temperature": 100.0},
    {"top_p": 1e-9},
    {"top_p": 1.0},
    {"min_p": 0.0},
    {"min_p": 1.0},
    {"top_k": -1},
    {"top_k": 2**40},
    {"seed": 2**63 - 1},
    {"seed": -(2**63)},
    {"stop": ["x" * MAX_STOP_STRING_CHARS] * MAX_STOP_STRINGS},
    {"stop": []},
    {"stop_token_ids": list(range(MAX_STOP_TOKEN_IDS // 2))},
    {"time_limit": 1e-3},
    {"logit_bias": {}, "allowed_token_ids": [], "bad_words": []},
]
OUT_OF_RANGE: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 17}, "min_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 100.5}, "temperature"),
    ({"temperature": NAN}, "temperature"),
    ({"temperature": INF}, "temperature"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_p": NAN}, "top_p"),
    ({"min_p": -0.1}, "min_p"),
    ({"min_p": 1.1}, "min_p"),
    ({"min_p": NAN}, "min_p"),
    ({"top_k": -2}, "top_k"),
    ({"seed": 2**63}, "seed"),
    ({"seed": -(2**63) - 1}, "seed"),
    ({"stop": ""}, "stop[0]"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": ["a", 3]}, "stop[1]"),
    ({"stop": ["a", "x" * (MAX_STOP_STRING_CHARS + 1)]}, "stop[1]"),
    ({"stop": ["a"] * (MAX_STOP_STRINGS + 1)}, "stop"),
    ({"stop": "a", "detokenize": False}, "stop"),
    ({"stop_token_ids": list(range(MAX_STOP_TOKEN_IDS // 2 + 1))}, "stop_token_ids"),
    ({"time_limit": 0.0}, "time_limit"),
    ({"time_limit": -1.0}, "time_limit"),
    ({"time_limit": NAN}, "time_limit"),
    ({"time_limit": INF}, "time_limit"),
]


@pytest.mark.parametrize("fields", IN_RANGE, ids=lambda fields: str(fields)[:40])
def test_values_up_to_the_bounds_are_taken(fields: dict[str, Any]) -> None:
    params = SamplingParams(**fields)
    assert {name: getattr(params, name) for name in fields} == fields


@pytest.mark.parametrize(("fields", "field"), OUT_OF_RANGE, ids=lambda value: str(value)[:40])
def test_values_past_the_bounds_are_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**fields)
    assert caught.value.field == field
    assert str(caught.value) == f"{field}: {caught.value.description}"
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, JaxserveError)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"presence_penalty": 0.5},
        {"frequency_penalty": -0.5},
        {"repetition_penalty": 1.1},
        {"logprobs": 0},
        {"prompt_logprobs": 1},
        {"logit_bias": {3: 1.0}},
        {"allowed_token_ids": [1]},
        {"bad_words": ["x"]},
    ],
    ids=str,
)
def test_what_is_not_built_is_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError) as caught:
        SamplingParams(**fields)
    assert caught.value.field == next(iter(fields))
    assert isinstance(caught.value, NotImplementedError)


def test_a_changed_copy_is_checked_again() -> None:
    params = SamplingParams(temperature=0.5)
    assert params.replace(top_k=3) == SamplingParams(temperature=0.5, top_k=3)
    with pytest.raises(InvalidRequestError):
        params.replace(temperature=-1.0)


def test_parameters_read_from_msgpack_are_checked_too() -> None:
    packed = msgspec.msgpack.encode({"temperature": -1.0})
    with pytest.raises((InvalidRequestError, msgspec.ValidationError), match="temperature"):
        msgspec.msgpack.decode(packed, type=SamplingParams)
    params = SamplingParams(stop=["a"], seed=-5, logit_bias={})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


def test_one_stop_string_is_a_list_of_one() -> None:
    assert SamplingParams(stop="abc").stop_strings == SamplingParams(stop=["abc"]).stop_strings == ("abc",)
    assert SamplingParams().stop_strings == ()


@pytest.mark.parametrize(
    ("prompt", "fields", "field"),
    [
        ([], {}, "prompt"),
        ([1] * 20, {}, "prompt"),
        ([1, 100], {}, "prompt_token_ids[1]"),
        ([1, 2, -1], {}, "prompt_token_ids[2]"),
        ([1], {"stop_token_ids": [5, 100]}, "stop_token_ids[1]"),
        ([1], {"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ([1] * 10, {"min_tokens": 11}, "min_tokens"),
    ],
    ids=str,
)
def test_requests_that_do_not_fit_the_model_are_refused_by_name(
    prompt: list[int], fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        validate_request(prompt, SamplingParams(**fields), LIMITS)
    assert caught.value.field == field


def test_requests_that_just_fit_the_model_pass() -> None:
    validate_request([0, 99] + [1] * 17, SamplingParams(stop_token_ids=[0, 99]), LIMITS)
    validate_request([1] * 10, SamplingParams(min_tokens=10), LIMITS)
