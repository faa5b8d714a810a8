"""StreamDetokenizer: one request's output tokens to text, as they come."""

from collections.abc import Sequence

import msgspec

from jaxserve.request import RequestUpdate, SamplingParams
from jaxserve.tokenizer.stop_strings import StopStringFinder
from jaxserve.tokenizer.tokenizer import Tokenizer


class TextDelta(msgspec.Struct, frozen=True):
    """What some tokens add to an answer.

    Attributes:
        text: new text, which is final: later tokens never change it.
        token_ids: the tokens counted, up to and including the one that completed a stop string.
        stop: the stop string that ended the answer; None while it goes on.
    """

    text: str
    token_ids: list[int]
    stop: str | None = None


class StreamDetokenizer:
    """Decodes one sequence a few tokens at a time and looks for its stop strings.

    Text is held back while a character is incomplete, or while it could be the beginning of a stop string. The cost of
    a token does not depend on how many came before.

    Args:
        tokenizer: None passes token ids through with empty text, as does `params.detokenize=False`.
        params: `stop`, `include_stop_str_in_output`, `skip_special_tokens` and `detokenize` are read.
        prompt_token_ids: what the output follows; its last tokens decide whether the text begins with a space.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, params: SamplingParams, prompt_token_ids: Sequence[int] = ()
    ) -> None:
        self._decoder = None
        if tokenizer is not None and params.detokenize:
            self._decoder = tokenizer.piece_decoder(params.skip_special_tokens, prompt_token_ids)
        self._finder = StopStringFinder(params.stop_strings) if params.stop_strings else None
        self._include_stop = params.include_stop_str_in_output
        self._stop: str | None = None

    def append(self, token_ids: list[int], final: bool = False) -> TextDelta:
        """Take the next tokens.

        Args:
            final: no more come; what was held back is shown, incomplete characters as U+FFFD.

        Returns:
            The new text. After a stop string nothing more is shown or counted.
        """
        if self._stop is not None:
            return TextDelta("", [], self._stop)
        if self._decoder is None:
            return TextDelta("", token_ids)
        if self._finder is None and not final and len(token_ids) == 1:  # nearly every call
            return TextDelta(self._decoder.push(token_ids[0]), token_ids)
        parts: list[str] = []
        for count, token_id in enumerate(token_ids, 1):
            parts.append(self._show(self._decoder.push(token_id)))
            if self._stop is not None:
                return TextDelta("".join(parts), token_ids[:count], self._stop)
        if final:
            parts.append(self._show(self._decoder.flush()))
            if self._finder is not None and self._stop is None:
                parts.append(self._finder.flush())
        return TextDelta("".join(parts), token_ids, self._stop)

    def append_update(self, update: RequestUpdate) -> TextDelta:
        """`append` for what an engine step produced.

        The text ends before a stop token as it does before a stop string, unless that is asked for; the ids hold it.
        """
        ids, final = update.token_ids, update.finish_reason is not None
        if update.stop_token_id is None or self._include_stop:
            return self.append(ids, final)
        delta = self.append(ids[:-1], final)
        return delta if delta.stop is not None else TextDelta(delta.text, [*delta.token_ids, ids[-1]])

    def _show(self, text: str) -> str:
        if self._finder is None or not text:
            return text
        shown, self._stop = self._finder.feed(text)
        return shown + self._stop if self._stop is not None and self._include_stop else shown
