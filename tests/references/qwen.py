"""Qwen 1 in plain NumPy, written from the Qwen technical report (Bai et al. 2023, section 2.3 and 3) and its README.

Its own implementation is remote code beside the checkpoints, which is not run here; this is independent of it.

Beyond `seq_length` tokens two things change. logn attention: the query at position p is multiplied by
log(p + 1) / log(seq_length). Dynamic NTK: the rotary base is multiplied by alpha^(H / (H - 2)), with
alpha = 2^ceil(log2(n / seq_length) + 1) - 1 for a sequence of n tokens. As published, n is the length of the prompt;
here it is p + 1 at position p (docs/decisions/0007-dynamic-ntk-by-position.md). Up to `seq_length` tokens both say
alpha = 1: the case `qwen` stays within, and there this is the published definition. The case `qwen_long` goes beyond.
"""

from collections.abc import Sequence

import numpy as np

from tests.references.blocks import Array, Config, Tensors, TensorShapes, attend, linear, rms_norm, rotate, silu


def tensor_shapes(config: Config) -> TensorShapes:
    """Names and shapes of a checkpoint's tensors."""
    d, f, v = config["hidden_size"], config["intermediate_size"] // 2, config["vocab_size"]
    shapes: TensorShapes = {"transformer.wte.weight": (v, d)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"transformer.h.{layer}."
        shapes |= {
            prefix + "ln_1.weight": (d,),
            prefix + "attn.c_attn.weight": (3 * d, d),
            prefix + "attn.c_attn.bias": (3 * d,),
            prefix + "attn.c_proj.weight": (d, d),
            prefix + "ln_2.weight": (d,),
            prefix + "mlp.w1.weight": (f, d),
            prefix + "mlp.w2.weight": (f, d),
            prefix + "mlp.c_proj.weight": (d, f),
        }
    return shapes | {"transformer.ln_f.weight": (d,), "lm_head.weight": (v, d)}


def ntk_alphas(lengths: Array, seq_length: int) -> Array:
    """What multiplies the base (before the exponent) for sequences of these lengths."""
    return np.maximum(2.0 ** np.ceil(np.log2(lengths / seq_length) + 1) - 1, 1.0)


def logits(config: Config, tensors: Tensors, token_ids: Sequence[int], ntk_length: int | None = None) -> Array:
    """Scores [T, V] after each token.

    Args:
        config: config.json.
        tensors: of the checkpoint.
        token_ids: T ids.
        ntk_length: use the published definition, one alpha for all positions, that of a prompt of this length.
    """
    eps, seq_length = config["layer_norm_epsilon"], config["seq_length"]
    head_dim, length = config["kv_channels"], len(token_ids)
    lengths = np.arange(1.0, length + 1)
    bases = np.full(length, float(config["rotary_emb_base"]))
    if config["use_dynamic_ntk"]:
        alphas = ntk_alphas(lengths if ntk_length is None else np.full(length, float(ntk_length)), seq_length)
        bases = bases * alphas ** (head_dim / (head_dim - 2))
    logn = np.ones(length)
    if config["use_logn_attn"]:
        logn = np.where(lengths > seq_length, np.log(lengths) / np.log(seq_length), 1.0)
    x = tensors["transformer.wte.weight"][list(token_ids)]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"transformer.h.{layer}."
        packed = linear(rms_norm(x, tensors[prefix + "ln_1.weight"], eps), tensors, prefix + "attn.c_attn")
        q, k, v = (part.reshape(length, -1, head_dim) for part in np.split(packed, 3, axis=-1))
        q = rotate(q, bases) * logn[:, None, None]
        x = x + linear(attend(q, rotate(k, bases), v), tensors, prefix + "attn.c_proj")
        normed = rms_norm(x, tensors[prefix + "ln_2.weight"], eps)
        up, gate = (linear(normed, tensors, f"{prefix}mlp.{name}") for name in ("w1", "w2"))
        x = x + linear(up * silu(gate), tensors, prefix + "mlp.c_proj")
    return linear(rms_norm(x, tensors["transformer.ln_f.weight"], eps), tensors, "lm_head")
