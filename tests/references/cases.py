"""The checkpoints recorded from the NumPy references: config.json as published, with small sizes."""

from dataclasses import dataclass
from typing import Any, cast

from tests.references import baichuan, internlm, qwen
from tests.references.blocks import Reference


@dataclass(frozen=True)
class NumpyCase:
    """One checkpoint.

    Attributes:
        reference: the family's module.
        config: config.json.
        prompt_lens: tokens of each prompt.
        inv_freq: the file also holds each layer's rotary frequencies, as old ones do.
    """

    reference: Reference
    config: dict[str, Any]
    prompt_lens: tuple[int, ...] = (1, 6, 19, 41)
    inv_freq: bool = False


def _auto_map(family: str, name: str) -> dict[str, str]:
    return {
        "AutoConfig": f"configuration_{family}.{name}Config",
        "AutoModelForCausalLM": f"modeling_{family}.{name}ForCausalLM",
    }


_SMALL: dict[str, Any] = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 112,
}
_BAICHUAN: dict[str, Any] = {
    **_SMALL,
    "architectures": ["BaichuanForCausalLM"],
    "auto_map": _auto_map("baichuan", "Baichuan"),
    "model_type": "baichuan",
    "pad_token_id": 0,
    "transformers_version": "4.29.2",
}
# 40 heads in the published model: no power of two.
_BAICHUAN_13B: dict[str, Any] = {
    **_BAICHUAN,
    "_from_model_config": True,
    "gradient_checkpointing": [False],
    "hidden_size": 48,
    "model_max_length": 128,
    "num_attention_heads": 6,
}
_QWEN: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "attn_dropout_prob": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_qwen.QWenConfig",
        "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
    },
    "bf16": False,
    "emb_dropout_prob": 0.0,
    "fp16": False,
    "fp32": False,
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "kv_channels": 8,
    "layer_norm_epsilon": 1e-06,
    "max_position_embeddings": 128,
    "model_type": "qwen",
    "no_bias": True,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "onnx_safe": None,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 128,
    "softmax_in_fp32": False,
    "tie_word_embeddings": False,
    "tokenizer_class": "QWenTokenizer",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.32.0",
    "use_cache": True,
    "use_cache_kernel": False,
    "use_cache_quantization": False,
    "use_dynamic_ntk": True,
    "use_flash_attn": "auto",
    "use_logn_attn": True,
    "vocab_size": 112,
}
_INTERNLM: dict[str, Any] = {
    **_SMALL,
    "architectures": ["InternLMForCausalLM"],
    "auto_map": _auto_map("internlm", "InternLM"),
    "bias": True,
    "max_position_embeddings": 128,
    "model_type": "internlm",
    "num_key_value_heads": 4,
    "pad_token_id": 2,
    "transformers_version": "4.33.2",
}
_INTERNLM2: dict[str, Any] = {
    **_SMALL,
    "architectures": ["InternLM2ForCausalLM"],
    "attn_implementation": "eager",
    "auto_map": _auto_map("internlm2", "InternLM2"),
    "bias": False,
    "max_position_embeddings": 32,
    "model_type": "internlm2",
    "num_key_value_heads": 2,
    "pad_token_id": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 2.0, "type": "dynamic"},
    "rope_theta": 1000000,
    "transformers_version": "4.41.0",
}
_baichuan, _qwen, _internlm = (cast(Reference, module) for module in (baichuan, qwen, internlm))

NUMPY_CASES = {
    "baichuan_7b": NumpyCase(
        _baichuan,
        _BAICHUAN
        | {
            "architectures": ["BaiChuanForCausalLM"],
            "auto_map": _auto_map("baichuan", "BaiChuan"),
            "max_position_embeddings": 128,
        },
        inv_freq=True,
    ),
    "baichuan2_7b": NumpyCase(
        _baichuan,
        _BAICHUAN
        | {
            "_from_model_config": True,
            "max_position_embeddings": 128,
            "model_max_length": 128,
            "tokenizer_class": "BaichuanTokenizer",
            "z_loss_weight": 0,
        },
    ),
    "baichuan_13b": NumpyCase(_baichuan, _BAICHUAN_13B),
    "baichuan2_13b": NumpyCase(_baichuan, _BAICHUAN_13B | {"tokenizer_class": "BaichuanTokenizer", "z_loss_weight": 0}),
    # Within seq_length, where the published definition and this one are the same.
    "qwen": NumpyCase(_qwen, _QWEN),
    # Up to four times seq_length, by position.
    "qwen_long": NumpyCase(_qwen, _QWEN | {"seq_length": 16}),
    "internlm": NumpyCase(_internlm, _INTERNLM),
    # As InternLM-20B (no biases), with dynamic scaling, whose factor is not named. Prompts beyond the original
    # context, by position.
    "internlm_dynamic": NumpyCase(
        _internlm,
        _INTERNLM | {"bias": False, "max_position_embeddings": 24, "rotary": {"base": 10000, "type": "dynamic"}},
    ),
    # Prompts within the original context; generation leaves it, as in `rope_dynamic`.
    "internlm2": NumpyCase(_internlm, _INTERNLM2, prompt_lens=(1, 9, 17, 30)),
}
