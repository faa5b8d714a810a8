"""When to try a call again, and after how long."""

import random
import time
from dataclasses import dataclass

import grpc

from jaxserve.client.errors import RpcError

_RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Exponential backoff with full jitter; a delay that the server names is kept to.

    Only calls that got no part of an answer are tried again, and only after UNAVAILABLE or RESOURCE_EXHAUSTED.

    Attributes:
        max_attempts: most tries of a call, the first included; 1 never retries.
        initial_backoff: mean seconds before the second try.
        backoff_multiplier: by how much each further wait is longer.
        max_backoff: longest wait of the policy's own, in seconds.
    """

    max_attempts: int = 4
    initial_backoff: float = 0.1
    backoff_multiplier: float = 2.0
    max_backoff: float = 5.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, got {self.max_attempts}")


class Attempts:
    """The tries of one call: what time is left, and how long to wait before the next.

    Args:
        policy: how often and how fast.
        timeout: seconds for all tries together; None has no limit.
    """

    def __init__(self, policy: RetryPolicy, timeout: float | None) -> None:
        self._policy = policy
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._failed = 0

    @property
    def remaining(self) -> float | None:
        """Seconds left for the call; None has no limit."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    def delay_after(self, error: RpcError) -> float:
        """Seconds to wait before the next try.

        Raises:
            RpcError: the given error, if there is to be no next try.
        """
        self._failed += 1
        if error.code not in _RETRIED or error.retry_safe is False or self._failed >= self._policy.max_attempts:
            raise error
        if error.retry_after is not None:
            delay = error.retry_after
        elif error.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            # Without a delay it is gRPC's own limit, on the size of the message: another try would fail too.
            raise error
        else:
            policy = self._policy
            mean = policy.initial_backoff * policy.backoff_multiplier ** (self._failed - 1)
            delay = random.uniform(0.5, 1.5) * min(mean, policy.max_backoff)
        if self.remaining is not None and delay >= self.remaining:
            raise error
        return delay
