"""Lifecycle: what the server is doing, and who wants to know."""

import asyncio
from collections.abc import AsyncGenerator

from jaxserve.v1 import inference_pb2 as pb

# A server only ever moves forward through these.
_ORDER = (
    pb.SERVER_STATE_STARTING,
    pb.SERVER_STATE_READY,
    pb.SERVER_STATE_DRAINING,
    pb.SERVER_STATE_FAILED,
)


class Lifecycle:
    """The server's state. Belongs to one event loop.

    Attributes:
        state: STARTING at first; FAILED is final.
        reason: why it failed, once it has.
    """

    def __init__(self) -> None:
        self.state: pb.ServerState = pb.SERVER_STATE_STARTING
        self.reason = ""
        self._changed = asyncio.Event()

    def advance(self, state: pb.ServerState, reason: str = "") -> None:
        """Move forward to `state`; a move back is passed over, since drain and failure can overtake a start."""
        if _ORDER.index(state) <= _ORDER.index(self.state):
            return
        self.state, self.reason = state, reason
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def states(self) -> AsyncGenerator[pb.ServerState]:
        """The state now, and then each new one."""
        while True:
            changed = self._changed
            yield self.state
            await changed.wait()
