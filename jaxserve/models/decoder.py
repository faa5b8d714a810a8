"""The decoder that every family is a variant of: one module, whose switches are in ModelConfig."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxserve.layers.attention import AttentionMetadata, attend
from jaxserve.layers.device_sum import sum_over_devices
from jaxserve.layers.embedding import PositionTable, VocabTable
from jaxserve.layers.linear import OutputProjection, QKVProjection
from jaxserve.layers.mlp import GatedMLP, PlainMLP
from jaxserve.layers.moe import RoutedExperts
from jaxserve.layers.norm import HiddenNorm, HiddenNorms, RMSNorm, WholeNorm, add_and_norm, norm_over_heads
from jaxserve.layers.parameter import abstract_param
from jaxserve.models.config import ModelConfig
from jaxserve.models.head_layout import HeadLayout
from jaxserve.sharding import constrain, tensor_parallel_size
from pallas_kernels.all_reduce import Peers, WorkspaceLayout, why_no_peers
from pallas_kernels.residual_norm.reference import sum_parts


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenPositions:
    """What a step's tokens get from their positions, in every layer.

    Attributes:
        cos_sin: [T, 2, R / 2] float32 in global layers; None without rotation.
        local_cos_sin: the same in local layers.
        alibi_slopes: [K, G] float32; None without ALiBi.
        query_scales: [T] float32, what queries are multiplied by; None for nothing.
    """

    cos_sin: jax.Array | None
    local_cos_sin: jax.Array | None
    alibi_slopes: jax.Array | None
    query_scales: jax.Array | None


class SelfAttention(nnx.Module):
    """Grouped-query attention over the paged pool.

    Args:
        config: the model.
        layer: which layer it is of.
        mesh: the devices.
        param_dtype: of the parameters.
    """

    def __init__(self, config: ModelConfig, layer: int, mesh: Mesh, *, param_dtype: DTypeLike) -> None:
        layout = config.head_layout(tensor_parallel_size(mesh))
        heads = (layout.num_kv_heads, layout.group_size, config.head_dim)
        self.qkv_proj = QKVProjection(config.hidden_size, *heads, bias=config.qkv_bias, mesh=mesh, dtype=param_dtype)
        self.o_proj = OutputProjection(
            config.hidden_size, *heads, bias=config.attention_out_bias, mesh=mesh, dtype=param_dtype
        )
        self.q_norm, self.k_norm = _query_and_key_norms(config, layout, mesh, param_dtype)
        self.scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.soft_cap = config.attention_soft_cap
        self.is_local = config.is_local(layer)
        self.window = config.window if self.is_local else None
        self.mesh = mesh

    def __call__(
        self,
        x: jax.Array,
        positions: TokenPositions,
        metadata: AttentionMetadata,
        kv_pages: jax.Array,
        first_page: jax.Array,
        peers: Peers | None,
    ) -> tuple[jax.Array, jax.Array]:
        """[T, D] and the pages of all layers, this one's from first_page [1] on, to [parts, T, D] as `multiply_split`
        leaves them, and the pages with the step's tokens in them."""
        qkv = self.qkv_proj.in_parts(x)
        if self.q_norm is not None or positions.query_scales is not None:
            qkv = self._normed_and_scaled(sum_parts(qkv, x.dtype), positions.query_scales, peers)[None]
        out, kv_pages = attend(
            qkv,
            kv_pages,
            first_page,
            metadata,
            mesh=self.mesh,
            scale=self.scale,
            cos_sin=positions.local_cos_sin if self.is_local else positions.cos_sin,
            window=self.window,
            soft_cap=self.soft_cap,
            alibi_slopes=positions.alibi_slopes,
            dtype=x.dtype,
        )
        return self.o_proj.in_parts(out), kv_pages

    def _normed_and_scaled(self, qkv: jax.Array, query_scales: jax.Array | None, peers: Peers | None) -> jax.Array:
        """[T, K, G + 2, H] to itself, with its queries and keys normalised and its queries [T] times so much."""
        q, k, v = qkv[:, :, :-2], qkv[:, :, -2], qkv[:, :, -1]
        if isinstance(self.q_norm, WholeNorm) and isinstance(self.k_norm, WholeNorm):
            q, k = norm_over_heads(q, k, self.q_norm, self.k_norm, self.mesh, peers)
        elif isinstance(self.q_norm, RMSNorm) and isinstance(self.k_norm, RMSNorm):
            q, k = self.q_norm(q), self.k_norm(k)
        if query_scales is not None:
            q = q * query_scales[:, None, None, None].astype(q.dtype)
        return jnp.concatenate([q, k[:, :, None], v[:, :, None]], axis=2)


