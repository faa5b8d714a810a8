"""Waiting for what happens elsewhere, with a limit instead of a guess."""

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Return once the condition holds.

    Raises:
        TimeoutError: it does not within `seconds`.
    """
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
