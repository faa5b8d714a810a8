"""OLMo 2 (OLMo et al. 2024): norms after attention and feed-forward, and of all heads' queries and keys together."""

from dataclasses import replace

from jaxserve.models.config import ModelConfig
from jaxserve.models.config_file import ConfigFile
from jaxserve.models.decoder_config import DecoderKeys, read_decoder
from jaxserve.models.family import ModelFamily
from jaxserve.models.weight_map import WeightMap


def _read_config(file: ConfigFile) -> ModelConfig:
    bias = file.boolean("attention_bias", False)
    return replace(
        read_decoder(file, DecoderKeys(default_norm_eps=1e-5)),
        norm="rms_rounded_last",
        norm_placement="after",
        qk_norm="whole",
        qkv_bias=bias,
        attention_out_bias=bias,
    )


OLMO2 = ModelFamily(
    name="OLMo 2",
    architectures=("Olmo2ForCausalLM",),
    read_config=_read_config,
    weight_map=lambda config: WeightMap(),
)
