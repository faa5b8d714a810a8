"""What the benchmarks of kernels have in common: a candidate that fails, and a time against its floor."""

from collections.abc import Callable
from typing import Any


def or_error(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What the function returns, or the error: a candidate that does not fit the card is a result too."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return error


def figures(seconds: float | Exception, floor: float, num_bytes: float, flops: float) -> dict[str, Any]:
    """A call's time, or the error in its place.

    Args:
        seconds: that it took.
        floor: seconds that it must take.
        num_bytes: that it must move.
        flops: that it must compute.
    """
    if isinstance(seconds, Exception):
        return {"error": str(seconds)[:200]}
    return {
        "us": seconds * 1e6,
        "floor_us": floor * 1e6,
        "of_floor": floor / seconds,
        "tb_per_s": num_bytes / seconds / 1e12,
        "tflop_per_s": flops / seconds / 1e12,
    }
