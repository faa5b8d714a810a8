"""InternLM 1 and 2 in plain NumPy, written from the InternLM reports (2023; Cai et al. 2024, section 2.2).

Their own implementation is remote code beside the checkpoints, which is not run here; this is independent of it.

InternLM 1 is Llama with biases on the four products of attention. InternLM 2 packs queries, keys and values by kv head:
`wqkv` holds, for each kv head, the rows of its query heads, then of its key, then of its value. Both have dynamic NTK
scaling: InternLM 1 under `rotary`, where the factor is 1 unless given; InternLM 2 under `rope_scaling`.
"""

from collections.abc import Sequence

import numpy as np

from tests.references.blocks import (
    Array,
    Config,
    Tensors,
    TensorShapes,
    attend,
    dynamic_ntk_bases,
    linear,
    rms_norm,
    rotate,
    silu,
)


def _is_internlm2(config: Config) -> bool:
    return bool(config["model_type"] == "internlm2")


def _head_dim(config: Config) -> int:
    return int(config["hidden_size"] // config["num_attention_heads"])


def tensor_shapes(config: Config) -> TensorShapes:
    """Names and shapes of a checkpoint's tensors."""
    return _shapes_2(config) if _is_internlm2(config) else _shapes_1(config)


def _shapes_1(config: Config) -> TensorShapes:
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    shapes: TensorShapes = {"model.embed_tokens.weight": (v, d)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name in ("q", "k", "v", "o"):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (d, d)
            if config["bias"]:
                shapes[f"{prefix}self_attn.{name}_proj.bias"] = (d,)
        shapes |= {
            prefix + "mlp.gate_proj.weight": (f, d),
            prefix + "mlp.down_proj.weight": (d, f),
            prefix + "mlp.up_proj.weight": (f, d),
            prefix + "input_layernorm.weight": (d,),
            prefix + "post_attention_layernorm.weight": (d,),
        }
    return shapes | {"model.norm.weight": (d,), "lm_head.weight": (v, d)}


def _shapes_2(config: Config) -> TensorShapes:
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    rows = (config["num_attention_heads"] + 2 * config["num_key_value_heads"]) * _head_dim(config)
    shapes: TensorShapes = {"model.tok_embeddings.weight": (v, d)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "attention.wqkv.weight": (rows, d),
            prefix + "attention.wo.weight": (d, d),
            prefix + "feed_forward.w1.weight": (f, d),
            prefix + "feed_forward.w3.weight": (f, d),
            prefix + "feed_forward.w2.weight": (d, f),
            prefix + "attention_norm.weight": (d,),
            prefix + "ffn_norm.weight": (d,),
        }
    return shapes | {"model.norm.weight": (d,), "output.weight": (v, d)}


def _bases(config: Config, length: int) -> Array:
    if _is_internlm2(config):
        base, scaling = config["rope_theta"], config["rope_scaling"] or {}
        kind, factor = scaling.get("type"), scaling.get("factor", 1.0)
    else:
        rotary = config.get("rotary", {"base": 10000, "type": "origin"})
        base, kind, factor = rotary["base"], rotary["type"], rotary.get("scaling_factor", 1.0)
    if kind == "dynamic":
        original = config["max_position_embeddings"]
        return dynamic_ntk_bases(length, float(base), factor, original, _head_dim(config))
    return np.full(length, float(base))


def _queries_keys_values(config: Config, tensors: Tensors, prefix: str, normed: Array) -> tuple[Array, Array, Array]:
    length, head_dim = len(normed), _head_dim(config)
    if not _is_internlm2(config):
        names = (f"{prefix}self_attn.{name}_proj" for name in ("q", "k", "v"))
        q, k, v = (linear(normed, tensors, name).reshape(length, -1, head_dim) for name in names)
        return q, k, v
    num_kv_heads = config["num_key_value_heads"]
    packed = linear(normed, tensors, prefix + "attention.wqkv").reshape(length, num_kv_heads, -1, head_dim)
    return packed[:, :, :-2].reshape(length, -1, head_dim), packed[:, :, -2], packed[:, :, -1]


def logits(config: Config, tensors: Tensors, token_ids: Sequence[int]) -> Array:
    """Scores [T, V] after each token; dynamic scaling by position, as `dynamic_ntk_bases` says."""
    eps, bases = config["rms_norm_eps"], _bases(config, len(token_ids))
    is_2 = _is_internlm2(config)
    out, attention_norm, mlp_norm = (
        ("attention.wo", "attention_norm", "ffn_norm")
        if is_2
        else ("self_attn.o_proj", "input_layernorm", "post_attention_layernorm")
    )
    gate, up, down = (
        ("feed_forward.w1", "feed_forward.w3", "feed_forward.w2")
        if is_2
        else ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    )
    x = tensors["model.tok_embeddings.weight" if is_2 else "model.embed_tokens.weight"][list(token_ids)]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        normed = rms_norm(x, tensors[f"{prefix}{attention_norm}.weight"], eps)
        q, k, v = _queries_keys_values(config, tensors, prefix, normed)
        x = x + linear(attend(rotate(q, bases), rotate(k, bases), v), tensors, prefix + out)
        normed = rms_norm(x, tensors[f"{prefix}{mlp_norm}.weight"], eps)
        x = x + linear(
            silu(linear(normed, tensors, prefix + gate)) * linear(normed, tensors, prefix + up), tensors, prefix + down
        )
    return linear(rms_norm(x, tensors["model.norm.weight"], eps), tensors, "output" if is_2 else "lm_head")
