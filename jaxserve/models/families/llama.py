"""Llama 1 to 3.2 (Touvron et al. 2023), and what is built like it: Vicuna, CodeLlama, TinyLlama, Yi, SmolLM."""

from dataclasses import replace

from jaxserve.models.config import ModelConfig
from jaxserve.models.config_file import ConfigFile
from jaxserve.models.decoder_config import DecoderKeys, read_decoder
from jaxserve.models.family import ModelFamily
from jaxserve.models.weight_map import WeightMap


def _read_config(file: ConfigFile) -> ModelConfig:
    file.refuse("rope_interleaved", (False,), "interleaved rotation is not implemented")
    attention_bias = file.boolean("attention_bias", False)
    return replace(
        read_decoder(file, DecoderKeys()),
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        mlp_bias=file.boolean("mlp_bias", False),
    )


LLAMA = ModelFamily(
    name="Llama",
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
    read_config=_read_config,
    weight_map=lambda config: WeightMap(),
)
