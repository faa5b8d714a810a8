"""From a request's prompt to token ids."""

import asyncio

from jaxserve.errors import InvalidRequestError, UnsupportedError
from jaxserve.server.conversion import GenerationRequest
from jaxserve.tokenizer import Tokenizer
from jaxserve.v1 import inference_pb2, prompt_pb2

# Longer texts are tokenized in a thread, so that one long prompt does not hold up every other stream.
INLINE_TEXT_CHARS = 2048


async def prompt_token_ids(
    request: GenerationRequest | inference_pb2.TokenizeRequest, tokenizer: Tokenizer | None
) -> list[int]:
    """Tokenize the prompt, whatever its kind.

    Raises:
        InvalidRequestError: no prompt is set, it cannot be tokenized, or a field contradicts its kind.
        UnsupportedError: template_kwargs is set.
    """
    kind = request.WhichOneof("prompt")
    if kind is None:
        kinds = ", ".join(field.name for field in request.DESCRIPTOR.oneofs_by_name["prompt"].fields)
        raise InvalidRequestError("prompt", f"one of {kinds} must be set")
    if kind != "text" and request.HasField("add_special_tokens"):
        raise InvalidRequestError("add_special_tokens", f"applies to text only, but the prompt is {kind}")
    if kind == "token_ids" and not isinstance(request, inference_pb2.TokenizeRequest):
        return list(request.token_ids.ids)
    if tokenizer is None:
        raise InvalidRequestError("prompt", "the server has no tokenizer; send token_ids instead")
    if kind == "chat":
        return await asyncio.to_thread(_chat_token_ids, request.chat, tokenizer)
    special = request.add_special_tokens if request.HasField("add_special_tokens") else True
    if len(request.text) <= INLINE_TEXT_CHARS:
        return tokenizer.encode(request.text, add_special_tokens=special)
    return await asyncio.to_thread(tokenizer.encode, request.text, add_special_tokens=special)


def _chat_token_ids(chat: prompt_pb2.ChatPrompt, tokenizer: Tokenizer) -> list[int]:
    if chat.HasField("template_kwargs"):
        raise UnsupportedError("chat.template_kwargs", "is not supported yet; leave it unset")
    if not chat.messages:
        raise InvalidRequestError("messages", "must hold at least one message")
    for i, message in enumerate(chat.messages):
        if not message.role:
            raise InvalidRequestError(f"messages[{i}].role", "must not be empty")
    messages = [{"role": message.role, "content": message.content} for message in chat.messages]
    opens_turn = chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True
    return tokenizer.apply_chat_template(messages, add_generation_prompt=opens_turn)
