"""Client: call a jaxserve server from ordinary code."""

import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from jaxserve.client.answers import AnswerFold, Delta, PromptInfo
from jaxserve.client.channel import (
    DEFAULT_MAX_MESSAGE_BYTES,
    DEFAULT_TARGET,
    INFERENCE_SERVICE,
    Health,
    channel_options,
    health_of,
)
from jaxserve.client.errors import DeadlineExceededError, RpcError, UnavailableError, from_rpc_error
from jaxserve.client.requests import ChatMessage, generation, generation_request, tokenize_request
from jaxserve.client.retry import Attempts, RetryPolicy
from jaxserve.prompt import Prompt
from jaxserve.request import RequestOutput, SamplingParams
from jaxserve.v1 import generate_pb2, inference_pb2, inference_pb2_grpc

READY_POLL_S = 0.1


class GenerationStream(Iterator[Delta]):
    """An answer as it grows: iterate over its deltas. Leaving it early (`with`, `cancel`) frees the server's work.

    Raises, from iteration:
        RpcError: the call failed; one of its subclasses.
    """

    def __init__(self, open_call: Callable[[float | None], Any], fold: AnswerFold, attempts: Attempts) -> None:
        self._open_call = open_call
        self._fold = fold
        self._attempts = attempts
        self._call = open_call(attempts.remaining)

    def __next__(self) -> Delta:
        while True:
            try:
                delta = self._fold.add(next(self._call))
            except StopIteration:
                self._fold.check_finished()
                raise
            except grpc.RpcError as error:
                self._retry(from_rpc_error(error))
            else:
                if delta is not None:
                    return delta

    def _retry(self, error: RpcError) -> None:
        if self._fold.prompt_info is not None:
            raise error
        time.sleep(self._attempts.delay_after(error))
        self._call = self._open_call(self._attempts.remaining)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    @property
    def prompt_info(self) -> PromptInfo | None:
        """The beginning of the answer; None before the first delta."""
        return self._fold.prompt_info

    @property
    def output(self) -> RequestOutput:
        """All that was read so far; whole once iteration has ended."""
        return self._fold.output()

    def read(self) -> RequestOutput:
        """Read to the end and return the whole answer."""
        for _ in self:
            pass
        return self.output

    def cancel(self) -> None:
        """End the call. The server frees what the request held. No effect after the end."""
        self._call.cancel()


