"""Phi-3 and Phi-4 (Abdin et al. 2024): packed products, LongRoPE, rotation of a part of each head."""

from jaxserve.models.config import LayerKind, ModelConfig
from jaxserve.models.config_file import ConfigFile
from jaxserve.models.decoder_config import DecoderKeys, read_decoder, with_window
from jaxserve.models.family import ModelFamily
from jaxserve.models.weight_map import WeightMap

_KEYS = DecoderKeys(default_max_position_embeddings=4096, default_norm_eps=1e-5)
_WEIGHTS = WeightMap(qkv=("self_attn.qkv_proj",), up=("mlp.gate_up_proj",))


def _read_config(file: ConfigFile) -> ModelConfig:
    config = read_decoder(file, _KEYS)
    if config.rope.kind not in ("default", "longrope"):
        raise file.error("rope_scaling", f"is of kind {config.rope.kind}; Phi-3 has default and longrope")
    for key in ("full_attn_mod", "interpolate_factor"):
        file.refuse(key, (1,), "only 1 is implemented")
    # A window as long as the context hides nothing; leaving it out spares each layer the comparison.
    window = None if file.get("sliding_window") is None else file.integer("sliding_window")
    if window is None or window >= config.context_length:
        return config
    kinds: list[LayerKind] = ["local"] * config.num_layers
    return with_window(config, kinds, window)


PHI3 = ModelFamily(
    name="Phi-3, Phi-4",
    architectures=("Phi3ForCausalLM",),
    read_config=_read_config,
    weight_map=lambda config: _WEIGHTS,
)
