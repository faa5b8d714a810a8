"""Granite 3 (IBM 2024): Llama with four multipliers."""

from dataclasses import replace

from jaxserve.models.config import ModelConfig
from jaxserve.models.config_file import ConfigFile
from jaxserve.models.decoder_config import DecoderKeys, read_decoder
from jaxserve.models.family import ModelFamily
from jaxserve.models.weight_map import WeightMap


def _read_config(file: ConfigFile) -> ModelConfig:
    bias = file.boolean("attention_bias", False)
    return replace(
        read_decoder(file, DecoderKeys()),
        qkv_bias=bias,
        attention_out_bias=bias,
        mlp_bias=file.boolean("mlp_bias", False),
        embedding_multiplier=file.number("embedding_multiplier", 1.0),
        residual_multiplier=file.number("residual_multiplier", 1.0),
        attention_scale=file.number("attention_multiplier", 1.0),
        logits_divisor=file.number("logits_scaling", 1.0),
    )


GRANITE = ModelFamily(
    name="Granite",
    architectures=("GraniteForCausalLM",),
    read_config=_read_config,
    weight_map=lambda config: WeightMap(),
)
