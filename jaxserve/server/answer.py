"""AnswerBuilder: from the engine's updates of one request to text, token ids and the end."""

from jaxserve.request import FinishReason, Request, RequestUpdate
from jaxserve.server.conversion import FINISH_REASONS
from jaxserve.server.status import RequestEndedError
from jaxserve.tokenizer import StreamDetokenizer, Tokenizer
from jaxserve.v1 import generate_pb2 as pb


class AnswerBuilder:
    """Follows one request. No input or output: the caller reads updates and sends what `add` returns.

    Args:
        request: what was submitted.
        tokenizer: None answers with token ids only.

    Attributes:
        end: how the sequence ended; None while it goes on. A stop string ends it before the engine knows.
        usage: what was counted so far.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer | None) -> None:
        self._has_deadline = request.timeout is not None
        self._detokenizer = StreamDetokenizer(tokenizer, request.params, request.prompt_token_ids)
        self.end: pb.CompletionEnd | None = None
        self.usage = pb.Usage(num_prompt_tokens=len(request.prompt_token_ids))

    def add(self, update: RequestUpdate) -> pb.CompletionDelta:
        """What the update adds to the answer; both parts may be empty.

        Raises:
            RequestEndedError: the engine gave the request up.
        """
        if update.finish_reason is FinishReason.ABORT:
            raise RequestEndedError(deadline=self._has_deadline)
        delta = self._detokenizer.append_update(update)
        self.usage.num_cached_tokens = max(self.usage.num_cached_tokens, update.num_cached_tokens)
        self.usage.num_completion_tokens += len(delta.token_ids)
        if delta.stop is not None:
            self.end = pb.CompletionEnd(finish_reason=pb.FINISH_REASON_STOP, stop_string=delta.stop)
        elif update.finish_reason is not None:
            self.end = pb.CompletionEnd(finish_reason=FINISH_REASONS[update.finish_reason])
            if update.stop_token_id is not None:
                self.end.stop_token_id = update.stop_token_id
        return pb.CompletionDelta(text=delta.text, token_ids=delta.token_ids)
