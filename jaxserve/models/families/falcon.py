"""Falcon 7B (Almazrouei et al. 2023): one kv head, and one norm for attention and feed-forward side by side."""

from dataclasses import replace

from jaxserve.models.config import ModelConfig
from jaxserve.models.config_file import ConfigFile
from jaxserve.models.decoder_config import DecoderKeys, read_decoder
from jaxserve.models.family import ModelFamily
from jaxserve.models.weight_map import WeightMap

_KEYS = DecoderKeys(
    num_kv_heads=None,
    intermediate_size="ffn_hidden_size",
    inner_multiple=4,
    norm_eps="layer_norm_epsilon",
    default_norm_eps=1e-5,
    activation="activation",
    default_activation="gelu",
    tied=True,
)
_WEIGHTS = WeightMap(
    embedding="transformer.word_embeddings",
    layers="transformer.h",
    qkv=("self_attention.query_key_value",),
    packing="grouped",
    attention_out="self_attention.dense",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    final_norm="transformer.ln_f",
)


def _read_config(file: ConfigFile) -> ModelConfig:
    file.refuse("alibi", (False,), "Falcon with ALiBi is not implemented")
    file.refuse("new_decoder_architecture", (False,), "only Falcon 7B's layers are implemented, not 40B's")
    file.refuse("multi_query", (True,), "Falcon with a kv head for each query head is not implemented")
    file.refuse("parallel_attn", (True,), "Falcon with attention before feed-forward is not implemented")
    # Read by layers of the kinds refused above.
    file.get("num_kv_heads")
    file.get("num_ln_in_parallel_attn")
    bias = file.boolean("bias", False)
    return replace(
        read_decoder(file, _KEYS),
        num_kv_heads=1,
        norm="layer",
        parallel_residual=True,
        shared_norm=True,
        qkv_bias=bias,
        attention_out_bias=bias,
        gated_mlp=False,
        mlp_bias=bias,
    )


FALCON = ModelFamily(
    name="Falcon 7B",
    architectures=("FalconForCausalLM",),
    read_config=_read_config,
    weight_map=lambda config: _WEIGHTS,
)
