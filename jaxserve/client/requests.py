"""From Python values to protobuf requests. No input or output; shared by both clients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from google.protobuf.message import Message

from jaxserve.errors import InvalidRequestError
from jaxserve.prompt import Prompt, read_prompt
from jaxserve.request import SamplingParams
from jaxserve.v1 import generate_pb2, inference_pb2, options_pb2, prompt_pb2


class ChatMessage(TypedDict):
    """One message of a conversation."""

    role: str
    content: str


_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed", "n")
_PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty")
_NANOS_PER_SECOND = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What one call of `generate` asks for, in Python's terms.

    Attributes:
        text, token_ids, messages: the prompt; exactly one is not None.
        params: how to sample and when to stop.
        request_id, priority, model, add_special_tokens: as in the protobuf request; None leaves them unset.
    """

    text: str | None
    token_ids: Sequence[int] | None
    messages: Sequence[ChatMessage] | None
    params: SamplingParams
    request_id: str | None = None
    priority: int | None = None
    model: str | None = None
    add_special_tokens: bool | None = None


def generation(
    prompt: Prompt | None,
    messages: Sequence[ChatMessage] | None,
    sampling_params: SamplingParams | None,
    overrides: dict[str, Any],
    **fields: Any,
) -> Generation:
    """Check and sort the arguments of `generate`.

    Raises:
        InvalidRequestError: not exactly one of prompt and messages, or a sampling value out of range.
        UnsupportedError: a sampling field that is not built yet.
        TypeError: an unknown keyword.
    """
    if (prompt is None) == (messages is None):
        raise InvalidRequestError("prompt", "give either a prompt or messages")
    params = sampling_params if sampling_params is not None else SamplingParams()
    unknown = overrides.keys() - set(SamplingParams.__struct_fields__)
    if unknown:
        raise TypeError(f"unknown sampling parameters: {', '.join(sorted(unknown))}")
    if overrides:
        params = params.replace(**overrides)
    text, token_ids = (None, None) if prompt is None else read_prompt(prompt)
    return Generation(text=text, token_ids=token_ids, messages=messages, params=params, **fields)


def generation_request[M: (generate_pb2.GenerateRequest, generate_pb2.GenerateStreamRequest)](
    kind: type[M], asked: Generation
) -> M:
    """The protobuf request of either kind.

    Raises:
        InvalidRequestError: a value does not fit its protobuf field.
    """
    request = kind()
    _set_prompt(request, asked)
    for name in ("request_id", "priority", "model", "add_special_tokens"):
        _put(request, name, getattr(asked, name), name)
    # Otherwise the caller has them, and they would only travel back.
    request.output.include_prompt_token_ids = asked.token_ids is None
    _set_sampling(request.sampling, asked.params)
    _set_stopping(request.stopping, asked.params)
    _set_output(request.output, request.constraints, asked.params)
    return request


def tokenize_request(
    text: str | None, messages: Sequence[ChatMessage] | None, add_special_tokens: bool | None, model: str | None
) -> inference_pb2.TokenizeRequest:
    """The protobuf request for token ids.

    Raises:
        InvalidRequestError: not exactly one of text and messages.
    """
    if (text is None) == (messages is None):
        raise InvalidRequestError("text", "give either a text or messages")
    request = inference_pb2.TokenizeRequest(text=text, add_special_tokens=add_special_tokens, model=model)
    if messages is not None:
        request.chat.CopyFrom(_chat(messages))
    return request


def _set_prompt(request: generate_pb2.GenerateRequest | generate_pb2.GenerateStreamRequest, asked: Generation) -> None:
    if asked.text is not None:
        _put(request, "text", asked.text, "prompt")
    elif asked.token_ids is not None:
        request.token_ids.SetInParent()
        _extend(request.token_ids.ids, asked.token_ids, "prompt_token_ids")
    elif asked.messages is not None:
        request.chat.CopyFrom(_chat(asked.messages))


def _chat(messages: Sequence[ChatMessage]) -> prompt_pb2.ChatPrompt:
    chat = prompt_pb2.ChatPrompt()
    for i, message in enumerate(messages):
        unknown = message.keys() - {"role", "content"}
        if unknown:
            raise InvalidRequestError(f"messages[{i}]", f"unknown keys: {', '.join(sorted(unknown))}")
        added = chat.messages.add()
        _put(added, "role", message.get("role"), f"messages[{i}].role")
        _put(added, "content", message.get("content"), f"messages[{i}].content")
    return chat


def _set_sampling(group: options_pb2.SamplingOptions, params: SamplingParams) -> None:
    for name in (*_SAMPLING, *_PENALTIES):
        _put(group, name, getattr(params, name), name)


def _set_stopping(group: options_pb2.StoppingOptions, params: SamplingParams) -> None:
    _put(group, "max_tokens", params.max_tokens, "max_tokens")
    _put(group, "min_tokens", params.min_tokens or None, "min_tokens")
    _extend(group.stop_strings, params.stop_strings, "stop")
    _extend(group.stop_token_ids, params.stop_token_ids or (), "stop_token_ids")
    group.ignore_eos = params.ignore_eos
    group.include_stop_string = params.include_stop_str_in_output
    if params.time_limit is not None:
        seconds, nanos = divmod(round(params.time_limit * _NANOS_PER_SECOND), _NANOS_PER_SECOND)
        _put(group.time_limit, "seconds", seconds, "time_limit")
        group.time_limit.nanos = nanos


def _set_output(
    group: options_pb2.OutputOptions, constraints: options_pb2.ConstraintOptions, params: SamplingParams
) -> None:
    # True is what the server takes anyway if it has a tokenizer; left unset, one without can answer too.
    _put(group, "detokenize", None if params.detokenize else False, "detokenize")
    _put(group, "skip_special_tokens", params.skip_special_tokens, "skip_special_tokens")
    _put(group, "logprobs", params.logprobs, "logprobs")
    _put(group, "prompt_logprobs", params.prompt_logprobs, "prompt_logprobs")
    for token, bias in (params.logit_bias or {}).items():
        constraints.logit_bias[token] = bias
    _extend(constraints.allowed_token_ids, params.allowed_token_ids or (), "allowed_token_ids")
    _extend(constraints.bad_words, params.bad_words or (), "bad_words")


def _put(message: Message, name: str, value: Any, field: str) -> None:
    """Set a field unless the value is None."""
    if value is None:
        return
    try:
        setattr(message, name, value)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(field, str(error)) from error


def _extend(repeated: Any, values: Sequence[Any], field: str) -> None:
    try:
        repeated.extend(values)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(field, str(error)) from error
