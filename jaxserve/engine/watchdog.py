"""Ends the engine's process when a step does not end: a device or a collective that hangs cannot be interrupted."""

import logging
import os
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)


def exit_at_once(timeout_s: float) -> None:
    """End the process. Front ends notice, end their streams with a status and are no longer healthy."""
    logger.critical(
        "a step has not ended within %g s (step_timeout_s): a device or a collective hangs; the engine exits", timeout_s
    )
    logging.shutdown()
    # The main thread is inside a wait that nothing ends.
    os._exit(1)


class StepWatchdog:
    """A context that may not last longer than a limit. Entered for one wait after the other, by one thread.

    Args:
        timeout_s: the limit.
        on_timeout: called with it, in a thread of the watchdog's own, when a wait is over the limit; once.
    """

    def __init__(self, timeout_s: float, on_timeout: Callable[[float], None] = exit_at_once) -> None:
        self._timeout_s = timeout_s
        self._on_timeout = on_timeout
        self._begun: float | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="step-watchdog").start()

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()

    def __enter__(self) -> None:
        self._begun = time.monotonic()

    def __exit__(self, *exception: object) -> None:
        self._begun = None

    def _watch(self) -> None:
        # Looking now and then costs a wait nothing, where a timer of its own would.
        while not self._closed.wait(min(1.0, self._timeout_s / 4)):
            begun = self._begun
            if begun is not None and time.monotonic() - begun > self._timeout_s:
                self._on_timeout(self._timeout_s)
                return
