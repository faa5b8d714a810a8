"""What a decoder-only model is: its sizes, and the switches between the ways its parts are computed."""

from dataclasses import dataclass, field
from typing import Literal

from jaxserve.errors import ConfigError
from jaxserve.layers.mlp import Activation
from jaxserve.layers.norm import NormKind
from jaxserve.layers.rope import RopeConfig
from jaxserve.models.head_layout import HeadLayout

WeightDType = Literal["float32", "bfloat16", "float16"]
LayerKind = Literal["global", "local"]


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Routed experts in place of a feed-forward layer.

    Attributes:
        num_experts: E.
        num_experts_per_token: experts that compute each token.
        intermediate_size: F of each expert.
        normalize_weights: the weights of a token's experts are divided by their sum.
        dense_layers: layers that keep an ordinary feed-forward.
    """

    num_experts: int
    num_experts_per_token: int
    intermediate_size: int
    normalize_weights: bool = True
    dense_layers: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The sizes and switches of a decoder. The defaults are Llama's.

    Attributes:
        architecture: the class name in config.json's `architectures`.
        vocab_size: V.
        hidden_size: D.
        num_layers: L.
        num_query_heads: N.
        num_kv_heads: K, as the checkpoint has them.
        head_dim: H.
        intermediate_size: F.
        norm: how activations are normalised.
        norm_eps: added to the variance or mean square in each norm.
        norm_placement: whether a layer's attention and feed-forward are normalised `before` (their input), `after`
            (their output), or `around` (both).
        parallel_residual: attention and feed-forward both read the layer's input, and are added together.
        shared_norm: with parallel_residual: one norm for both.
        qk_norm: norm of queries and keys before rotation: of each `head`, of the `whole` of all heads, or none.
        qkv_bias: biases on queries, keys and values.
        attention_out_bias: a bias on attention's output projection.
        attention_scale: factor on the scores; H ** -0.5 if None.
        attention_soft_cap: c, where scores s become c * tanh(s / c).
        layer_kinds: of each layer; all global if empty.
        window: local layers: a token sees this many tokens, itself included.
        positions: how tokens know their positions: `rope`, `learned` embeddings, or ALiBi (`alibi`).
        rope: how positions turn into angles, in global layers.
        local_rope: the same in local layers; as in global ones if None.
        rotary_dim: R, the first dimensions of each head that are rotated; all of them if None.
        logn_length: from this length on, queries at position p are multiplied by log(p + 1) / log(logn_length).
        activation: of the feed-forward.
        gated_mlp: the feed-forward's inner values are an activated gate times a second product.
        mlp_bias: biases on the products of the feed-forward.
        experts: routed experts, in place of the feed-forward.
        embedding_multiplier: factor on the embeddings, rounded to their dtype.
        residual_multiplier: factor on what a layer adds to the residual stream.
        logits_divisor: what logits are divided by.
        logits_soft_cap: c, where logits l become c * tanh(l / c).
        normalized_head: rows of the output head are divided by their length.
        max_position_embeddings: the checkpoint's own word on its context, before rope scaling.
        tie_word_embeddings: the output head is the embedding table.
        bos_token_id: the token that begins a text, if there is one.
        eos_token_ids: tokens that end an output; generation_config.json's where it names any.
        dtype: that of the checkpoint's weights.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    norm: NormKind = "rms"
    norm_eps: float = 1e-6
    norm_placement: Literal["before", "after", "around"] = "before"
    parallel_residual: bool = False
    shared_norm: bool = False
    qk_norm: Literal["head", "whole"] | None = None
    qkv_bias: bool = False
    attention_out_bias: bool = False
    attention_scale: float | None = None
    attention_soft_cap: float | None = None
    layer_kinds: tuple[LayerKind, ...] = ()
    window: int | None = None
    positions: Literal["rope", "learned", "alibi"] = "rope"
    rope: RopeConfig = field(default_factory=RopeConfig)
    local_rope: RopeConfig | None = None
    rotary_dim: int | None = None
    logn_length: int | None = None
    activation: Activation = "silu"
    gated_mlp: bool = True
    mlp_bias: bool = False
    experts: ExpertsConfig | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_divisor: float = 1.0
    logits_soft_cap: float | None = None
    normalized_head: bool = False
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: WeightDType = "float32"

    @property
    def context_length(self) -> int:
        """Tokens the model can be expected to handle, rope scaling included: the default of max_model_len."""
        rope = self.rope
        if self.positions == "rope" and rope.kind in ("linear", "dynamic"):
            return int(self.max_position_embeddings * rope.factor)
        if self.positions == "rope" and rope.kind == "yarn" and rope.original_max_position_embeddings is not None:
            return max(self.max_position_embeddings, int(rope.original_max_position_embeddings * rope.factor))
        return self.max_position_embeddings

    @property
    def layer_norms(self) -> tuple[str, ...]:
        """The norms of hidden states that each layer has, in the order of their weights."""
        before, after = self.norm_placement != "after", self.norm_placement != "before"
        wanted = {
            "attention_norm": before,
            "attention_post_norm": after,
            "mlp_norm": before and not self.shared_norm,
            "mlp_post_norm": after,
        }
        return tuple(name for name, has in wanted.items() if has)

    def is_local(self, layer: int) -> bool:
        """Whether a layer attends within the window."""
        return bool(self.layer_kinds) and self.layer_kinds[layer] == "local"

    def has_experts(self, layer: int) -> bool:
        """Whether a layer has routed experts."""
        return self.experts is not None and layer not in self.experts.dense_layers

    def head_layout(self, tensor_parallel_size: int) -> HeadLayout:
        """How heads are laid out over the devices.

        Raises:
            ConfigError: the heads or the feed-forward cannot be divided so.
        """
        size = tensor_parallel_size
        layout = HeadLayout.over(self.num_query_heads, self.num_kv_heads, size)
        inner = {self.intermediate_size} if self.experts is None else {self.experts.intermediate_size}
        if self.experts is not None and self.experts.dense_layers:
            inner.add(self.intermediate_size)
        for columns in sorted(inner):
            if columns % size:
                raise ConfigError(
                    f"tensor_parallel_size {size} does not divide the model's {columns} feed-forward columns; "
                    "take one that does"
                )
        return layout

    def parallel_heads(self, tensor_parallel_size: int) -> tuple[int, int]:
        """K, the kv heads over some devices with their copies, and G, the query heads of each.

        Raises:
            ConfigError: the heads or the feed-forward cannot be divided so.
        """
        layout = self.head_layout(tensor_parallel_size)
        return layout.num_kv_heads, layout.group_size
