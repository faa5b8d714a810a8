"""Baichuan and Baichuan 2 in plain NumPy, written from the Baichuan 2 report (Yang et al. 2023) and Press et al. 2022.

Their own implementation is remote code beside the checkpoints, which is not run here; this is independent of it.
7B: rotary embeddings. 13B: ALiBi. Baichuan 2: the rows of the output head are scaled to unit length (NormHead).
"""

from collections.abc import Sequence

import numpy as np

from tests.references.blocks import Array, Config, Tensors, TensorShapes, attend, linear, rms_norm, rotate, silu


def is_13b(config: Config) -> bool:
    """The 13B's config names its context `model_max_length` only."""
    return "model_max_length" in config and "max_position_embeddings" not in config


def is_baichuan2(config: Config) -> bool:
    """Baichuan 2 has a vocabulary of 125696, or the weight of the loss that keeps its head in bounds."""
    return config["vocab_size"] == 125696 or "z_loss_weight" in config


def tensor_shapes(config: Config) -> TensorShapes:
    """Names and shapes of a checkpoint's tensors."""
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    shapes: TensorShapes = {"model.embed_tokens.weight": (v, d)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "self_attn.W_pack.weight": (3 * d, d),
            prefix + "self_attn.o_proj.weight": (d, d),
            prefix + "mlp.gate_proj.weight": (f, d),
            prefix + "mlp.down_proj.weight": (d, f),
            prefix + "mlp.up_proj.weight": (f, d),
            prefix + "input_layernorm.weight": (d,),
            prefix + "post_attention_layernorm.weight": (d,),
        }
    return shapes | {"model.norm.weight": (d,), "lm_head.weight": (v, d)}


def alibi_slopes(num_heads: int) -> Array:
    """Press et al. 2022: 2^(-8 i / N) for a power of two; else those of the next lower one, then every other one of
    the next higher."""
    lower = 2 ** int(np.floor(np.log2(num_heads)))

    def of_power_of_two(n: int) -> Array:
        return 2.0 ** (-8.0 * np.arange(1, n + 1) / n)

    return np.concatenate([of_power_of_two(lower), of_power_of_two(2 * lower)[::2][: num_heads - lower]])


def logits(config: Config, tensors: Tensors, token_ids: Sequence[int]) -> Array:
    """Scores [T, V] after each token."""
    eps, num_heads = config["rms_norm_eps"], config["num_attention_heads"]
    length = len(token_ids)
    slopes = alibi_slopes(num_heads) if is_13b(config) else None
    bases = np.full(length, 10000.0)
    x = tensors["model.embed_tokens.weight"][list(token_ids)]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        normed = rms_norm(x, tensors[prefix + "input_layernorm.weight"], eps)
        packed = linear(normed, tensors, prefix + "self_attn.W_pack")
        q, k, v = (part.reshape(length, num_heads, -1) for part in np.split(packed, 3, axis=-1))
        if slopes is None:
            q, k = rotate(q, bases), rotate(k, bases)
        x = x + linear(attend(q, k, v, slopes), tensors, prefix + "self_attn.o_proj")
        normed = rms_norm(x, tensors[prefix + "post_attention_layernorm.weight"], eps)
        gate, up = (linear(normed, tensors, f"{prefix}mlp.{name}_proj") for name in ("gate", "up"))
        x = x + linear(silu(gate) * up, tensors, prefix + "mlp.down_proj")
    head = tensors["lm_head.weight"]
    if is_baichuan2(config):
        head = head / np.linalg.norm(head, axis=-1, keepdims=True)
    return rms_norm(x, tensors["model.norm.weight"], eps) @ head.T
