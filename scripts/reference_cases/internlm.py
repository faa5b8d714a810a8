"""InternLM3. (InternLM 1 and 2 are in scripts/record_numpy_reference.py: transformers does not have them.)"""

from reference_cases.case import Case

CASES = {
    # Prompts within the original context; generation leaves it, as in `rope_dynamic`.
    "internlm3": Case(
        {
            "architectures": ["InternLM3ForCausalLM"],
            "attention_dropout": 0.0,
            "auto_map": {
                "AutoConfig": "configuration_internlm3.InternLM3Config",
                "AutoModel": "modeling_internlm3.InternLM3Model",
                "AutoModelForCausalLM": "modeling_internlm3.InternLM3ForCausalLM",
            },
            "bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "head_dim": 16,
            "hidden_act": "silu",
            "hidden_size": 32,
            "initializer_range": 0.02,
            "intermediate_size": 48,
            "max_position_embeddings": 32,
            "model_type": "internlm3",
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "pad_token_id": 2,
            "qkv_bias": False,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"},
            "rope_theta": 50000000,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.47.1",
            "use_cache": True,
            "vocab_size": 112,
        },
        prompt_lens=(1, 9, 17, 30),
    ),
}
