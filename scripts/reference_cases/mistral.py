"""Mistral with its sliding window, Ministral, and Mixtral's routed experts.

A window of 16 is several pages, and the longest prompt and its continuation pass it four times.
"""

from reference_cases.case import Case

_SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}

CASES = {
    # As Mistral-7B-v0.1: every layer within the window, no head_dim.
    "mistral_window": Case(
        {
            "architectures": ["MistralForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 32,
            "initializer_range": 0.02,
            "intermediate_size": 48,
            "max_position_embeddings": 128,
            "model_type": "mistral",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "sliding_window": 16,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.34.0.dev0",
            "use_cache": True,
            "vocab_size": 112,
        }
    ),
    # As Ministral-8B in transformers 5: the window in some layers only.
    "ministral": Case(
        {
            "architectures": ["MinistralForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "dtype": "bfloat16",
            "eos_token_id": 2,
            "head_dim": 16,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "max_position_embeddings": 128,
            "model_type": "ministral",
            "num_hidden_layers": 3,
            "pad_token_id": None,
            "rms_norm_eps": 1e-05,
            "rope_parameters": {"rope_theta": 100000000.0, "rope_type": "default"},
            "sliding_window": 16,
            "tie_word_embeddings": False,
            "transformers_version": "5.23.0",
            "use_cache": True,
            "vocab_size": 112,
            **_SMALL,
        }
    ),
    # As Mixtral-8x7B.
    "mixtral": Case(
        {
            "architectures": ["MixtralForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": 32,
            "initializer_range": 0.02,
            "intermediate_size": 32,
            "max_position_embeddings": 128,
            "model_type": "mixtral",
            "num_attention_heads": 4,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "num_local_experts": 4,
            "output_router_logits": False,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000.0,
            "router_aux_loss_coef": 0.02,
            "sliding_window": None,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.36.0.dev0",
            "use_cache": True,
            "vocab_size": 112,
        }
    ),
}
