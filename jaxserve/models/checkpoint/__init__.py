"""Loading models: `load_model` reads a Hugging Face or Orbax directory, or makes dummy weights."""

from jaxserve.models.checkpoint.loader import LoadedModel, OnProgress, load_model, resolve_dtype

__all__ = ["LoadedModel", "OnProgress", "load_model", "resolve_dtype"]