class Client:
    """Calls a jaxserve server. Threads may share one.

    Args:
        target: `host:port`, or any gRPC target such as `dns:///name:port`.
        max_message_bytes: largest message sent or received.
        retry: when to try again; see RetryPolicy.
        keepalive_time: seconds between pings while a call is open.
        options: more gRPC channel arguments.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        retry: RetryPolicy | None = None,
        keepalive_time: float = 30.0,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        self._target = target
        self._retry_policy = retry or RetryPolicy()
        arguments = [*channel_options(max_message_bytes, keepalive_time), *options]
        self._channel = grpc.insecure_channel(target, options=arguments)
        self._stub: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is in flight and disconnect."""
        self._channel.close()

    def generate(
        self,
        prompt: Prompt | None = None,
        sampling_params: SamplingParams | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
        priority: int | None = None,
        model: str | None = None,
        add_special_tokens: bool | None = None,
        **sampling: Any,
    ) -> RequestOutput:
        """Generate a whole answer.

        Args:
            prompt: text, token ids, or `{"prompt_token_ids": [...]}`.
            sampling_params: how to sample and when to stop; `SamplingParams()` if None.
            messages: a conversation, instead of a prompt.
            timeout: seconds for the call, retries included; the answer is lost when they pass
                (`SamplingParams.time_limit` keeps it).
            request_id: names the request; drawn by the server if None.
            priority: lower runs first, where the server's policy has priorities.
            model: refused if the server serves another.
            add_special_tokens: whether the tokenizer adds special tokens to a text.
            sampling: fields of SamplingParams, instead of or on top of `sampling_params`.

        Raises:
            InvalidRequestError, UnsupportedError: a value is refused before anything is sent.
            RpcError: the call failed; one of its subclasses.
        """
        asked = generation(
            prompt,
            messages,
            sampling_params,
            sampling,
            request_id=request_id,
            priority=priority,
            model=model,
            add_special_tokens=add_special_tokens,
        )
        request = generation_request(generate_pb2.GenerateRequest, asked)
        return AnswerFold(asked).add_whole(self._unary(self._stub.Generate, request, timeout))

    def generate_stream(
        self,
        prompt: Prompt | None = None,
        sampling_params: SamplingParams | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
        priority: int | None = None,
        model: str | None = None,
        add_special_tokens: bool | None = None,
        **sampling: Any,
    ) -> GenerationStream:
        """Generate an answer and read it as it grows. Arguments and errors are those of `generate`."""
        asked = generation(
            prompt,
            messages,
            sampling_params,
            sampling,
            request_id=request_id,
            priority=priority,
            model=model,
            add_special_tokens=add_special_tokens,
        )
        request = generation_request(generate_pb2.GenerateStreamRequest, asked)
        return GenerationStream(
            lambda remaining: self._stub.GenerateStream(request, timeout=remaining),
            AnswerFold(asked),
            Attempts(self._retry_policy, timeout),
        )

    def tokenize(
        self,
        text: str | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        add_special_tokens: bool | None = None,
        model: str | None = None,
        timeout: float | None = None,
    ) -> list[int]:
        """The token ids that `generate` would make of a text or a conversation."""
        request = tokenize_request(text, messages, add_special_tokens, model)
        return list(self._unary(self._stub.Tokenize, request, timeout).token_ids)

    def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool | None = None,
        model: str | None = None,
        timeout: float | None = None,
    ) -> str:
        """The text of token ids."""
        request = inference_pb2.DetokenizeRequest(
            token_ids=token_ids, skip_special_tokens=skip_special_tokens, model=model
        )
        text: str = self._unary(self._stub.Detokenize, request, timeout).text
        return text

    def model_info(self, *, timeout: float | None = None) -> inference_pb2.GetModelInfoResponse:
        """The model served."""
        request = inference_pb2.GetModelInfoRequest()
        response: inference_pb2.GetModelInfoResponse = self._unary(self._stub.GetModelInfo, request, timeout)
        return response

    def server_info(self, *, timeout: float | None = None) -> inference_pb2.GetServerInfoResponse:
        """The server's state, limits and load."""
        request = inference_pb2.GetServerInfoRequest()
        response: inference_pb2.GetServerInfoResponse = self._unary(self._stub.GetServerInfo, request, timeout)
        return response

    def health(self, *, timeout: float | None = None) -> Health:
        """Whether the server serves requests now.

        Raises:
            UnavailableError: it cannot be reached.
        """
        request = health_pb2.HealthCheckRequest(service=INFERENCE_SERVICE)
        try:
            return health_of(self._health.Check(request, timeout=timeout))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def wait_until_ready(self, timeout: float) -> None:
        """Wait until the server serves requests, whether it is not yet started or still loading.

        Raises:
            DeadlineExceededError: it does not within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while (remaining := deadline - time.monotonic()) > 0:
            try:
                if self.health(timeout=remaining) is Health.SERVING:
                    return
            except (UnavailableError, DeadlineExceededError):
                pass
            time.sleep(READY_POLL_S)
        raise DeadlineExceededError(
            grpc.StatusCode.DEADLINE_EXCEEDED, f"{self._target} was not ready within {timeout:g} s"
        )

    def _unary(self, method: Any, request: Any, timeout: float | None) -> Any:
        attempts = Attempts(self._retry_policy, timeout)
        while True:
            call = method.future(request, timeout=attempts.remaining)
            try:
                return call.result()
            except grpc.RpcError as error:
                delay = attempts.delay_after(from_rpc_error(error))
            except grpc.FutureCancelledError:
                raise from_rpc_error(call) from None
            finally:
                # Ctrl-C inside result() must not leave the request running on the server.
                call.cancel()
            time.sleep(delay)
