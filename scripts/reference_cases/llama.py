"""Llama and what shares its mathematics: heads, biases, tied embeddings and every kind of rope scaling."""

from functools import partial
from typing import Any

from reference_cases.case import Case

_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dtype": "bfloat16",
    "eos_token_id": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": False,
    "transformers_version": "5.23.0",
    "use_cache": True,
    "vocab_size": 128,
}
LINEAR = {"factor": 2.5, "rope_theta": 10000.0, "rope_type": "linear"}
DYNAMIC = {"factor": 3.0, "rope_theta": 10000.0, "rope_type": "dynamic"}
LLAMA3 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 500.0,
    "rope_type": "llama3",
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 100.0, "rope_type": "yarn"}


def old_style(config: dict[str, Any]) -> dict[str, Any]:
    """The same config as transformers 4 wrote it: rope_theta beside rope_scaling, and torch_dtype."""
    old = {key: value for key, value in config.items() if key not in ("dtype", "rope_parameters")}
    rope = dict(config["rope_parameters"])
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    old["torch_dtype"] = config["dtype"]
    return old


def _without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in sorted(config.items()) if key not in keys}


_MHA = _without(_CONFIG | {"hidden_size": 64, "num_key_value_heads": 4}, "head_dim")
_MISTRAL = _without(
    _CONFIG | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None},
    "attention_bias",
    "mlp_bias",
    "pretraining_tp",
)

# The first to be recorded, with one prompt of each length to a model.
_llama = partial(Case, max_draws=1)

CASES = {
    "gqa": _llama(_CONFIG | {"vocab_size": 131, "dtype": "float32"}),
    "mqa": _llama(old_style(_CONFIG | {"num_key_value_heads": 1})),
    "mha": _llama(old_style(_MHA)),
    "tied": _llama(_CONFIG | {"vocab_size": 131, "tie_word_embeddings": True}),
    "bias": _llama(_CONFIG | {"attention_bias": True, "mlp_bias": True, "dtype": "float16"}),
    "rope_linear": _llama(old_style(_CONFIG | {"rope_parameters": LINEAR})),
    # The prompts stay within the original context and generation leaves it.
    "rope_dynamic": _llama(
        _CONFIG | {"rope_parameters": DYNAMIC, "max_position_embeddings": 24}, prompt_lens=(1, 6, 13, 20)
    ),
    "rope_llama3": _llama(old_style(_CONFIG | {"rope_parameters": LLAMA3})),
    "rope_yarn": _llama(_CONFIG | {"rope_parameters": YARN}),
    "sharded": _llama(_CONFIG, shard_bytes=20_000, generation_eos=[2, 5]),
    # Mistral without a window is Llama.
    "mistral": _llama(old_style(_MISTRAL)),
}

ROPE_COMMON = _without(_CONFIG, "dtype")
ROPE_SETTINGS: list[dict[str, Any]] = [
    LINEAR,
    DYNAMIC,
    LLAMA3,
    LLAMA3 | {"rope_theta": 500000.0, "original_max_position_embeddings": 8192},
    YARN,
    YARN | {"truncate": False},
    YARN | {"attention_factor": 0.8},
    YARN | {"mscale": 0.7, "mscale_all_dim": 1.3, "factor": 40.0},
    YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "rope_theta": 1e6, "original_max_position_embeddings": 4096},
]
ROPE_POSITIONS = (0, 1, 2, 3, 31, 32, 33, 100, 127, 128, 129, 1000, 1001, 4095)
