"""GPT-2 (Radford et al. 2019) and StarCoder (gpt_bigcode, Li et al. 2023): learned positions, LayerNorm, biases.

GPT-2's matrices lie inputs first. StarCoder shares one kv head among all query heads.
"""

from dataclasses import replace

from jaxserve.models.config import ModelConfig
from jaxserve.models.config_file import ConfigFile
from jaxserve.models.decoder_config import DecoderKeys, read_decoder
from jaxserve.models.family import ModelFamily
from jaxserve.models.weight_map import WeightMap

_KEYS = DecoderKeys(
    hidden_size="n_embd",
    num_layers="n_layer",
    num_query_heads="n_head",
    num_kv_heads=None,
    intermediate_size="n_inner",
    inner_multiple=4,
    max_position_embeddings="n_positions",
    default_max_position_embeddings=1024,
    norm_eps="layer_norm_epsilon",
    default_norm_eps=1e-5,
    activation="activation_function",
    default_activation="gelu_new",
    tied=True,
    rope=None,
)
_WEIGHTS = WeightMap(
    embedding="transformer.wte",
    positions="transformer.wpe",
    layers="transformer.h",
    attention_norm="ln_1",
    mlp_norm="ln_2",
    qkv=("attn.c_attn",),
    attention_out="attn.c_proj",
    up=("mlp.c_fc",),
    down="mlp.c_proj",
    final_norm="transformer.ln_f",
    optional_prefix="transformer.",
)
# How other programs compute or train it; softmax is always computed in float32 here.
_HARMLESS = frozenset(
    """
    n_ctx n_special predict_special_tokens attn_pdrop reorder_and_upcast_attn summary_type summary_use_proj
    summary_activation summary_proj_to_labels summary_first_dropout attention_softmax_in_fp32
    scale_attention_softmax_in_fp32 inference_runner max_batch_size pad_key_length pre_allocate_kv_cache
    validate_runner_input
    """.split()
)


def _read_gpt2(file: ConfigFile) -> ModelConfig:
    file.refuse("scale_attn_by_inverse_layer_idx", (False,), "scores scaled by layer are not implemented")
    return _shared(file, _KEYS)


def _shared(file: ConfigFile, keys: DecoderKeys) -> ModelConfig:
    return replace(
        read_decoder(file, keys),
        norm="layer",
        qkv_bias=True,
        attention_out_bias=True,
        attention_scale=None if file.boolean("scale_attn_weights", True) else 1.0,
        positions="learned",
        gated_mlp=False,
        mlp_bias=True,
    )


def _read_gpt_bigcode(file: ConfigFile) -> ModelConfig:
    # transformers 5 writes the number beside multi_query, from which it follows.
    config = _shared(file, replace(_KEYS, num_kv_heads="num_key_value_heads"))
    return replace(config, num_kv_heads=1 if file.boolean("multi_query", True) else config.num_query_heads)


def _gpt_bigcode_weights(config: ModelConfig) -> WeightMap:
    return replace(_WEIGHTS, packing="stacked" if config.num_kv_heads == 1 else "grouped")


GPT2 = ModelFamily(
    name="GPT-2",
    architectures=("GPT2LMHeadModel",),
    read_config=_read_gpt2,
    weight_map=lambda config: replace(_WEIGHTS, transposed=True),
    harmless_keys=_HARMLESS,
)
GPT_BIGCODE = ModelFamily(
    name="StarCoder (GPT-BigCode)",
    architectures=("GPTBigCodeForCausalLM",),
    read_config=_read_gpt_bigcode,
    weight_map=_gpt_bigcode_weights,
    harmless_keys=_HARMLESS,
)
