"""InternLM 1 (biases), 2 and 2.5 (packed wqkv, tensors named otherwise) and 3 (Cai et al. 2024)."""

from dataclasses import replace

from jaxserve.layers.rope import RopeConfig
from jaxserve.models.config import ModelConfig
from jaxserve.models.config_file import ConfigFile
from jaxserve.models.decoder_config import DecoderKeys, read_decoder
from jaxserve.models.family import ModelFamily
from jaxserve.models.weight_map import WeightMap

_INTERNLM2_WEIGHTS = WeightMap(
    embedding="model.tok_embeddings",
    attention_norm="attention_norm",
    mlp_norm="ffn_norm",
    qkv=("attention.wqkv",),
    packing="grouped",
    attention_out="attention.wo",
    up=("feed_forward.w1", "feed_forward.w3"),
    down="feed_forward.w2",
    head="output",
)
# What InternLM 1's dynamic scaling was published to reach.
_INTERNLM_CONTEXT = 16384


def _read_internlm(file: ConfigFile) -> ModelConfig:
    """InternLM 1 keeps its rotary settings in `rotary`; left out, they are dynamic scaling from a base of 10000."""
    bias = file.boolean("bias", True)
    config = read_decoder(file, DecoderKeys(num_kv_heads=None, rope=None))
    values = file.get("rotary")
    if values is not None and not isinstance(values, dict):
        raise file.error("rotary", f"must be an object, got {values!r}")
    rotary = ConfigFile(file.path, values or {}, prefix="rotary.")
    kind = rotary.get("type") or "dynamic"
    if kind not in ("dynamic", "origin"):
        raise rotary.error("type", f"is {kind!r}, which is not implemented; there are dynamic and origin")
    theta, factor = rotary.number("base", 10000.0), rotary.number("scaling_factor", 1.0)
    rotary.refuse_unknown(frozenset())
    rope, context = RopeConfig(theta=theta), config.max_position_embeddings
    if kind == "dynamic":
        rope = RopeConfig(kind="dynamic", theta=theta, factor=factor, original_max_position_embeddings=context)
        context = max(context, _INTERNLM_CONTEXT)
    return replace(config, qkv_bias=bias, attention_out_bias=bias, rope=rope, max_position_embeddings=context)


def _read_internlm2(file: ConfigFile) -> ModelConfig:
    bias = file.boolean("bias", True)
    return replace(read_decoder(file, DecoderKeys()), qkv_bias=bias, attention_out_bias=bias)


def _read_internlm3(file: ConfigFile) -> ModelConfig:
    bias = file.boolean("bias", False)
    return replace(
        read_decoder(file, DecoderKeys(needs_kv_heads=True, default_max_position_embeddings=32768)),
        qkv_bias=file.boolean("qkv_bias", False),
        attention_out_bias=bias,
        mlp_bias=bias,
    )


INTERNLM = ModelFamily(
    name="InternLM",
    architectures=("InternLMForCausalLM",),
    read_config=_read_internlm,
    weight_map=lambda config: WeightMap(),
)
INTERNLM2 = ModelFamily(
    name="InternLM 2, InternLM 2.5",
    architectures=("InternLM2ForCausalLM",),
    read_config=_read_internlm2,
    weight_map=lambda config: _INTERNLM2_WEIGHTS,
)
INTERNLM3 = ModelFamily(
    name="InternLM 3",
    architectures=("InternLM3ForCausalLM",),
    read_config=_read_internlm3,
    weight_map=lambda config: WeightMap(),
)
