"""RequestStream: what the engine says of one submission, as an asynchronous iterator."""

import asyncio
from collections.abc import Callable
from typing import Self

from jaxserve.request import RequestUpdate


class RequestStream:
    """The updates of one submission, as an asynchronous iterator that ends after the one with a finish reason.

    Updates that arrive faster than they are read are merged into one, so a slow reader holds at most one request's
    own tokens. `close` it (or use it as an async context manager): a request that has not finished is then aborted.

    Raises, from iteration:
        QueueFullError, DuplicateRequestError, InvalidRequestError: the engine refused the request.
        EngineDeadError: the engine failed.
    """

    def __init__(self, request_id: str, on_close: Callable[[], None]) -> None:
        self.request_id = request_id
        self._on_close = on_close
        self._pending: RequestUpdate | None = None
        self._error: Exception | None = None
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RequestUpdate:
        while self._pending is None:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        update, self._pending = self._pending, None
        return update

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Abort the request unless it has ended."""
        if not self._ended:
            self._ended = True
            self._on_close()

    def push(self, update: RequestUpdate) -> None:
        """Add an update behind those not read yet."""
        pending = self._pending
        if pending is None:
            self._pending = update
        else:
            # In place: a reader that stalls for a whole answer must not cost its square.
            pending.token_ids += update.token_ids
            pending.finish_reason = update.finish_reason
            pending.stop_token_id = update.stop_token_id
            pending.num_cached_tokens = max(pending.num_cached_tokens, update.num_cached_tokens)
        self._ended = update.finish_reason is not None
        self._wake()

    def fail(self, error: Exception) -> None:
        """End iteration with an error, after the updates not read yet."""
        self._error = error
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
