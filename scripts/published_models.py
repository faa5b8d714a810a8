"""Sizes of published models, as their config.json has them, for the table in docs/models.md."""

from typing import Any


def _llama(vocab: int, hidden: int, layers: int, heads: int, kv_heads: int, inner: int, **more: Any) -> dict[str, Any]:
    """The keys that most families share, with Llama's architecture."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
    } | more


def _of(architecture: str, *sizes: int, **more: Any) -> dict[str, Any]:
    return _llama(*sizes, **{"architectures": [architecture], **more})


def _multi_head(architecture: str, vocab: int, hidden: int, layers: int, heads: int, inner: int, **more: Any) -> Any:
    """Without num_key_value_heads, which older families do not have."""
    keys = _of(architecture, vocab, hidden, layers, heads, heads, inner, **more)
    return {name: value for name, value in keys.items() if name != "num_key_value_heads"}


def _mistral(*sizes: int, **more: Any) -> dict[str, Any]:
    return _of("MistralForCausalLM", *sizes, **{"sliding_window": None, **more})


def _qwen3_moe(hidden: int, layers: int, heads: int, inner: int, expert_inner: int) -> dict[str, Any]:
    experts = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": expert_inner}
    sizes = (151936, hidden, layers, heads, 4, inner)
    return _of("Qwen3MoeForCausalLM", *sizes, head_dim=128, **_32K, **experts)


def _gpt2(architecture: str, vocab: int, hidden: int, layers: int, heads: int, positions: int) -> dict[str, Any]:
    names = ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions")
    sizes = dict(zip(names, (vocab, hidden, layers, heads, positions), strict=True))
    return {"architectures": [architecture], **sizes}


_8K = {"max_position_embeddings": 8192}
_32K = {"max_position_embeddings": 32768}
_128K = {"max_position_embeddings": 131072}
_TIED = {"tie_word_embeddings": True}

# One model a size of a family, by the name it was published under.
PUBLISHED: dict[str, dict[str, Any]] = {
    "TinyLlama-1.1B": _llama(32000, 2048, 22, 32, 4, 5632),
    "SmolLM2-1.7B": _llama(49152, 2048, 24, 32, 32, 8192, **_8K, **_TIED),
    "Llama-3.2-3B": _llama(128256, 3072, 28, 24, 8, 8192, **_128K, **_TIED),
    "Llama-2-7B, Vicuna-7B, CodeLlama-7B": _llama(32000, 4096, 32, 32, 32, 11008, max_position_embeddings=4096),
    "Llama-3.1-8B": _llama(128256, 4096, 32, 32, 8, 14336, **_128K),
    "Llama-2-13B, Vicuna-13B": _llama(32000, 5120, 40, 40, 40, 13824, max_position_embeddings=4096),
    "Yi-34B": _llama(64000, 7168, 60, 56, 8, 20480, max_position_embeddings=4096),
    "Llama-3.1-70B": _llama(128256, 8192, 80, 64, 8, 28672, **_128K),
    "Llama-3.1-405B": _llama(128256, 16384, 126, 128, 8, 53248, **_128K),
    "Mistral-7B-v0.1": _mistral(32000, 4096, 32, 32, 8, 14336, **_32K, sliding_window=4096),
    "Ministral-8B": _of("MinistralForCausalLM", 131072, 4096, 36, 32, 8, 12288, sliding_window=32768, **_128K),
    "Mistral-Small-24B": _mistral(131072, 5120, 40, 32, 8, 32768, **_32K, head_dim=128),
    "Mistral-Large-123B": _mistral(32768, 12288, 88, 96, 8, 28672, **_128K),
    "Mixtral-8x7B": _of("MixtralForCausalLM", 32000, 4096, 32, 32, 8, 14336, **_32K),
    "Mixtral-8x22B": _of("MixtralForCausalLM", 32768, 6144, 56, 48, 8, 16384, **_32K),
    "Baichuan-7B": _multi_head("BaiChuanForCausalLM", 64000, 4096, 32, 32, 11008, max_position_embeddings=4096),
    "Baichuan2-7B": _multi_head("BaichuanForCausalLM", 125696, 4096, 32, 32, 11008, max_position_embeddings=4096),
    "Baichuan-13B": _multi_head("BaichuanForCausalLM", 64000, 5120, 40, 40, 13696, model_max_length=4096),
    "Baichuan2-13B": _multi_head("BaichuanForCausalLM", 125696, 5120, 40, 40, 13696, model_max_length=4096),
    "Qwen-7B": _multi_head("QWenLMHeadModel", 151936, 4096, 32, 32, 22016, **_32K),
    "Qwen-14B": _multi_head("QWenLMHeadModel", 152064, 5120, 40, 40, 27392, **_8K),
    "Qwen-72B": _multi_head("QWenLMHeadModel", 152064, 8192, 80, 64, 49152, **_32K),
    "Qwen2.5-7B": _of("Qwen2ForCausalLM", 152064, 3584, 28, 28, 4, 18944, **_128K),
    "Qwen2.5-14B": _of("Qwen2ForCausalLM", 152064, 5120, 48, 40, 8, 13824, **_128K),
    "QwQ-32B, Qwen2.5-32B": _of("Qwen2ForCausalLM", 152064, 5120, 64, 40, 8, 27648, **_128K),
    "Qwen2.5-72B": _of("Qwen2ForCausalLM", 152064, 8192, 80, 64, 8, 29568, **_128K),
    "Qwen3-0.6B": _of("Qwen3ForCausalLM", 151936, 1024, 28, 16, 8, 3072, head_dim=128, **_32K, **_TIED),
    "Qwen3-8B": _of("Qwen3ForCausalLM", 151936, 4096, 36, 32, 8, 12288, head_dim=128, **_32K),
    "Qwen3-32B": _of("Qwen3ForCausalLM", 151936, 5120, 64, 64, 8, 25600, head_dim=128, **_32K),
    "Qwen3-30B-A3B": _qwen3_moe(2048, 48, 32, 6144, 768),
    "Qwen3-235B-A22B": _qwen3_moe(4096, 94, 64, 12288, 1536),
    "InternLM-7B": _multi_head("InternLMForCausalLM", 103168, 4096, 32, 32, 11008, bias=True),
    "InternLM-20B": _multi_head("InternLMForCausalLM", 103168, 5120, 60, 40, 13824, bias=False),
    "InternLM2.5-7B": _of("InternLM2ForCausalLM", 92544, 4096, 32, 32, 8, 14336, bias=False, **_32K),
    "InternLM2.5-20B": _of("InternLM2ForCausalLM", 92544, 6144, 48, 48, 8, 16384, bias=False, **_32K),
    "InternLM3-8B": _of("InternLM3ForCausalLM", 128512, 4096, 48, 32, 2, 10240, head_dim=128, **_32K),
    "Gemma-7B": _of("GemmaForCausalLM", 256000, 3072, 28, 16, 16, 24576, head_dim=256, **_8K),
    "Gemma-2-9B": _of("Gemma2ForCausalLM", 256000, 3584, 42, 16, 8, 14336, head_dim=256, **_8K),
    "Gemma-2-27B": _of("Gemma2ForCausalLM", 256000, 4608, 46, 32, 16, 36864, head_dim=128, **_8K),
    "Gemma-3-1B": _of("Gemma3ForCausalLM", 262144, 1152, 26, 4, 1, 6912, head_dim=256, **_32K),
    "Phi-3-mini": _of("Phi3ForCausalLM", 32064, 3072, 32, 32, 32, 8192, max_position_embeddings=4096),
    "Phi-4-mini": _of("Phi3ForCausalLM", 200064, 3072, 32, 24, 8, 8192, partial_rotary_factor=0.75, **_128K, **_TIED),
    "Phi-4": _of("Phi3ForCausalLM", 100352, 5120, 40, 40, 10, 17920, max_position_embeddings=16384),
    "OLMo-2-7B": _of("Olmo2ForCausalLM", 100352, 4096, 32, 32, 32, 11008, max_position_embeddings=4096),
    "OLMo-2-32B": _of("Olmo2ForCausalLM", 100352, 5120, 64, 40, 8, 27648, max_position_embeddings=4096),
    "Granite-3.1-8B": _of("GraniteForCausalLM", 49155, 4096, 40, 32, 8, 12800, **_128K, **_TIED),
    "StarCoder-15B": _gpt2("GPTBigCodeForCausalLM", 49152, 6144, 40, 48, 8192),
    "Falcon-7B": {
        "architectures": ["FalconForCausalLM"],
        "vocab_size": 65024,
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
    },
    "Pythia-12B": _multi_head("GPTNeoXForCausalLM", 50688, 5120, 36, 40, 20480),
    "GPT-NeoX-20B": _multi_head("GPTNeoXForCausalLM", 50432, 6144, 44, 64, 24576),
    "GPT-2 XL": _gpt2("GPT2LMHeadModel", 50257, 1600, 48, 25, 1024),
}
