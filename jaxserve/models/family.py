"""What a family of models is to the rest: a translation of its config.json and a map of its tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from jaxserve.models.config import ModelConfig
from jaxserve.models.config_file import ConfigFile
from jaxserve.models.weight_map import WeightMap, decoder_sources
from jaxserve.models.weights import ParamPath, WeightSource


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """Architectures whose config.json is read in one way.

    Attributes:
        name: as people call it.
        architectures: the names in config.json's `architectures`.
        read_config: translates a config.json. Keys it does not ask for are refused, unless they are harmless.
        weight_map: where a checkpoint of such a model keeps its parts.
        harmless_keys: further keys of config.json that do not change what these models compute.
    """

    name: str
    architectures: tuple[str, ...]
    read_config: Callable[[ConfigFile], ModelConfig]
    weight_map: Callable[[ModelConfig], WeightMap]
    harmless_keys: frozenset[str] = frozenset()

    def weights(self, config: ModelConfig, tensor_parallel_size: int) -> dict[ParamPath, WeightSource]:
        """The source of every parameter of the decoder that checkpoints hold, by its path."""
        return decoder_sources(self.weight_map(config), config, tensor_parallel_size)


def named_as_stored(
    sources: Mapping[ParamPath, WeightSource], prefix: str, stored: Mapping[str, object]
) -> dict[ParamPath, WeightSource]:
    """The same sources without a prefix of the names, if no stored name begins with it.

    Args:
        sources: of all parameters.
        prefix: what some checkpoints leave out; empty if none do.
        stored: the tensors of a checkpoint, by name.
    """
    if not prefix or not stored or any(name.startswith(prefix) for name in stored):
        return dict(sources)
    return {
        path: replace(source, tensors=tuple(replace(t, name=t.name.removeprefix(prefix)) for t in source.tensors))
        for path, source in sources.items()
    }
