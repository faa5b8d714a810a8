"""Telling that a device's memory ran out, as one of our errors."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from jaxserve.errors import JaxserveError


@contextmanager
def out_of_memory_as(kind: type[JaxserveError], message: str) -> Iterator[None]:
    """Turn XLA's error within the block into one that says what to change.

    Args:
        kind: the error to raise in its place.
        message: its text.

    Raises:
        JaxserveError: of that kind: the memory ran out. Other errors pass.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise kind(message) from error
