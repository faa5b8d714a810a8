"""InferenceService: each rpc reads its request, asks engine or tokenizer, and builds the response."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc

import jaxserve
from jaxserve.config import ServerConfig
from jaxserve.engine.client import EngineClient
from jaxserve.engine.messages import EngineInfo
from jaxserve.engine.request_stream import RequestStream
from jaxserve.errors import EngineDeadError, InvalidRequestError
from jaxserve.request import Request, validate_request
from jaxserve.server import conversion
from jaxserve.server.answer import AnswerBuilder
from jaxserve.server.lifecycle import Lifecycle
from jaxserve.server.prompts import prompt_token_ids
from jaxserve.server.status import UnavailableError
from jaxserve.tokenizer import TextDelta, Tokenizer
from jaxserve.v1 import generate_pb2, inference_pb2_grpc
from jaxserve.v1 import inference_pb2 as pb

_Context = grpc.aio.ServicerContext[Any, Any]

REQUEST_ID_METADATA = "x-request-id"
# GetServerInfo answers without the load if the engine does not say it in this time (inside a compilation).
STATS_TIMEOUT_S = 2.0
# More token ids than this are decoded in a thread.
INLINE_DECODE_IDS = 1024


@dataclass(frozen=True)
class ServedModel:
    """What a loaded engine serves, and the tokenizer for it; None if the server was started without one."""

    info: EngineInfo
    tokenizer: Tokenizer | None


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """The handlers. Errors are raised as jaxserve's exceptions; `CallGuard` makes statuses of them.

    Args:
        engine: where requests go.
        lifecycle: what GetServerInfo tells.
        config: likewise.

    Attributes:
        served: set once the engine has loaded; no call but GetServerInfo comes before.
    """

    def __init__(self, engine: EngineClient, lifecycle: Lifecycle, config: ServerConfig) -> None:
        self._engine = engine
        self._lifecycle = lifecycle
        self._config = config
        self._started = time.monotonic()
        self.served: ServedModel | None = None

    async def Generate(self, request: generate_pb2.GenerateRequest, context: _Context) -> generate_pb2.GenerateResponse:
        """A whole answer."""
        prepared = await self._prepare(request, context)
        answer = AnswerBuilder(prepared, self._model.tokenizer)
        text: list[str] = []
        token_ids: list[int] = []
        async with self._submit(prepared) as updates:
            async for update in updates:
                delta = answer.add(update)
                text.append(delta.text)
                token_ids += delta.token_ids
                if answer.end is not None:
                    break
        await context.send_initial_metadata(_request_id_metadata(prepared))
        completion = generate_pb2.Completion(text="".join(text), token_ids=token_ids, end=answer.end)
        info = self._prompt_info(request, prepared, answer)
        return generate_pb2.GenerateResponse(prompt_info=info, completions=[completion], usage=answer.usage)

    async def GenerateStream(self, request: generate_pb2.GenerateStreamRequest, context: _Context) -> None:
        """An answer as it grows. Nothing is sent before the first token, so that a refused request can be retried."""
        prepared = await self._prepare(request, context)
        answer = AnswerBuilder(prepared, self._model.tokenizer)
        begun = False
        try:
            async with self._submit(prepared) as updates:
                async for update in updates:
                    delta = answer.add(update)
                    if not begun:
                        await context.send_initial_metadata(_request_id_metadata(prepared))
                        info = self._prompt_info(request, prepared, answer)
                        begun = True
                        await context.write(generate_pb2.GenerateStreamResponse(prompt_info=info))
                    if delta.text or delta.token_ids:
                        await context.write(_delta_response(delta))
                    if answer.end is not None:
                        break
        except EngineDeadError as error:
            raise UnavailableError("ENGINE_FAILED", str(error), retry_after=None, retry_safe=not begun) from error
        except UnavailableError as error:
            error.retry_safe = not begun
            raise
        assert answer.end is not None  # the engine's last update always has a finish reason
        finished = generate_pb2.GenerationFinished(completions=[answer.end], usage=answer.usage)
        await context.write(generate_pb2.GenerateStreamResponse(finished=finished))

    async def Tokenize(self, request: pb.TokenizeRequest, context: _Context) -> pb.TokenizeResponse:
        """Text or chat messages as token ids."""
        model = self._model
        conversion.check_model(request, model.info)
        response = pb.TokenizeResponse(token_ids=await prompt_token_ids(request, model.tokenizer))
        self._check_response_size(response.ByteSize(), "prompt")
        return response

    async def Detokenize(self, request: pb.DetokenizeRequest, context: _Context) -> pb.DetokenizeResponse:
        """Token ids as text."""
        model = self._model
        conversion.check_model(request, model.info)
        if model.tokenizer is None:
            raise InvalidRequestError("token_ids", "the server has no tokenizer")
        ids, vocab_size = list(request.token_ids), model.info.limits.vocab_size
        bad = next((i for i, token in enumerate(ids) if not 0 <= token < vocab_size), None)
        if bad is not None:
            raise InvalidRequestError(f"token_ids[{bad}]", f"must be from 0 to {vocab_size - 1}, got {ids[bad]}")
        skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        if len(ids) <= INLINE_DECODE_IDS:
            text = model.tokenizer.decode(ids, skip_special_tokens=skip)
        else:
            text = await asyncio.to_thread(model.tokenizer.decode, ids, skip_special_tokens=skip)
        response = pb.DetokenizeResponse(text=text)
        self._check_response_size(response.ByteSize(), "token_ids")
        return response

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: _Context) -> pb.GetModelInfoResponse:
        """The model served."""
        model = self._model
        conversion.check_model(request, model.info)
        info = model.info
        return pb.GetModelInfoResponse(
            name=info.model_name,
            architecture=info.architecture,
            dtype=info.dtype,
            num_parameters=info.num_parameters,
            vocab_size=info.limits.vocab_size,
            max_model_len=info.limits.max_model_len,
            eos_token_ids=info.limits.eos_token_ids,
            has_tokenizer=model.tokenizer is not None,
            has_chat_template=model.tokenizer is not None and model.tokenizer.has_chat_template,
        )

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: _Context) -> pb.GetServerInfoResponse:
        """The server's state, limits and load."""
        response = pb.GetServerInfoResponse(
            version=jaxserve.__version__,
            state=self._lifecycle.state,
            limits=pb.ServerLimits(max_message_bytes=self._config.max_message_bytes),
        )
        response.uptime.FromNanoseconds(int((time.monotonic() - self._started) * 1e9))
        if self.served is None:
            return response
        info = self.served.info
        response.limits.max_num_seqs = info.max_num_seqs
        response.limits.max_num_batched_tokens = info.max_num_batched_tokens
        if info.max_num_queued_requests is not None:
            response.limits.max_num_queued_requests = info.max_num_queued_requests
        response.device.kind = info.device_kind
        response.device.tensor_parallel_size = info.tensor_parallel_size
        with contextlib.suppress(TimeoutError, EngineDeadError):
            stats = await asyncio.wait_for(self._engine.stats(), STATS_TIMEOUT_S)
            response.load.num_running_requests = stats.num_running
            response.load.num_waiting_requests = stats.num_waiting
            response.load.page_size = info.page_size
            response.load.num_pages = stats.num_pages
            response.load.num_free_pages = stats.num_free_pages
            response.load.num_cached_pages = stats.num_cached_pages
        return response

    @property
    def _model(self) -> ServedModel:
        if self.served is None:
            raise UnavailableError("SERVER_STARTING", "the engine is still loading the model", retry_after=1.0)
        return self.served

    async def _prepare(self, request: conversion.GenerationRequest, context: _Context) -> Request:
        """The engine's form of a request: checked, tokenized, with the call's deadline and an id."""
        info, tokenizer = self._model.info, self._model.tokenizer
        conversion.check_request_id(request)
        request_id = request.request_id or uuid.uuid4().hex
        context.set_trailing_metadata(((REQUEST_ID_METADATA, request_id),))
        conversion.check_model(request, info)
        conversion.check_priority(request, info)
        params = conversion.sampling_params(request, tokenizer is not None)
        token_ids = await prompt_token_ids(request, tokenizer)
        if tokenizer is not None and request.HasField("chat"):
            params = tokenizer.chat_params(params)
        validate_request(token_ids, params, info.limits)
        remaining = context.time_remaining()
        return Request(
            request_id=request_id,
            prompt_token_ids=token_ids,
            params=params,
            priority=request.priority,
            timeout=None if remaining is None else max(remaining, 0.0),
        )

    @contextlib.asynccontextmanager
    async def _submit(self, request: Request) -> AsyncIterator[RequestStream]:
        """The engine's updates; leaving early, for whatever reason, aborts the request at once."""
        with contextlib.closing(self._engine.submit(request)) as updates:
            yield updates

    def _prompt_info(
        self, request: conversion.GenerationRequest, prepared: Request, answer: AnswerBuilder
    ) -> generate_pb2.PromptInfo:
        wanted = request.output.include_prompt_token_ids
        return generate_pb2.PromptInfo(
            request_id=prepared.request_id,
            model=self._model.info.model_name,
            num_prompt_tokens=len(prepared.prompt_token_ids),
            num_cached_tokens=answer.num_cached_tokens,
            prompt_token_ids=prepared.prompt_token_ids if wanted else (),
        )

    def _check_response_size(self, size: int, field: str) -> None:
        limit = self._config.max_message_bytes
        if size > limit:
            raise InvalidRequestError(field, f"makes an answer of {size} bytes, above the limit of {limit}; send less")


def _delta_response(delta: TextDelta) -> generate_pb2.GenerateStreamResponse:
    """Filled in place: a message given to another one's constructor is copied, at twice the cost."""
    response = generate_pb2.GenerateStreamResponse()
    completion = response.delta
    if delta.text:
        completion.text = delta.text
    completion.token_ids.extend(delta.token_ids)
    return response


def _request_id_metadata(request: Request) -> tuple[tuple[str, str], ...]:
    return ((REQUEST_ID_METADATA, request.request_id),)
