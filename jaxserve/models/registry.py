"""Which architectures can be served, and by what."""

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

from jaxserve.layers.rope import Float32Array
from jaxserve.models.config import ModelConfig
from jaxserve.models.llama import Llama
from jaxserve.models.weights import ParamPath, WeightSource, llama_constants, llama_weights


@dataclass(frozen=True)
class ModelFamily:
    """Architectures with the same mathematics.

    Attributes:
        module: the model, described and not loaded.
        weights: for a number of devices, the source of every parameter that checkpoints hold, by its path in the
            module.
        constants: the other parameters, for a number of positions.
    """

    module: type[Llama]
    weights: Callable[[ModelConfig, int], dict[ParamPath, WeightSource]]
    constants: Callable[[ModelConfig, int], dict[ParamPath, Float32Array]]


_LLAMA = ModelFamily(Llama, llama_weights, llama_constants)

# Mistral is Llama once its window is null, which the config reader insists on.
MODEL_FAMILIES: MappingProxyType[str, ModelFamily] = MappingProxyType(
    {"LlamaForCausalLM": _LLAMA, "LLaMAForCausalLM": _LLAMA, "MistralForCausalLM": _LLAMA}
)
