"""Which architectures can be served, and reading the config.json of each."""

import difflib
from pathlib import Path
from types import MappingProxyType

from jaxserve.models.config import ModelConfig
from jaxserve.models.config_file import HARMLESS_KEYS, ConfigFile, read_json
from jaxserve.models.families import FAMILIES
from jaxserve.models.family import ModelFamily

CONFIG_FILE = "config.json"

MODEL_FAMILIES: MappingProxyType[str, ModelFamily] = MappingProxyType(
    {architecture: family for family in FAMILIES for architecture in family.architectures}
)


def load_config(directory: str | Path) -> ModelConfig:
    """Translate a model directory's config.json, and generation_config.json if there is one.

    Raises:
        CheckpointError: a file or key is missing, malformed, contradicts another, or asks for something that is not
            implemented; the message names the file and the key.
    """
    path = Path(directory) / CONFIG_FILE
    file = ConfigFile(path, read_json(path))
    family = MODEL_FAMILIES[_architecture(file)]
    file.refuse("quantization_config", (), "quantized weights are not implemented; use an unquantized checkpoint")
    file.refuse("is_encoder_decoder", (False,), "only decoder-only models are implemented")
    file.refuse("add_cross_attention", (False,), "only decoder-only models are implemented")
    config = family.read_config(file)
    file.refuse_unknown(HARMLESS_KEYS | family.harmless_keys)
    return config


def _architecture(file: ConfigFile) -> str:
    names = file.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise file.error("architectures", f"must be a list of one name, got {names!r}")
    if names[0] not in MODEL_FAMILIES:
        near = difflib.get_close_matches(names[0], MODEL_FAMILIES, n=3, cutoff=0.0)
        raise file.error(
            "architectures",
            f"names {names[0]}, which is not supported; the nearest that are: {', '.join(near)} "
            "(all of them: docs/models.md)",
        )
    return names[0]
