"""Qwen2, Qwen2.5, QwQ (biases on q, k and v), Qwen3 (norms of each head) and Qwen3-MoE (Yang et al. 2024, 2025)."""

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
from jaxserve.models.weight_map import WeightMap

_QWEN2_KEYS = DecoderKeys(default_max_position_embeddings=32768)
_QWEN3_KEYS = DecoderKeys(default_max_position_embeddings=32768, head_dim=128)
_MOE_KEYS = DecoderKeys(default_max_position_embeddings=32768, needs_kv_heads=True)


def _read_qwen2(file: ConfigFile) -> ModelConfig:
    config = _with_window(file, read_decoder(file, _QWEN2_KEYS))
    return replace(config, qkv_bias=True)


def _read_qwen3(file: ConfigFile) -> ModelConfig:
    return _with_head_norms(file, _with_window(file, read_decoder(file, _QWEN3_KEYS)))


def _read_qwen3_moe(file: ConfigFile) -> ModelConfig:
    config = _with_head_norms(file, read_decoder(file, _MOE_KEYS))
    file.refuse("use_sliding_window", (False,), "windows are not implemented for Qwen3-MoE")
    file.get("sliding_window")
    step = file.integer("decoder_sparse_step", 1)
    dense = file.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(not isinstance(i, int) for i in dense):
        raise file.error("mlp_only_layers", f"must be a list of numbers of layers, got {dense!r}")
    experts = ExpertsConfig(
        num_experts=file.integer("num_experts", file.integer("num_local_experts", 128), maximum=MAX_EXPERTS),
        num_experts_per_token=file.integer("num_experts_per_tok", 8),
        intermediate_size=file.integer("moe_intermediate_size"),
        normalize_weights=file.boolean("norm_topk_prob", False),
        dense_layers=tuple(i for i in range(config.num_layers) if i in dense or (i + 1) % step),
    )
    check_experts(file, experts, "num_experts_per_tok")
    return replace(config, experts=experts)


def _with_head_norms(file: ConfigFile, config: ModelConfig) -> ModelConfig:
    bias = file.boolean("attention_bias", False)
    return replace(config, qk_norm="head", qkv_bias=bias, attention_out_bias=bias)


def _with_window(file: ConfigFile, config: ModelConfig) -> ModelConfig:
    """The window of the layers from `max_window_layers` on, or of those that `layer_types` names."""
    wanted = file.boolean("use_sliding_window", False) and not _is_null(file, "sliding_window")
    window = file.integer("sliding_window", 4096) if wanted else None
    first = file.integer("max_window_layers", 28, minimum=0)
    default: list[LayerKind] = ["local" if wanted and i >= first else "global" for i in range(config.num_layers)]
    kinds = read_layer_kinds(file, config.num_layers, default)
    if kinds and window is None:
        raise file.error("layer_types", "names layers with a window, but use_sliding_window is false")
    file.get("sliding_window")
    return with_window(config, kinds, window)


def _is_null(file: ConfigFile, key: str) -> bool:
    return key in file.values and file.get(key) is None


QWEN2 = ModelFamily(
    name="Qwen2, Qwen2.5, QwQ",
    architectures=("Qwen2ForCausalLM",),
    read_config=_read_qwen2,
    weight_map=lambda config: WeightMap(),
)
QWEN3 = ModelFamily(
    name="Qwen3",
    architectures=("Qwen3ForCausalLM",),
    read_config=_read_qwen3,
    weight_map=lambda config: WeightMap(),
)
QWEN3_MOE = ModelFamily(
    name="Qwen3-MoE",
    architectures=("Qwen3MoeForCausalLM",),
    read_config=_read_qwen3_moe,
    weight_map=lambda config: WeightMap(),
)
