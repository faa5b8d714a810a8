"""The command line: `jaxserve serve | generate | demo | bench | convert`."""

from jaxserve.cli.main import main

__all__ = ["main"]
