"""GPT-NeoX (Black et al. 2022) and Pythia: LayerNorm, partial rotation, attention beside feed-forward."""

from dataclasses import replace

from jaxserve.models.config import ModelConfig
from jaxserve.models.config_file import ConfigFile
from jaxserve.models.decoder_config import DecoderKeys, read_decoder
from jaxserve.models.family import ModelFamily
from jaxserve.models.rope_config import RopeKeys
from jaxserve.models.weight_map import WeightMap

_KEYS = DecoderKeys(
    num_kv_heads=None,
    norm_eps="layer_norm_eps",
    default_norm_eps=1e-5,
    default_activation="gelu",
    rope=RopeKeys(theta="rotary_emb_base", partial="rotary_pct", default_partial=0.25),
)
_WEIGHTS = WeightMap(
    embedding="gpt_neox.embed_in",
    layers="gpt_neox.layers",
    qkv=("attention.query_key_value",),
    packing="grouped",
    attention_out="attention.dense",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    final_norm="gpt_neox.final_layer_norm",
    head="embed_out",
)


def _read_config(file: ConfigFile) -> ModelConfig:
    bias = file.boolean("attention_bias", True)
    return replace(
        read_decoder(file, _KEYS),
        norm="layer",
        parallel_residual=file.boolean("use_parallel_residual", True),
        qkv_bias=bias,
        attention_out_bias=bias,
        gated_mlp=False,
        mlp_bias=True,
    )


GPT_NEOX = ModelFamily(
    name="GPT-NeoX, Pythia",
    architectures=("GPTNeoXForCausalLM",),
    read_config=_read_config,
    weight_map=lambda config: _WEIGHTS,
    harmless_keys=frozenset({"classifier_dropout"}),
)
