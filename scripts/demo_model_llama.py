"""The demo model's mathematics: Hugging Face's Llama as pure functions, for training only.

RMSNorm, rotary embeddings with split halves, grouped-query attention, SwiGLU, tied embeddings. Parameters keep their
Hugging Face names, so that exporting them is only a cast.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

Params = dict[str, Array]


@dataclass(frozen=True)
class ModelConfig:
    """The model's sizes; 5.8 M parameters. head_dim is 64 because that is what attention kernels are made for."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_position_embeddings: int = 1024


def init_params(key: Array, config: ModelConfig) -> Params:
    """Normal(0, 0.02) weights in float32; what writes to the residual stream is scaled down as in GPT-2."""
    d, f, h = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * h, config.num_key_value_heads * h
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, d)}
    for i in range(config.num_hidden_layers):
        prefix = f"model.layers.{i}."
        shapes |= {prefix + f"self_attn.{name}_proj.weight": (n, d) for name, n in (("q", q), ("k", kv), ("v", kv))}
        shapes |= {prefix + "self_attn.o_proj.weight": (d, q), prefix + "mlp.down_proj.weight": (d, f)}
        shapes |= {prefix + f"mlp.{name}_proj.weight": (f, d) for name in ("gate", "up")}
        shapes |= {prefix + f"{name}_layernorm.weight": (d,) for name in ("input", "post_attention")}
    shapes["model.norm.weight"] = (d,)
    params: Params = {}
    for name, subkey in zip(shapes, jax.random.split(key, len(shapes)), strict=True):
        if len(shapes[name]) == 1:
            params[name] = jnp.ones(shapes[name], jnp.float32)
            continue
        into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        scale = 0.02 / (2 * config.num_hidden_layers) ** 0.5 if into_residual else 0.02
        params[name] = scale * jax.random.normal(subkey, shapes[name], jnp.float32)
    return params


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Normalise the last axis in float32, then scale in x's dtype (Zhang and Sennrich 2019)."""
    x32 = x.astype(jnp.float32)
    return weight * (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + eps)).astype(x.dtype)


def rope(x: Array, theta: float) -> Array:
    """Rotary position embedding (Su et al. 2021) of x [B, T, heads, H]; the two halves of H are the pair's parts."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    cos, sin = jnp.cos(angles)[:, None, :].astype(x.dtype), jnp.sin(angles)[:, None, :].astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _dropout(x: Array, rate: float, key: Array | None) -> Array:
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def forward(params: Params, tokens: Array, config: ModelConfig, rate: float = 0.0, key: Array | None = None) -> Array:
    """Logits [B, T, V] of tokens [B, T], in float32. Dropout applies where a key is given."""
    batch, length = tokens.shape
    num_masks = 2 * config.num_hidden_layers + 1
    keys = [None] * num_masks if key is None else list(jax.random.split(key, num_masks))
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads, "v": config.num_key_value_heads}
    embedding = params["model.embed_tokens.weight"]
    attention = attention_implementation() if embedding.dtype == jnp.bfloat16 else "xla"
    x = _dropout(embedding[tokens], rate, keys[-1])
    for i in range(config.num_hidden_layers):
        w = functools.partial(lambda prefix, name: params[f"{prefix}{name}.weight"], f"model.layers.{i}.")
        y = rms_norm(x, w("input_layernorm"), config.rms_norm_eps)
        q, k, v = ((y @ w(f"self_attn.{n}_proj").T).reshape(batch, length, heads[n], -1) for n in "qkv")
        q, k = rope(q, config.rope_theta), rope(k, config.rope_theta)
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=attention)
        x = x + _dropout(y.reshape(batch, length, -1) @ w("self_attn.o_proj").T, rate, keys[2 * i])
        y = rms_norm(x, w("post_attention_layernorm"), config.rms_norm_eps)
        y = (jax.nn.silu(y @ w("mlp.gate_proj").T) * (y @ w("mlp.up_proj").T)) @ w("mlp.down_proj").T
        x = x + _dropout(y, rate, keys[2 * i + 1])
    x = rms_norm(x, params["model.norm.weight"], config.rms_norm_eps)
    return jnp.matmul(x, embedding.T, preferred_element_type=jnp.float32)


@functools.cache
def attention_implementation() -> Literal["cudnn", "xla"]:
    """cuDNN's fused attention where it runs (it never writes the [T, T] scores out), else XLA's plain form."""
    if jax.default_backend() != "gpu":
        return "xla"
    query, other = jnp.ones((2, 128, 4, 64), jnp.bfloat16), jnp.ones((2, 128, 2, 64), jnp.bfloat16)

    def probe(q: Array, k: Array, v: Array) -> Array:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn").sum()

    try:
        jax.block_until_ready(jax.jit(jax.grad(probe, (0, 1, 2)))(query, other, other))
    except Exception as error:  # whatever cuDNN lacks here, the plain form does the same mathematics
        print(f"cuDNN attention does not run ({error}); using the plain form", flush=True)
        return "xla"
    return "cudnn"
