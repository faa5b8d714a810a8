"""Phi-3 and Phi-4: packed qkv and gate/up products, a window, longrope, rotation of a part of each head.

longrope has two sets of factors. transformers rotates a whole sequence with the long ones as soon as it is longer than
`original_max_position_embeddings`, and with the short ones up to there. `phi3_longrope_short` stays within the original
context, prompt and continuation. Every prompt of `phi3_longrope` and `phi4_mini` is longer than it.
"""

from typing import Any

from reference_cases.case import Case

_PHI3: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "model_type": "phi3",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "original_max_position_embeddings": 128,
    "pad_token_id": 3,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 128,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.39.3",
    "use_cache": True,
    "vocab_size": 112,
}
_SHORT = [1.0, 1.05, 1.1, 1.4]
_LONG = [1.05, 1.3, 2.7, 6.3]

CASES = {
    # As Phi-3-mini-4k, whose window is shorter than its context.
    "phi3": Case(_PHI3 | {"sliding_window": 16}),
    "phi3_longrope_short": Case(
        _PHI3
        | {
            "max_position_embeddings": 1024,
            "rope_scaling": {"long_factor": _LONG, "short_factor": _SHORT, "type": "longrope"},
            "sliding_window": 1024,
        }
    ),
    "phi3_longrope": Case(
        _PHI3
        | {
            "original_max_position_embeddings": 16,
            "rope_scaling": {"long_factor": _LONG, "short_factor": _SHORT, "type": "longrope"},
        },
        prompt_lens=(17, 41),
    ),
    # As Phi-4-mini: three quarters of each head are rotated, and the embeddings are tied.
    "phi4_mini": Case(
        _PHI3
        | {
            "full_attn_mod": 1,
            "interpolate_factor": 1,
            "lm_head_bias": False,
            "mlp_bias": False,
            "original_max_position_embeddings": 16,
            "partial_rotary_factor": 0.75,
            "rope_scaling": {"long_factor": _LONG[:3], "short_factor": _SHORT[:3], "type": "longrope"},
            "tie_word_embeddings": True,
        },
        prompt_lens=(17, 41),
        signed_final_norm=True,
    ),
}
