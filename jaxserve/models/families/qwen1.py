"""Qwen 1 (Bai et al. 2023): biases on a packed c_attn, log n scaling of queries, dynamic NTK in powers of two."""

from dataclasses import replace

from jaxserve.models.config import ModelConfig, WeightDType
from jaxserve.models.config_file import ConfigFile
from jaxserve.models.decoder_config import DecoderKeys, read_decoder
from jaxserve.models.family import ModelFamily
from jaxserve.models.rope_config import RopeKeys
from jaxserve.models.weight_map import WeightMap

_WEIGHTS = WeightMap(
    embedding="transformer.wte",
    layers="transformer.h",
    attention_norm="ln_1",
    mlp_norm="ln_2",
    qkv=("attn.c_attn",),
    attention_out="attn.c_proj",
    # The second product is the one that is activated.
    up=("mlp.w2", "mlp.w1"),
    down="mlp.c_proj",
    final_norm="transformer.ln_f",
)
_HARMLESS = frozenset(
    """
    attn_dropout_prob emb_dropout_prob onnx_safe use_flash_attn use_cache_quantization use_cache_kernel softmax_in_fp32
    """.split()
)


def _read_config(file: ConfigFile) -> ModelConfig:
    seq_length = file.integer("seq_length", 8192)
    keys = DecoderKeys(
        num_kv_heads=None,
        norm_eps="layer_norm_epsilon",
        default_max_position_embeddings=seq_length,
        head_dim=file.integer("kv_channels", 128),
        rope=RopeKeys(theta="rotary_emb_base", partial="rotary_pct"),
    )
    config = read_decoder(file, keys)
    file.refuse("scale_attn_weights", (True,), "only scaled scores are implemented")
    bias = not file.boolean("no_bias", True)
    # intermediate_size counts the gate and the up product together.
    if config.intermediate_size % 2:
        raise file.error("intermediate_size", f"is {config.intermediate_size}; it must be even")
    rope = config.rope
    if rope.kind != "default":
        raise file.error("rope_scaling", f"is of kind {rope.kind}; Qwen 1 scales by use_dynamic_ntk only")
    if file.boolean("use_dynamic_ntk", True):
        rope = replace(rope, kind="dynamic_qwen", original_max_position_embeddings=seq_length)
    return replace(
        config,
        intermediate_size=config.intermediate_size // 2,
        qkv_bias=True,
        attention_out_bias=bias,
        mlp_bias=bias,
        rope=rope,
        logn_length=seq_length if file.boolean("use_logn_attn", True) else None,
        dtype=_dtype(file, config),
    )


def _dtype(file: ConfigFile, config: ModelConfig) -> WeightDType:
    """Qwen 1 has flags for its dtype, used if transformers' key is not there; bfloat16 if they leave the choice."""
    float32, float16, _ = (file.boolean(flag, False) for flag in ("fp32", "fp16", "bf16"))
    if file.get("torch_dtype") is not None or file.get("dtype") is not None:
        return config.dtype
    return "float32" if float32 else "float16" if float16 else "bfloat16"


QWEN1 = ModelFamily(
    name="Qwen",
    architectures=("QWenLMHeadModel",),
    read_config=_read_config,
    weight_map=lambda config: _WEIGHTS,
    harmless_keys=_HARMLESS,
)
