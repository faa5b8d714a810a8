"""Baichuan and Baichuan 2, 7B (rotary) and 13B (ALiBi), with one packed product for queries, keys and values.

One architecture name covers several mathematics, and the checkpoint decides: it is a 13B if config.json has
`model_max_length` and no `max_position_embeddings`, and a Baichuan 2, whose output head is normalised, if `vocab_size`
is 125696 or there is a `z_loss_weight`.
"""

from dataclasses import replace

from jaxserve.models.config import ModelConfig
from jaxserve.models.config_file import ConfigFile
from jaxserve.models.decoder_config import DecoderKeys, read_decoder
from jaxserve.models.family import ModelFamily
from jaxserve.models.weight_map import WeightMap

_ROTARY = DecoderKeys(num_kv_heads=None, default_max_position_embeddings=4096)
_ALIBI = DecoderKeys(num_kv_heads=None, max_position_embeddings="model_max_length", rope=None)
_WEIGHTS = WeightMap(qkv=("self_attn.W_pack",))
_BAICHUAN2_VOCAB_SIZE = 125696


def _read_config(file: ConfigFile) -> ModelConfig:
    alibi = file.get("model_max_length") is not None and file.get("max_position_embeddings") is None
    config = read_decoder(file, _ALIBI if alibi else _ROTARY)
    # A weight of a term in the training loss; that it is there tells the generation.
    baichuan2 = file.get("z_loss_weight") is not None or config.vocab_size == _BAICHUAN2_VOCAB_SIZE
    if baichuan2 and config.tie_word_embeddings:
        raise file.error("tie_word_embeddings", "is true, but Baichuan 2 has an output head of its own")
    return replace(config, positions="alibi" if alibi else "rope", normalized_head=baichuan2)


BAICHUAN = ModelFamily(
    name="Baichuan, Baichuan 2",
    architectures=("BaichuanForCausalLM", "BaiChuanForCausalLM"),
    read_config=_read_config,
    weight_map=lambda config: _WEIGHTS,
)
