"""One request of an offline batch: gathers its tokens and text."""

from jaxserve.request import CompletionOutput, FinishReason, Request, RequestOutput, RequestUpdate
from jaxserve.tokenizer import StreamDetokenizer, Tokenizer


class OfflineRequest:
    """A request and what it has produced so far.

    Args:
        request: as the engine gets it.
        prompt: its text, if text was given.
        tokenizer: for the output's text; None leaves it empty.
    """

    def __init__(self, request: Request, prompt: str | None, tokenizer: Tokenizer | None) -> None:
        self.request = request
        self._prompt = prompt
        params = request.params if tokenizer is not None else request.params.replace(detokenize=False)
        self._detokenizer = StreamDetokenizer(tokenizer, params, request.prompt_token_ids)
        self._completion = CompletionOutput(index=0, text="", token_ids=[])
        self._num_cached_tokens = 0

    def append(self, update: RequestUpdate) -> bool:
        """Take what a step produced; True once the request has ended, by the engine or by a stop string."""
        delta = self._detokenizer.append_update(update)
        completion = self._completion
        completion.text += delta.text
        completion.token_ids += delta.token_ids
        self._num_cached_tokens = update.num_cached_tokens
        if delta.stop is not None:
            completion.finish_reason, completion.stop_reason = FinishReason.STOP, delta.stop
        elif update.finish_reason is not None:
            completion.finish_reason = update.finish_reason
            if update.stop_token_id in (self.request.params.stop_token_ids or ()):
                completion.stop_reason = update.stop_token_id
        return completion.finish_reason is not None

    def output(self) -> RequestOutput:
        """The whole answer."""
        return RequestOutput(
            request_id=self.request.request_id,
            prompt=self._prompt,
            prompt_token_ids=self.request.prompt_token_ids,
            outputs=[self._completion],
            num_cached_tokens=self._num_cached_tokens,
        )
