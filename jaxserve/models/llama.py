"""The Llama family: Llama 1 to 3, and Mistral without its sliding window."""

import jax
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxserve.layers.attention import AttentionMetadata, attend
from jaxserve.layers.embedding import VocabTable
from jaxserve.layers.linear import OutputProjection, QKVProjection
from jaxserve.layers.mlp import GatedMLP
from jaxserve.layers.norm import RMSNorm
from jaxserve.layers.parameter import abstract_param
from jaxserve.models.config import ModelConfig
from jaxserve.sharding import constrain, tensor_parallel_size


class LlamaAttention(nnx.Module):
    """Grouped-query attention with rotary embeddings over the paged pool.

    Args:
        config: the model.
        mesh: the devices.
        param_dtype: of the parameters.
    """

    def __init__(self, config: ModelConfig, mesh: Mesh, *, param_dtype: DTypeLike) -> None:
        num_kv_heads, group_size = config.parallel_heads(tensor_parallel_size(mesh))
        sizes = (config.hidden_size, num_kv_heads, group_size, config.head_dim)
        self.qkv_proj = QKVProjection(*sizes, bias=config.attention_bias, mesh=mesh, dtype=param_dtype)
        self.o_proj = OutputProjection(*sizes, bias=config.attention_bias, mesh=mesh, dtype=param_dtype)
        self.scale = config.head_dim**-0.5
        self.mesh = mesh

    def __call__(
        self, x: jax.Array, cos_sin: jax.Array, metadata: AttentionMetadata, kv_pages: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """[T, D] and [T, 2, H / 2] and one layer's pages to [T, D] and the pages with the step's tokens in them."""
        q, k, v = self.qkv_proj(x)
        out, kv_pages = attend(q, k, v, kv_pages, metadata, mesh=self.mesh, scale=self.scale, cos_sin=cos_sin)
        return self.o_proj(out), kv_pages


class LlamaDecoderLayer(nnx.Module):
    """Attention and feed-forward, each on the normalised residual stream and added back to it.

    Args:
        config: the model.
        mesh: the devices.
        param_dtype: of the parameters.
    """

    def __init__(self, config: ModelConfig, mesh: Mesh, *, param_dtype: DTypeLike) -> None:
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(size, eps=eps, mesh=mesh, dtype=param_dtype)
        self.self_attn = LlamaAttention(config, mesh, param_dtype=param_dtype)
        self.post_attention_layernorm = RMSNorm(size, eps=eps, mesh=mesh, dtype=param_dtype)
        self.mlp = GatedMLP(size, config.intermediate_size, bias=config.mlp_bias, mesh=mesh, dtype=param_dtype)

    def __call__(
        self, x: jax.Array, cos_sin: jax.Array, metadata: AttentionMetadata, kv_pages: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The residual stream [T, D] after this layer, and the layer's pages."""
        attended, kv_pages = self.self_attn(self.input_layernorm(x), cos_sin, metadata, kv_pages)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), kv_pages


class Llama(nnx.Module):
    """A Llama model, described but not loaded: its parameters are shapes until arrays are merged in.

    Used functionally: `nnx.split` once at load, `nnx.merge` inside the trace of a step.

    Args:
        config: the model.
        mesh: the devices.
        param_dtype: of weights and activations.
        max_model_len: rows of the table of rotary embeddings; the context length if None.

    Raises:
        ConfigError: the model cannot be divided over the mesh.
    """

    def __init__(
        self, config: ModelConfig, mesh: Mesh, *, param_dtype: DTypeLike, max_model_len: int | None = None
    ) -> None:
        rows = max_model_len or config.context_length
        self.embed_tokens = VocabTable(config.vocab_size, config.hidden_size, mesh=mesh, dtype=param_dtype)
        self.layers = nnx.List(
            [LlamaDecoderLayer(config, mesh, param_dtype=param_dtype) for _ in range(config.num_layers)]
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, mesh=mesh, dtype=param_dtype)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else VocabTable(config.vocab_size, config.hidden_size, mesh=mesh, dtype=param_dtype)
        )
        # A weight and not a constant of the trace: each compiled step would hold its own copy.
        self.cos_sin = abstract_param(
            mesh, (rows, 2, config.head_dim // 2), ("position", "cos_sin", "head_dim"), "float32"
        )
        self.mesh = mesh

    def __call__(
        self, token_ids: jax.Array, metadata: AttentionMetadata, kv_pages: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Run the layers over one step's tokens.

        Args:
            token_ids: [T] int32.
            metadata: where the tokens lie.
            kv_pages: one array [P, 2, page_size, K, H] a layer.

        Returns:
            The normalised hidden states [T, D], and the pages with the step's keys and values.
        """
        cos_sin = self.cos_sin[...].at[metadata.positions].get(mode="clip")
        x = constrain(self.embed_tokens.embed(token_ids), self.mesh)
        written = []
        for layer, pages in zip(self.layers, kv_pages, strict=True):
            x, pages = layer(x, cos_sin, metadata, pages)
            written.append(pages)
        return self.norm(x), tuple(written)

    def compute_logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [S, D] to the scores of the next token [S, V], float32."""
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        return head.logits(hidden)