class DecoderLayer(nnx.Module):
    """Attention and feed-forward, each added to the residual stream.

    Args:
        config: the model.
        layer: which layer it is.
        mesh: the devices.
        param_dtype: of the parameters.
    """

    def __init__(self, config: ModelConfig, layer: int, mesh: Mesh, *, param_dtype: DTypeLike) -> None:
        self.self_attn = SelfAttention(config, layer, mesh, param_dtype=param_dtype)
        self.mlp = _feed_forward(config, layer, mesh, param_dtype)
        self.norms = config.layer_norms
        self.parallel = config.parallel_residual
        self.multiplier = config.residual_multiplier
        self.dtype = param_dtype
        self.mesh = mesh

    def __call__(
        self,
        x: jax.Array,
        delta: jax.Array | None,
        first_norm: HiddenNorm,
        positions: TokenPositions,
        metadata: AttentionMetadata,
        kv_pages: jax.Array,
        first_page: jax.Array,
        peers: Peers | None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Run the layer.

        The last sum of a layer is left to the next one, which makes it together with its first norm.

        Args:
            x: [T, D] the residual stream.
            delta: [T, D], or [parts, T, D] as `multiply_split` leaves them, what is still to be added to it; None for
                nothing.
            first_norm: the first of the layer's norms; the others follow it.
            positions: what the tokens get from their positions.
            metadata: where the tokens lie.
            kv_pages: the pages of all layers.
            first_page: [1] int32, where the layer's begin.
            peers: how the devices reach each other's memory; None leaves sums over them to XLA.

        Returns:
            The residual stream, what is to be added to it, and the pages with the step's tokens in them.
        """
        norms = {name: first_norm[number] for number, name in enumerate(self.norms)}
        x, normed = add_and_norm(x, delta, norms.get("attention_norm"), self.mesh, peers)
        attended, kv_pages = self.self_attn(normed, positions, metadata, kv_pages, first_page, peers)
        attended = self._finished(attended, norms.get("attention_post_norm"), peers)
        mlp_norm, mlp_post_norm = norms.get("mlp_norm"), norms.get("mlp_post_norm")
        if self.parallel:
            out = self.mlp.in_parts(normed if mlp_norm is None else mlp_norm(x))
            return x, self._both(attended, self._finished(out, mlp_post_norm, peers), peers), kv_pages
        x, normed = add_and_norm(x, attended, mlp_norm, self.mesh, peers)
        return x, self._finished(self.mlp.in_parts(normed), mlp_post_norm, peers), kv_pages

    def _finished(self, parts: jax.Array, post_norm: HiddenNorm | None, peers: Peers | None) -> jax.Array:
        """What is added to the stream: left in parts where nothing but their sum is missing, else [T, D]."""
        if post_norm is None and self.multiplier == 1.0:
            return parts
        whole = sum_over_devices(parts, self.dtype, self.mesh, peers)
        return self._scaled(whole if post_norm is None else post_norm(whole))

    def _both(self, attended: jax.Array, out: jax.Array, peers: Peers | None) -> jax.Array:
        """The sum of what attention and feed-forward add."""
        if tensor_parallel_size(self.mesh) > 1 and attended.ndim == 3 and attended.shape == out.shape:
            # Device by device, so that one sum over the devices does for both.
            return attended + out
        first, second = (
            sum_over_devices(delta, self.dtype, self.mesh, peers) if delta.ndim == 3 else delta
            for delta in (attended, out)
        )
        return first + second

    def _scaled(self, x: jax.Array) -> jax.Array:
        if self.multiplier == 1.0:
            return x
        # The factor itself must not be rounded to 16 bits.
        return (x.astype(jnp.float32) * self.multiplier).astype(x.dtype)


class Decoder(nnx.Module):
    """A decoder-only model, described but not loaded: its parameters are shapes until arrays are merged in.

    Used functionally: `nnx.split` once at load, `nnx.merge` inside the trace of a step.

    Args:
        config: the model.
        mesh: the devices.
        param_dtype: of weights and activations.
        max_model_len: rows of the tables of positions; the context length if None.

    Raises:
        ConfigError: the model cannot be divided over the mesh.
    """

    def __init__(
        self, config: ModelConfig, mesh: Mesh, *, param_dtype: DTypeLike, max_model_len: int | None = None
    ) -> None:
        rows = max_model_len or config.context_length
        vocab = (config.vocab_size, config.hidden_size)
        self.embed_tokens = VocabTable(*vocab, mesh=mesh, dtype=param_dtype)
        positions = (config.max_position_embeddings, config.hidden_size)
        learned = config.positions == "learned"
        self.embed_positions = PositionTable(*positions, mesh=mesh, dtype=param_dtype) if learned else None
        self.layers = nnx.List(
            [DecoderLayer(config, i, mesh, param_dtype=param_dtype) for i in range(config.num_layers)]
        )
        self.norms = HiddenNorms(
            config.num_layers * len(config.layer_norms) + 1,
            config.hidden_size,
            eps=config.norm_eps,
            mesh=mesh,
            dtype=param_dtype,
            kind=config.norm,
        )
        self.lm_head = None if config.tie_word_embeddings else VocabTable(*vocab, mesh=mesh, dtype=param_dtype)
        self._add_constants(config, mesh, rows)
        self._add_peers(config, mesh, param_dtype)
        self.config = config
        self.mesh = mesh

    def _add_peers(self, config: ModelConfig, mesh: Mesh, param_dtype: DTypeLike) -> None:
        """Where the devices can reach each other's memory: how, which whoever loads the model fills in."""
        size, table, layout = tensor_parallel_size(mesh), None, None
        if why_no_peers(mesh) is None:
            layout = WorkspaceLayout.of(config.hidden_size, jnp.dtype(param_dtype).itemsize, size)
            table = abstract_param(mesh, (size, layout.table_columns), ("device", "address"), "int32")
        self.peer_layout: WorkspaceLayout | None = layout
        self.peer_table: nnx.Param[jax.Array] | None = table

    def _peers(self) -> Peers | None:
        if self.peer_table is None or self.peer_layout is None:
            return None
        return Peers(self.peer_table[...], self.peer_layout)

    def _add_constants(self, config: ModelConfig, mesh: Mesh, rows: int) -> None:
        """Tables that follow from the config. Weights and not constants of the trace: each compiled step would hold its
        own copy."""

        def table(wanted: bool, shape: tuple[int, ...], *axes: str) -> nnx.Param[jax.Array] | None:
            return abstract_param(mesh, shape, axes, "float32") if wanted else None

        rope, layout = config.positions == "rope", config.head_layout(tensor_parallel_size(mesh))
        angles = (rows, 2, (config.rotary_dim or config.head_dim) // 2)
        heads = (layout.num_kv_heads, layout.group_size)
        self.cos_sin = table(rope, angles, "position", "cos_sin", "head_dim")
        self.local_cos_sin = table(rope and config.local_rope is not None, angles, "position", "cos_sin", "head_dim")
        self.alibi_slopes = table(config.positions == "alibi", heads, "kv_heads", "group")
        self.logn_scales = table(config.logn_length is not None, (rows,), "position")

    def __call__(
        self, token_ids: jax.Array, metadata: AttentionMetadata, kv_pages: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Run the layers over one step's tokens.

        Args:
            token_ids: [T] int32.
            metadata: where the tokens lie.
            kv_pages: [L * P, 2, page_size, K, H], page p of layer l at l * P + p.

        Returns:
            The normalised hidden states [T, D], and the pages with the step's keys and values.
        """
        positions = self._positions(metadata.positions)
        peers = self._peers()
        x = constrain(self.embed_tokens.embed(token_ids, peers), self.mesh)
        if self.config.embedding_multiplier != 1.0:
            x = x * jnp.asarray(self.config.embedding_multiplier, x.dtype)
        if self.embed_positions is not None:
            x = x + self.embed_positions.embed(metadata.positions)
        delta = None
        num_pages, num_norms = kv_pages.shape[0] // len(self.layers), len(self.config.layer_norms)
        for i, layer in enumerate(self.layers):
            graphdef, state = nnx.split(layer)
            first_page = jnp.full(1, i * num_pages, jnp.int32)
            where = metadata, kv_pages, first_page, peers
            x, delta, kv_pages = _run_layer(graphdef, state, x, delta, self.norms[i * num_norms], positions, *where)
        last = self.norms[len(self.layers) * num_norms]
        return add_and_norm(x, delta, last, self.mesh, peers)[1], kv_pages

    def _positions(self, positions: jax.Array) -> TokenPositions:
        def rows(table: nnx.Param[jax.Array] | None) -> jax.Array | None:
            return None if table is None else table[...].at[positions].get(mode="clip")

        cos_sin = rows(self.cos_sin)
        return TokenPositions(
            cos_sin=cos_sin,
            local_cos_sin=cos_sin if self.local_cos_sin is None else rows(self.local_cos_sin),
            alibi_slopes=None if self.alibi_slopes is None else self.alibi_slopes[...],
            query_scales=rows(self.logn_scales),
        )

    def compute_logits(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [S, D] to the scores of the next token [S, V], float32."""
        return self._finish_logits(self._head.logits(hidden))

    def greedy_tokens(self, hidden: jax.Array) -> jax.Array:
        """Hidden states [S, D] to the most probable tokens [S] int32, the lower id of equal ones.

        Where devices write into each other's memory, -1 if one waited in vain for another in this step; elsewhere such
        a step does not end.
        """
        return self._head.best_tokens(hidden, self._peers(), self._finish_logits)

    def sampled_tokens(self, hidden: jax.Array, params: Any, draw: Callable[[jax.Array, Any], jax.Array]) -> jax.Array:
        """Hidden states [S, D] to tokens [S] int32 that `draw` makes of scores [R, V] float32 and the params of these
        rows, R of the S or all at once; -1 as in `greedy_tokens`."""
        return self._head.drawn_tokens(hidden, params, self._peers(), self._finish_logits, draw)

    @property
    def _head(self) -> VocabTable:
        return self.embed_tokens if self.lm_head is None else self.lm_head

    def _finish_logits(self, logits: jax.Array) -> jax.Array:
        if self.config.logits_divisor != 1.0:
            logits = logits / self.config.logits_divisor
        cap = self.config.logits_soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)


@partial(jax.jit, static_argnums=0)
def _run_layer(graphdef: nnx.GraphDef[DecoderLayer], state: nnx.State[Any, Any], *args: Any) -> Any:
    """A layer as a function of its own: layers of one structure are traced and lowered once, and XLA inlines them."""
    return nnx.merge(graphdef, state)(*args)


def _query_and_key_norms(
    config: ModelConfig, layout: HeadLayout, mesh: Mesh, param_dtype: DTypeLike
) -> tuple[RMSNorm | WholeNorm | None, RMSNorm | WholeNorm | None]:
    if config.qk_norm is None:
        return None, None
    eps, kind = config.norm_eps, config.norm
    if kind == "layer":
        raise ValueError("queries and keys are normalised by their root mean square only")
    if config.qk_norm == "head":
        q, k = (RMSNorm(config.head_dim, eps=eps, kind=kind, mesh=mesh, dtype=param_dtype) for _ in range(2))
        return q, k
    keys = (layout.num_kv_heads, config.head_dim)
    queries = (layout.num_kv_heads, layout.group_size, config.head_dim)
    q_size, k_size = config.num_query_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return (
        WholeNorm(queries, size=q_size, copies=1, eps=eps, kind=kind, mesh=mesh, dtype=param_dtype),
        WholeNorm(keys, size=k_size, copies=layout.copies, eps=eps, kind=kind, mesh=mesh, dtype=param_dtype),
    )


def _feed_forward(
    config: ModelConfig, layer: int, mesh: Mesh, param_dtype: DTypeLike
) -> GatedMLP | PlainMLP | RoutedExperts:
    if config.experts is not None and config.has_experts(layer):
        return RoutedExperts(
            config.hidden_size,
            config.experts.intermediate_size,
            config.experts.num_experts,
            config.experts.num_experts_per_token,
            normalize_weights=config.experts.normalize_weights,
            mesh=mesh,
            dtype=param_dtype,
        )
    sizes = (config.hidden_size, config.intermediate_size)
    kind = GatedMLP if config.gated_mlp else PlainMLP
    return kind(*sizes, activation=config.activation, bias=config.mlp_bias, mesh=mesh, dtype=param_dtype)
