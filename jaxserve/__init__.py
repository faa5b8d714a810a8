"""jaxserve serves large language models on NVIDIA GPUs from JAX.

The public names are imported when first used, so that a client never loads jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxserve.client import AsyncClient as AsyncClient
    from jaxserve.client import Client as Client
    from jaxserve.engine.llm import LLM as LLM
    from jaxserve.request import CompletionOutput as CompletionOutput
    from jaxserve.request import RequestOutput as RequestOutput
    from jaxserve.request import SamplingParams as SamplingParams

__version__ = "0.1.0"

_PUBLIC = {
    "AsyncClient": "jaxserve.client",
    "Client": "jaxserve.client",
    "CompletionOutput": "jaxserve.request",
    "LLM": "jaxserve.engine.llm",
    "RequestOutput": "jaxserve.request",
    "SamplingParams": "jaxserve.request",
}
__all__ = ["AsyncClient", "Client", "CompletionOutput", "LLM", "RequestOutput", "SamplingParams"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
