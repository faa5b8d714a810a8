"""AnswerBuilder: from the engine's updates of one request to text, token ids and the end."""

from jaxserve.request import FinishReason, Request, RequestUpdate
from jaxserve.server.conversion import FINISH_REASONS
from jaxserve.server.status import RequestEndedError
from jaxserve.tokenizer import StreamDetokenizer, TextDelta, Tokenizer
from jaxserve.v1 import generate_pb2 as pb


class AnswerBuilder:
    """Follows one request. No input or output: the caller reads updates and sends what `add` returns.

    Args:
        request: what was submitted.
        tokenizer: None answers with token ids only.

    Attributes:
        end: how the sequence ended; None while it goes on. A stop string ends it before the engine knows.
        num_cached_tokens: prompt tokens that the prefix cache gave.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer | None) -> None:
        self._has_deadline = request.timeout is not None
        self._num_prompt_tokens = len(request.prompt_token_ids)
        self._num_completion_tokens = 0
        self._detokenizer = StreamDetokenizer(tokenizer, request.params, request.prompt_token_ids)
        self.end: pb.CompletionEnd | None = None
        self.num_cached_tokens = 0

    @property
    def usage(self) -> pb.Usage:
        """What was counted so far."""
        return pb.Usage(
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_completion_tokens=self._num_completion_tokens,
        )

    def add(self, update: RequestUpdate) -> TextDelta:
        """What the update adds to the answer; text and token ids may both be empty.

        Raises:
            RequestEndedError: the engine gave the request up.
        """
        reason = update.finish_reason
        if reason is FinishReason.ABORT:
            raise RequestEndedError(deadline=self._has_deadline)
        delta = self._detokenizer.append_update(update)
        if update.num_cached_tokens > self.num_cached_tokens:
            self.num_cached_tokens = update.num_cached_tokens
        self._num_completion_tokens += len(delta.token_ids)
        if delta.stop is not None:
            self.end = pb.CompletionEnd(finish_reason=pb.FINISH_REASON_STOP, stop_string=delta.stop)
        elif reason is not None:
            self.end = pb.CompletionEnd(finish_reason=FINISH_REASONS[reason])
            if update.stop_token_id is not None:
                self.end.stop_token_id = update.stop_token_id
        return delta
