"""From protobuf responses to Python values. No input or output; shared by both clients."""

from dataclasses import dataclass

import grpc
import msgspec

from jaxserve.client.errors import InternalError
from jaxserve.client.requests import Generation
from jaxserve.request import CompletionOutput, FinishReason, RequestOutput
from jaxserve.v1 import generate_pb2 as pb

_FINISH_REASONS = {
    pb.FINISH_REASON_STOP: FinishReason.STOP,
    pb.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    pb.FINISH_REASON_DEADLINE: FinishReason.DEADLINE,
}


@dataclass(frozen=True)
class PromptInfo:
    """The beginning of an answer: its id, and what the server made of the prompt.

    Attributes:
        request_id: the id given, or the one the server drew.
        model: the model that answers.
        num_prompt_tokens: tokens in the prompt.
        num_cached_tokens: those of them whose keys and values came from the prefix cache.
    """

    request_id: str
    model: str
    num_prompt_tokens: int
    num_cached_tokens: int


class Delta(msgspec.Struct, frozen=True):
    """What an answer gained; never cumulative.

    Attributes:
        text: new text; can come later than its tokens.
        token_ids: new token ids.
        index: which of the request's sequences gained it.
    """

    text: str
    token_ids: list[int] = []
    index: int = 0


class AnswerFold:
    """Folds the events of one stream into a RequestOutput.

    Args:
        asked: what the request was.

    Attributes:
        prompt_info: None until the first event.
        finished: whether the final event came.
    """

    def __init__(self, asked: Generation) -> None:
        self._asked = asked
        self._prompt_token_ids = list(asked.token_ids or ())
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._end: pb.CompletionEnd | None = None
        self.prompt_info: PromptInfo | None = None
        self.finished = False

    def add(self, response: pb.GenerateStreamResponse) -> Delta | None:
        """Take one event in; the delta if it is one."""
        match response.WhichOneof("event"):
            case "delta":
                delta = response.delta
                text, token_ids = delta.text, list(delta.token_ids)
                self._text.append(text)
                self._token_ids += token_ids
                return Delta(text, token_ids, delta.index)
            case "prompt_info":
                self._begin(response.prompt_info)
            case "finished":
                self._end = response.finished.completions[0]
                self.finished = True
        return None

    def add_whole(self, response: pb.GenerateResponse) -> RequestOutput:
        """Take a whole answer in."""
        self._begin(response.prompt_info)
        completion = response.completions[0]
        self._text, self._token_ids, self._end = [completion.text], list(completion.token_ids), completion.end
        self.finished = True
        return self.output()

    def check_finished(self) -> None:
        """Raise InternalError if the stream ended with OK but without its final event."""
        if not self.finished:
            raise InternalError(grpc.StatusCode.INTERNAL, "the stream ended without its final event")

    def output(self) -> RequestOutput:
        """The answer so far; `finished` says whether it is whole."""
        reason, stop = None, None
        if self._end is not None:
            reason = _FINISH_REASONS.get(self._end.finish_reason)
            stop = self._stop_reason(self._end)
        completion = CompletionOutput(
            index=0,
            text="".join(self._text),
            token_ids=list(self._token_ids),
            finish_reason=reason,
            stop_reason=stop,
        )
        return RequestOutput(
            request_id=self.prompt_info.request_id if self.prompt_info else self._asked.request_id or "",
            prompt=self._asked.text,
            prompt_token_ids=list(self._prompt_token_ids),
            outputs=[completion],
            finished=self.finished,
            num_cached_tokens=self.prompt_info.num_cached_tokens if self.prompt_info else 0,
        )

    def _begin(self, info: pb.PromptInfo) -> None:
        self.prompt_info = PromptInfo(info.request_id, info.model, info.num_prompt_tokens, info.num_cached_tokens)
        if self._asked.token_ids is None:
            self._prompt_token_ids = list(info.prompt_token_ids)

    def _stop_reason(self, end: pb.CompletionEnd) -> str | int | None:
        """What ended it, as vLLM tells it: nothing for the model's own end-of-sequence."""
        match end.WhichOneof("stop_reason"):
            case "stop_string":
                return end.stop_string
            case "stop_token_id" if end.stop_token_id in (self._asked.params.stop_token_ids or ()):
                return end.stop_token_id
        return None
