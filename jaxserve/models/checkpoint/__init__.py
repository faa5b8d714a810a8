"""Loading models: `load_model` reads a Hugging Face or Orbax directory, or makes dummy weights."""

from jaxserve.models.checkpoint.loader import LoadedModel, load_model, resolve_dtype
from jaxserve.models.checkpoint.reader import OnProgress

__all__ = ["LoadedModel", "OnProgress", "load_model", "resolve_dtype"]
