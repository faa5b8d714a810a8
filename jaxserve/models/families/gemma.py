"""Gemma 1, 2 and 3 (text): norms that scale by 1 + w, scaled embeddings, soft caps, local and global layers."""

import math
from dataclasses import replace

from jaxserve.layers.rope import RopeConfig
from jaxserve.models.config import LayerKind, ModelConfig
from jaxserve.models.config_file import ConfigFile
from jaxserve.models.decoder_config import DecoderKeys, read_decoder, read_layer_kinds, with_window
from jaxserve.models.family import ModelFamily
from jaxserve.models.rope_config import RopeKeys
from jaxserve.models.weight_map import WeightMap

_KEYS = DecoderKeys(
    needs_kv_heads=True,
    default_max_position_embeddings=8192,
    activation="hidden_activation",
    default_activation="gelu_pytorch_tanh",
    tied=True,
    head_dim=256,
)
_GEMMA3_KEYS = replace(_KEYS, default_max_position_embeddings=131072, rope=RopeKeys(default_theta=1e6))
_FOUR_NORMS = WeightMap(mlp_norm="pre_feedforward_layernorm")


def _read_gemma(file: ConfigFile) -> ModelConfig:
    return _shared(file, _KEYS)


def _read_gemma2(file: ConfigFile) -> ModelConfig:
    config = _four_norms(file, _shared(file, _KEYS), soft_caps=(50.0, 30.0))
    return _with_window(file, config, pattern=2)


def _read_gemma3(file: ConfigFile) -> ModelConfig:
    config = _four_norms(file, _shared(file, _GEMMA3_KEYS), soft_caps=(None, None))
    config = _with_window(file, config, pattern=file.integer("sliding_window_pattern", 6))
    theta = file.number("rope_local_base_freq", 10000.0)
    # If the settings are those of both types of layers, they have been read; else they are the global layers'.
    nested = "sliding_attention" in (file.get("rope_parameters") or {})
    local_rope = config.local_rope if nested else RopeConfig(theta=theta)
    return replace(config, qk_norm="head", local_rope=local_rope)


def _shared(file: ConfigFile, keys: DecoderKeys) -> ModelConfig:
    # Gemma 1 was published with `hidden_act: gelu`, by which the tanh approximation is meant.
    accepted = ("gelu", "gelu_pytorch_tanh")
    file.refuse(
        "hidden_act", accepted, f"only {' and '.join(accepted)}, both of which mean the latter, are implemented"
    )
    file.refuse("use_bidirectional_attention", (False,), "only causal attention is implemented")
    bias = file.boolean("attention_bias", False)
    config = read_decoder(file, keys)
    return replace(
        config,
        norm="rms_plus_one",
        qkv_bias=bias,
        attention_out_bias=bias,
        embedding_multiplier=math.sqrt(config.hidden_size),
    )


def _four_norms(file: ConfigFile, config: ModelConfig, soft_caps: tuple[float | None, float | None]) -> ModelConfig:
    attention_cap, logits_cap = (
        file.optional_number(key) if key in file.values else default
        for key, default in zip(("attn_logit_softcapping", "final_logit_softcapping"), soft_caps, strict=True)
    )
    return replace(
        config,
        norm_placement="around",
        attention_scale=file.number("query_pre_attn_scalar", 256.0) ** -0.5,
        attention_soft_cap=attention_cap,
        logits_soft_cap=logits_cap,
    )


def _with_window(file: ConfigFile, config: ModelConfig, pattern: int) -> ModelConfig:
    """Every `pattern`-th layer is global, unless `layer_types` says otherwise."""
    default: list[LayerKind] = ["local" if (i + 1) % pattern else "global" for i in range(config.num_layers)]
    return with_window(config, read_layer_kinds(file, config.num_layers, default), file.integer("sliding_window", 4096))


GEMMA = ModelFamily(
    name="Gemma",
    architectures=("GemmaForCausalLM",),
    read_config=_read_gemma,
    weight_map=lambda config: WeightMap(),
)
GEMMA2 = ModelFamily(
    name="Gemma 2",
    architectures=("Gemma2ForCausalLM",),
    read_config=_read_gemma2,
    weight_map=lambda config: _FOUR_NORMS,
)
GEMMA3 = ModelFamily(
    name="Gemma 3 (text)",
    architectures=("Gemma3ForCausalLM",),
    read_config=_read_gemma3,
    weight_map=lambda config: _FOUR_NORMS,
)
