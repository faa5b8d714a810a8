"""Mistral (Jiang et al. 2023), Ministral and Mixtral (2024): sliding windows, routed experts."""

from dataclasses import replace

from jaxserve.models.config import ExpertsConfig, LayerKind, ModelConfig
from jaxserve.models.config_file import ConfigFile
from jaxserve.models.decoder_config import (
    MAX_EXPERTS,
    DecoderKeys,
    check_experts,
    read_decoder,
    read_layer_kinds,
    with_window,
)
from jaxserve.models.family import ModelFamily
from jaxserve.models.rope_config import RopeKeys
from jaxserve.models.weight_map import WeightMap

# transformers' default is 8 kv heads whatever the model, so they may not be left out.
_KEYS = DecoderKeys(needs_kv_heads=True, default_max_position_embeddings=131072)
_MIXTRAL_KEYS = replace(_KEYS, default_norm_eps=1e-5, rope=RopeKeys(default_theta=1e6))
_MIXTRAL_WEIGHTS = WeightMap(
    router="block_sparse_moe.gate", experts="block_sparse_moe.experts", expert_products=("w1", "w3", "w2")
)


def _read_config(file: ConfigFile) -> ModelConfig:
    config = read_decoder(file, _KEYS)
    if "sliding_window" not in file.values:
        raise file.error("sliding_window", "is missing, which for Mistral means 4096; set it to null if there is none")
    window = None if file.get("sliding_window") is None else file.integer("sliding_window")
    default: list[LayerKind] = ["local" if window else "global"] * config.num_layers
    kinds = read_layer_kinds(file, config.num_layers, default)
    if kinds and window is None:
        raise file.error("sliding_window", "is null, but layer_types names layers with a window")
    return with_window(config, kinds, window)


def _read_mixtral(file: ConfigFile) -> ModelConfig:
    config = read_decoder(file, _MIXTRAL_KEYS)
    window = None if file.get("sliding_window") is None else file.integer("sliding_window")
    default: list[LayerKind] = ["local" if window else "global"] * config.num_layers
    experts = ExpertsConfig(
        num_experts=file.integer("num_local_experts", 8, maximum=MAX_EXPERTS),
        num_experts_per_token=file.integer("num_experts_per_tok", 2),
        intermediate_size=config.intermediate_size,
    )
    check_experts(file, experts, "num_experts_per_tok")
    return replace(with_window(config, default, window), experts=experts)


MISTRAL = ModelFamily(
    name="Mistral, Ministral",
    architectures=("MistralForCausalLM", "MinistralForCausalLM"),
    read_config=_read_config,
    weight_map=lambda config: WeightMap(),
)
MIXTRAL = ModelFamily(
    name="Mixtral",
    architectures=("MixtralForCausalLM",),
    read_config=_read_mixtral,
    weight_map=lambda config: _MIXTRAL_WEIGHTS,
)
