"""Gemma 1, 2 and 3: norms that multiply by 1 + w, soft caps, windows in alternating layers, two rotary bases.

The caps are far smaller than the published 50 and 30, so that with small random weights they matter.
"""

from typing import Any

from reference_cases.case import Case

_GEMMA3: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "final_logit_softcapping": None,
    "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 24,
    "rms_norm_eps": 1e-06,
    "sliding_window": 16,
    "use_cache": True,
    "vocab_size": 112,
}

CASES = {
    # As gemma-2b: one kv head; its `gelu` has always meant the tanh approximation.
    "gemma": Case(
        {
            "architectures": ["GemmaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 2,
            "eos_token_id": 1,
            "head_dim": 16,
            "hidden_act": "gelu",
            "hidden_size": 32,
            "initializer_range": 0.02,
            "intermediate_size": 48,
            "max_position_embeddings": 128,
            "model_type": "gemma",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 1,
            "pad_token_id": 0,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.38.0.dev0",
            "use_cache": True,
            "vocab_size": 112,
        },
        signed_final_norm=True,
    ),
    "gemma2": Case(
        {
            "architectures": ["Gemma2ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_logit_softcapping": 2.0,
            "bos_token_id": 2,
            "cache_implementation": "hybrid",
            "eos_token_id": 1,
            "final_logit_softcapping": 3.0,
            "head_dim": 16,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 32,
            "initializer_range": 0.02,
            "intermediate_size": 48,
            "max_position_embeddings": 128,
            "model_type": "gemma2",
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "pad_token_id": 0,
            "query_pre_attn_scalar": 24,
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000.0,
            "sliding_window": 16,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.42.0.dev0",
            "use_cache": True,
            "vocab_size": 112,
        },
        signed_final_norm=True,
    ),
    # As gemma-3-1b: every third layer (published: sixth) attends to all.
    "gemma3": Case(
        {
            **_GEMMA3,
            "cache_implementation": "hybrid",
            "rope_local_base_freq": 10000,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window_pattern": 3,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.50.0.dev0",
        },
        signed_final_norm=True,
    ),
    # As transformers 5 writes the text part of the larger ones, whose global layers have linear scaling.
    "gemma3_rope_parameters": Case(
        {
            **_GEMMA3,
            "dtype": "bfloat16",
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"factor": 8.0, "rope_theta": 1000000.0, "rope_type": "linear"},
                "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
            },
            "tie_word_embeddings": True,
            "transformers_version": "5.23.0",
            "use_bidirectional_attention": False,
        },
        signed_final_norm=True,
    ),
}
