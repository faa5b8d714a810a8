"""Qwen2 (biases on q, k, v), Qwen3 (a norm on each head of q and k) and Qwen3-MoE (routed experts)."""

from typing import Any

from reference_cases.case import Case

_QWEN2: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "max_window_layers": 2,
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 128,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 112,
}
_QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "max_window_layers": 2,
    "model_type": "qwen3",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 112,
}
_QWEN3_MOE: dict[str, Any] = {
    **{key: value for key, value in _QWEN3.items() if key != "vocab_size"},
    "architectures": ["Qwen3MoeForCausalLM"],
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "tie_word_embeddings": False,
    "vocab_size": 112,
}
_NEW_STYLE = {"rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "transformers_version": "5.23.0"}


def _new_style(config: dict[str, Any]) -> dict[str, Any]:
    old = ("rope_theta", "rope_scaling", "torch_dtype")
    kept = {key: value for key, value in config.items() if key not in old}
    return {**kept, "dtype": config["torch_dtype"], "pad_token_id": None, **_NEW_STYLE}


CASES = {
    "qwen2": Case(_QWEN2),
    # The layers from max_window_layers on attend within the window.
    "qwen2_window": Case(
        _QWEN2
        | {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1, "tie_word_embeddings": True},
        signed_final_norm=True,
    ),
    "qwen2_layer_types": Case(
        _new_style(
            _QWEN2
            | {
                "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
                "max_window_layers": 1,
                "num_hidden_layers": 3,
                "sliding_window": 16,
                "use_sliding_window": True,
            }
        )
    ),
    "qwen3": Case(_QWEN3, signed_final_norm=True),
    "qwen3_moe": Case(_QWEN3_MOE),
    # Only layer 1 has experts: layers 0 and 2 are dense by decoder_sparse_step, layer 3 by mlp_only_layers. The
    # scores of the chosen experts are not made to sum to one.
    "qwen3_moe_mixed": Case(
        _new_style(
            _QWEN3_MOE
            | {
                "decoder_sparse_step": 2,
                "head_dim": 8,
                "mlp_only_layers": [3],
                "norm_topk_prob": False,
                "num_experts_per_tok": 3,
                "num_hidden_layers": 4,
            }
        )
    ),
}
