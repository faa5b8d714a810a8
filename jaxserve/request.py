"""What a request is: sampling parameters, the request itself, and what comes back.

Pure Python, imported by the scheduler, the server and the client alike; it never imports jax.
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Self

import msgspec

from jaxserve.errors import InvalidRequestError, UnsupportedError

MAX_STOP_STRINGS = 32
MAX_STOP_STRING_CHARS = 1024
# The device masks at most this many ids while min_tokens holds them back, the model's own end tokens included.
MAX_STOP_TOKEN_IDS = 64
SEED_LIMIT = 2**63


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"  # an end-of-sequence token, a stop token id or a stop string
    LENGTH = "length"  # max_tokens, or the context is full
    ABORT = "abort"  # the client cancelled
    DEADLINE = "deadline"  # time_limit passed; the output so far is kept
    ERROR = "error"  # the engine failed


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are chosen and when to stop. Names and defaults are vLLM's wherever the meaning is the same.

    Attributes:
        max_tokens: most tokens to generate; None generates until the context is full.
        min_tokens: end-of-sequence and stop token ids cannot be sampled before this many tokens.
        temperature: 0 is greedy (argmax); larger is more random.
        top_p: keep the smallest set of tokens whose probability reaches this; 1 keeps all (nucleus sampling,
            Holtzman et al. 2019).
        top_k: keep this many most probable tokens; 0 or -1 keeps all.
        min_p: drop tokens less probable than this fraction of the most probable one (Nguyen et al. 2024).
        seed: the same seed, prompt and parameters give the same tokens whatever else is in the batch; None draws one.
        stop: strings that end the output; it never shows text at or past one.
        stop_token_ids: token ids that end the output, beside the model's own.
        ignore_eos: go on past the model's own end-of-sequence tokens.
        include_stop_str_in_output: leave the matched stop string in the text.
        skip_special_tokens: leave special tokens out of the text.
        detokenize: False returns token ids only; stop strings then cannot be used.
        time_limit: seconds after which the request finishes with what it has (finish reason `deadline`).

    The rest is refused with UnsupportedError unless left at its default.

    Raises:
        InvalidRequestError: a value is out of range or contradicts another.
        UnsupportedError: a feature that is not built yet is asked for.
    """

    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    detokenize: bool = True
    time_limit: float | None = None
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0.0

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple, however they were given."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def __post_init__(self) -> None:
        self._check_lengths()
        self._check_distribution()
        self._check_stops()
        self._check_supported()

    def _check_lengths(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidRequestError("max_tokens", f"must be at least 1, got {self.max_tokens}")
        if self.min_tokens < 0:
            raise InvalidRequestError("min_tokens", f"must be at least 0, got {self.min_tokens}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                "min_tokens", f"must not exceed max_tokens, got {self.min_tokens} > {self.max_tokens}"
            )
        if self.time_limit is not None and not (math.isfinite(self.time_limit) and self.time_limit > 0):
            raise InvalidRequestError("time_limit", f"must be a positive number of seconds, got {self.time_limit}")

    def _check_distribution(self) -> None:
        if not (math.isfinite(self.temperature) and 0.0 <= self.temperature <= 100.0):
            raise InvalidRequestError("temperature", f"must be from 0 (greedy) to 100, got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidRequestError("top_p", f"must be above 0 and at most 1, got {self.top_p}")
        if not 0.0 <= self.min_p <= 1.0:
            raise InvalidRequestError("min_p", f"must be from 0 to 1, got {self.min_p}")
        if self.top_k < -1:
            raise InvalidRequestError("top_k", f"must be positive, or 0 or -1 to keep all tokens, got {self.top_k}")
        if self.seed is not None and not -SEED_LIMIT <= self.seed < SEED_LIMIT:
            raise InvalidRequestError("seed", f"must fit in a signed 64-bit integer, got {self.seed}")

    def _check_stops(self) -> None:
        strings = self.stop_strings
        if len(strings) > MAX_STOP_STRINGS:
            raise InvalidRequestError("stop", f"at most {MAX_STOP_STRINGS} strings, got {len(strings)}")
        for i, string in enumerate(strings):
            if not isinstance(string, str) or not string:
                raise InvalidRequestError(f"stop[{i}]", "must be a non-empty string")
            if len(string) > MAX_STOP_STRING_CHARS:
                raise InvalidRequestError(
                    f"stop[{i}]", f"at most {MAX_STOP_STRING_CHARS} characters, got {len(string)}"
                )
        if strings and not self.detokenize:
            raise InvalidRequestError("stop", "stop strings need detokenize; use stop_token_ids without it")
        ids = self.stop_token_ids or ()
        if len(ids) > MAX_STOP_TOKEN_IDS // 2:
            raise InvalidRequestError("stop_token_ids", f"at most {MAX_STOP_TOKEN_IDS // 2} ids, got {len(ids)}")

    def _check_supported(self) -> None:
        for field, default in _NOT_BUILT.items():
            value = getattr(self, field)
            if value != default and not (default is None and value in ((), [], {})):
                raise UnsupportedError(field, f"is not supported yet; leave it at its default ({default})")

    def replace(self, **changes: object) -> Self:
        """A copy with some fields changed, checked again."""
        return msgspec.structs.replace(self, **changes)


_NOT_BUILT: dict[str, object] = {
    "n": 1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logprobs": None,
    "prompt_logprobs": None,
    "logit_bias": None,
    "allowed_token_ids": None,
    "bad_words": None,
}


class ModelLimits(msgspec.Struct, frozen=True):
    """What validation must know of the model being served.

    Attributes:
        vocab_size: number of token ids, the exclusive upper bound of every id in a request.
        max_model_len: most tokens of prompt and output together.
        eos_token_ids: the model's own end-of-sequence ids.
    """

    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...] = ()


def validate_request(prompt_token_ids: Sequence[int], params: SamplingParams, limits: ModelLimits) -> None:
    """Check a tokenized request against the model.

    Raises:
        InvalidRequestError: the prompt is empty or too long, or an id lies outside the vocabulary.
    """
    length = len(prompt_token_ids)
    if length == 0:
        raise InvalidRequestError("prompt", "must hold at least one token")
    if length >= limits.max_model_len:
        raise InvalidRequestError(
            "prompt",
            f"has {length} tokens, but the context of {limits.max_model_len} must hold the prompt and at least one "
            "generated token; shorten the prompt or raise max_model_len",
        )
    if min(prompt_token_ids) < 0 or max(prompt_token_ids) >= limits.vocab_size:
        i = next(i for i, t in enumerate(prompt_token_ids) if not 0 <= t < limits.vocab_size)
        raise InvalidRequestError(
            f"prompt_token_ids[{i}]", f"must be from 0 to {limits.vocab_size - 1}, got {prompt_token_ids[i]}"
        )
    for i, token in enumerate(params.stop_token_ids or ()):
        if not 0 <= token < limits.vocab_size:
            raise InvalidRequestError(f"stop_token_ids[{i}]", f"must be from 0 to {limits.vocab_size - 1}, got {token}")
    if params.min_tokens > limits.max_model_len - length:
        raise InvalidRequestError(
            "min_tokens",
            f"{params.min_tokens} tokens after a prompt of {length} exceed the context of {limits.max_model_len}",
        )


class Request(msgspec.Struct, kw_only=True):
    """A validated, tokenized request, as the engine receives it.

    Attributes:
        request_id: unique among the requests in flight.
        prompt_token_ids: at least one id.
        params: how to sample and when to stop. Stop strings are the caller's to find, since only it sees text.
        priority: lower runs first; equal ones in order of arrival.
        timeout: seconds from submission after which the client no longer waits: the request is aborted.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    priority: int = 0
    timeout: float | None = None


class RequestUpdate(msgspec.Struct, array_like=True):
    """What one engine step did for one request: the tokens it gained, and how it ended if it did.

    Attributes:
        token_ids: new output tokens, in order. A stop token that ended the request is included as the last one.
        finish_reason: None while the request goes on. Exactly one update of a request carries a reason.
        stop_token_id: the end-of-sequence or stop token that ended it, if one did.
        num_cached_tokens: prompt tokens whose keys and values came from the prefix cache.
    """

    request_id: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    num_cached_tokens: int = 0


class CompletionOutput(msgspec.Struct, kw_only=True):
    """One generated sequence.

    Attributes:
        index: which of the request's sequences this is.
        text: the generated text; empty when detokenize is False.
        token_ids: the generated token ids, the stop token included.
        finish_reason: why it ended.
        stop_reason: the stop string or token id that ended it, if one did; None for end-of-sequence.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


class RequestOutput(msgspec.Struct, kw_only=True):
    """A whole answer, as `LLM.generate` and the client return it.

    Attributes:
        prompt: the prompt's text; None when token ids were given.
        prompt_token_ids: the prompt as the model saw it.
        outputs: the generated sequences.
        num_cached_tokens: prompt tokens served from the prefix cache.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True
    num_cached_tokens: int = 0
