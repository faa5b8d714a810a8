"""From protobuf requests to SamplingParams, and from the names of their fields to the paths of protobuf's.

Pure functions. An error names the field as SamplingParams or the message does; `field_path` turns either into the path
that BadRequest shows.
"""

import re
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from jaxserve.engine.messages import EngineInfo
from jaxserve.errors import InvalidRequestError, UnsupportedError
from jaxserve.request import FinishReason, SamplingParams
from jaxserve.v1 import generate_pb2, options_pb2

GenerationRequest = generate_pb2.GenerateRequest | generate_pb2.GenerateStreamRequest

FINISH_REASONS = {
    FinishReason.STOP: generate_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: generate_pb2.FINISH_REASON_LENGTH,
    FinishReason.DEADLINE: generate_pb2.FINISH_REASON_DEADLINE,
}

_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "n",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
_PATHS = {
    **{name: f"sampling.{name}" for name in _SAMPLING},
    "max_tokens": "stopping.max_tokens",
    "min_tokens": "stopping.min_tokens",
    "stop": "stopping.stop_strings",
    "stop_token_ids": "stopping.stop_token_ids",
    "ignore_eos": "stopping.ignore_eos",
    "include_stop_str_in_output": "stopping.include_stop_string",
    "time_limit": "stopping.time_limit",
    "detokenize": "output.detokenize",
    "skip_special_tokens": "output.skip_special_tokens",
    "logprobs": "output.logprobs",
    "prompt_logprobs": "output.prompt_logprobs",
    "logit_bias": "constraints.logit_bias",
    "allowed_token_ids": "constraints.allowed_token_ids",
    "bad_words": "constraints.bad_words",
    "messages": "chat.messages",
}
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_NANOS_PER_SECOND = 1_000_000_000


def field_path(field: str, request: Message) -> str:
    """The protobuf path of a field that an error named, such as `sampling.top_p` for `top_p`."""
    base = re.split(r"[\[.]", field, maxsplit=1)[0]
    rest = field[len(base) :]
    if base in ("prompt", "prompt_token_ids"):
        kind = prompt_kind(request)
        if kind == "token_ids":
            return f"token_ids.ids{rest}"
        return kind or "prompt"
    return _PATHS.get(base, base) + rest


def prompt_kind(request: Message) -> str | None:
    """Which member of the oneof `prompt` is set: `text`, `token_ids`, `chat`, or None."""
    oneofs = request.DESCRIPTOR.oneofs_by_name
    return request.WhichOneof("prompt") if "prompt" in oneofs else None


def largest_field(request: Message) -> str:
    """The name of the field that takes most of a message; the message's own name if it has none set."""
    sizes = {field.name: _size(value) for field, value in request.ListFields()}
    return max(sizes, key=lambda name: sizes[name], default=request.DESCRIPTOR.name)


def _size(value: Any) -> int:
    if isinstance(value, Message):
        return value.ByteSize()
    return len(value) if hasattr(value, "__len__") else 0


def sampling_params(request: GenerationRequest, has_tokenizer: bool) -> SamplingParams:
    """The request's groups as SamplingParams.

    Args:
        request: of either kind.
        has_tokenizer: without one, `detokenize` defaults to False.

    Raises:
        InvalidRequestError: a value is out of range or contradicts another.
        UnsupportedError: a field asks for what is not built yet.
    """
    _refuse_unbuilt(request)
    sampling, stopping, output, constraints = (
        request.sampling,
        request.stopping,
        request.output,
        request.constraints,
    )
    given = {name: getattr(sampling, name) for name in _SAMPLING if sampling.HasField(name)}
    optional = (
        (stopping, "min_tokens"),
        (output, "skip_special_tokens"),
        (output, "logprobs"),
        (output, "prompt_logprobs"),
    )
    given |= {name: getattr(group, name) for group, name in optional if group.HasField(name)}
    if stopping.HasField("time_limit"):
        given["time_limit"] = _seconds(stopping.time_limit)
    return SamplingParams(
        max_tokens=stopping.max_tokens if stopping.HasField("max_tokens") else None,
        stop=list(stopping.stop_strings) or None,
        stop_token_ids=list(stopping.stop_token_ids) or None,
        ignore_eos=stopping.ignore_eos,
        include_stop_str_in_output=stopping.include_stop_string,
        detokenize=_detokenize(output, has_tokenizer),
        logit_bias=dict(constraints.logit_bias) or None,
        allowed_token_ids=list(constraints.allowed_token_ids) or None,
        bad_words=list(constraints.bad_words) or None,
        **given,
    )


def _detokenize(output: options_pb2.OutputOptions, has_tokenizer: bool) -> bool:
    if not output.HasField("detokenize"):
        return has_tokenizer
    if output.detokenize and not has_tokenizer:
        raise InvalidRequestError("detokenize", "the server has no tokenizer; leave this unset and read token_ids")
    return output.detokenize


def _refuse_unbuilt(request: GenerationRequest) -> None:
    if request.HasField("adapter"):
        raise UnsupportedError("adapter", "adapters are not supported yet; leave it unset")
    structure = request.constraints.WhichOneof("structure")
    if structure is not None:
        raise UnsupportedError(f"constraints.{structure}", "structured output is not supported yet; leave it unset")


def _seconds(duration: Duration) -> float:
    seconds, nanos = duration.seconds, duration.nanos
    if abs(nanos) >= _NANOS_PER_SECOND or (seconds > 0 > nanos) or (seconds < 0 < nanos):
        raise InvalidRequestError("time_limit", f"is not a valid duration: {seconds} seconds and {nanos} nanoseconds")
    return seconds + nanos / _NANOS_PER_SECOND


def check_model(request: Any, info: EngineInfo) -> None:
    """Raise InvalidRequestError if the request names a model that is not served."""
    if request.HasField("model") and request.model != info.model_name:
        raise InvalidRequestError("model", f"{request.model!r} is not served here; this server has {info.model_name!r}")


def check_priority(request: GenerationRequest, info: EngineInfo) -> None:
    """Raise InvalidRequestError if the request asks for a priority that the scheduling policy would ignore."""
    if request.priority != 0 and info.scheduling_policy != "priority":
        raise InvalidRequestError(
            "priority", f"the server's scheduling policy is {info.scheduling_policy}, which has no priorities; send 0"
        )


def check_request_id(request: GenerationRequest) -> None:
    """Raise InvalidRequestError if the request brings an id that metadata cannot carry."""
    if request.HasField("request_id") and not _REQUEST_ID.fullmatch(request.request_id):
        raise InvalidRequestError("request_id", "must be 1 to 128 visible ASCII characters")
