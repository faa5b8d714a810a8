"""Where a family's checkpoints keep the parts of a decoder, and the sources of its parameters made from that."""

from collections.abc import Iterator
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxserve.layers.position_bias import alibi_slopes, logn_scales
from jaxserve.layers.rope import Float32Array, rope_table
from jaxserve.models import places
from jaxserve.models.config import ModelConfig
from jaxserve.models.weights import CheckpointTensor, ParamPath, Place, WeightSource


@dataclass(frozen=True, kw_only=True)
class WeightMap:
    """The names of a checkpoint's tensors, without `.weight` and `.bias`. The defaults are Llama's.

    Those of a layer follow `layers` and the layer's number. Names of parts that the model does not have are not used.

    Attributes:
        embedding: token embeddings.
        positions: learned position embeddings.
        layers: what comes before a layer's number.
        attention_norm: norm before attention.
        attention_post_norm: norm after attention.
        mlp_norm: norm before the feed-forward.
        mlp_post_norm: norm after the feed-forward.
        qkv: queries, keys and values; one name if they are packed.
        packing: how they are packed (`places.PackedQKV`).
        attention_out: attention's output projection.
        q_norm: norm of queries.
        k_norm: norm of keys.
        up: the gate and the up product; one name if they are packed in that order, or if there is no gate.
        down: the down product.
        router: what scores the experts.
        experts: what comes before an expert's number.
        expert_products: gate, up and down product of an expert.
        final_norm: norm before the output head.
        head: the output head.
        transposed: matrices lie inputs first, as GPT-2's do.
        optional_prefix: what names in some checkpoints lack.
    """

    embedding: str = "model.embed_tokens"
    positions: str = ""
    layers: str = "model.layers"
    attention_norm: str = "input_layernorm"
    attention_post_norm: str = "post_attention_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    mlp_post_norm: str = "post_feedforward_layernorm"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    packing: places.Packing = "stacked"
    attention_out: str = "self_attn.o_proj"
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    router: str = "mlp.gate"
    experts: str = "mlp.experts"
    expert_products: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    final_norm: str = "model.norm"
    head: str = "lm_head"
    transposed: bool = False
    optional_prefix: str = ""


def decoder_sources(names: WeightMap, config: ModelConfig, tensor_parallel_size: int) -> dict[ParamPath, WeightSource]:
    """The source of every parameter of `jaxserve.models.decoder.Decoder` that checkpoints hold, by its path."""
    return dict(_Sources(names, config, tensor_parallel_size).all())


def decoder_constants(
    config: ModelConfig, max_model_len: int, tensor_parallel_size: int
) -> dict[ParamPath, Float32Array]:
    """The parameters that no checkpoint holds."""
    constants: dict[ParamPath, Float32Array] = {}
    if config.positions == "rope":
        rotary_dim = config.rotary_dim or config.head_dim
        constants[("cos_sin",)] = rope_table(config.rope, rotary_dim, max_model_len)
        if config.local_rope is not None:
            constants[("local_cos_sin",)] = rope_table(config.local_rope, rotary_dim, max_model_len)
    if config.positions == "alibi":
        slopes = jnp.asarray(alibi_slopes(config.num_query_heads))
        constants[("alibi_slopes",)] = np.asarray(config.head_layout(tensor_parallel_size).queries(slopes))
    if config.logn_length is not None:
        constants[("logn_scales",)] = logn_scales(config.logn_length, max_model_len)
    return constants


class _Sources:
    """Builds the sources of one model over some devices."""

    def __init__(self, names: WeightMap, config: ModelConfig, tensor_parallel_size: int) -> None:
        self.names = names
        self.config = config
        self.size = tensor_parallel_size
        self.layout = config.head_layout(tensor_parallel_size)

    def all(self) -> Iterator[tuple[ParamPath, WeightSource]]:
        config, names = self.config, self.names
        yield ("embed_tokens", "weight"), self._vocab_table(names.embedding)
        if config.positions == "learned":
            shape = (config.max_position_embeddings, config.hidden_size)
            tensor = CheckpointTensor(f"{names.positions}.weight", shape, ("position", "embed"))
            yield ("embed_positions", "weight"), WeightSource((tensor,))
        for i in range(config.num_layers):
            for path, source in self._layer(i, f"{names.layers}.{i}"):
                yield ("layers", i, *path), source
        yield from self._norms()
        if not config.tie_word_embeddings:
            place = (places.unit_rows,) if config.normalized_head else ()
            yield ("lm_head", "weight"), self._vocab_table(names.head, place)

    def _layer(self, index: int, prefix: str) -> Iterator[tuple[ParamPath, WeightSource]]:
        config = self.config
        yield from self._attention(prefix)
        if config.has_experts(index):
            yield from self._experts(prefix)
        else:
            yield from self._mlp(prefix)

    def _attention(self, prefix: str) -> Iterator[tuple[ParamPath, WeightSource]]:
        config, names, layout = self.config, self.names, self.layout
        for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
            yield ("self_attn", "qkv_proj", kind), self._qkv(prefix, kind)
        heads_size = config.num_query_heads * config.head_dim
        tensor = self._matrix(f"{prefix}.{names.attention_out}", config.hidden_size, heads_size, inputs_axis="heads")
        place = places.AttentionOut(layout, names.transposed)
        yield ("self_attn", "o_proj", "weight"), WeightSource((tensor,), (place,))
        if config.attention_out_bias:
            yield ("self_attn", "o_proj", "bias"), self._vector(f"{prefix}.{names.attention_out}.bias")
        if config.qk_norm == "head":
            for part in ("q_norm", "k_norm"):
                tensor = CheckpointTensor(
                    f"{prefix}.{getattr(names, part)}.weight", (config.head_dim,), ("head_dim",), scale=None
                )
                yield ("self_attn", part, "weight"), WeightSource((tensor,))
        elif config.qk_norm == "whole":
            vectors: tuple[tuple[str, int, Place], ...] = (
                ("q_norm", config.num_query_heads, places.QueryVector(layout)),
                ("k_norm", config.num_kv_heads, places.KeyVector(layout)),
            )
            for part, heads, vector in vectors:
                name = f"{prefix}.{getattr(names, part)}.weight"
                size = heads * config.head_dim
                tensor = CheckpointTensor(name, (size,), (self._split("heads", size),), scale=None)
                yield ("self_attn", part, "weight"), WeightSource((tensor,), (vector,))

    def _qkv(self, prefix: str, kind: str) -> WeightSource:
        config, names, layout = self.config, self.names, self.layout
        q_size, kv_size = config.num_query_heads * config.head_dim, config.num_kv_heads * config.head_dim
        make = self._matrix if kind == "weight" else self._bias
        if len(names.qkv) == 1:
            tensor = make(f"{prefix}.{names.qkv[0]}", q_size + 2 * kv_size, config.hidden_size, outputs_axis="heads")
            transposed = names.transposed and kind == "weight"
            return WeightSource((tensor,), (places.PackedQKV(layout, names.packing, transposed),))
        # Copied kv heads cannot be split before they are copied.
        kv_axis = "kv_heads" if layout.copies == 1 else "replicated"
        sizes = ((q_size, "heads"), (kv_size, kv_axis), (kv_size, kv_axis))
        tensors = tuple(
            make(f"{prefix}.{name}", size, config.hidden_size, outputs_axis=axis)
            for name, (size, axis) in zip(names.qkv, sizes, strict=True)
        )
        group_size = layout.group_size
        places_qkv: tuple[Place, ...] = (
            places.Queries(layout),
            places.KeysOrValues(layout, group_size),
            places.KeysOrValues(layout, group_size + 1),
        )
        return WeightSource(tensors, places_qkv)

    def _mlp(self, prefix: str) -> Iterator[tuple[ParamPath, WeightSource]]:
        config, names = self.config, self.names
        inner, hidden = config.intermediate_size, config.hidden_size
        for kind in ("weight", "bias") if config.mlp_bias else ("weight",):
            make = self._matrix if kind == "weight" else self._bias
            part = "gate_up_proj" if config.gated_mlp else "up_proj"
            packed = config.gated_mlp and len(names.up) == 1
            tensors = tuple(
                make(f"{prefix}.{name}", inner * (2 if packed else 1), hidden, outputs_axis="mlp") for name in names.up
            )
            transposed: tuple[Place, ...] = (places.transposed,) if names.transposed and kind == "weight" else ()
            rows: tuple[Place, ...] = (places.reshaped,) if packed else (places.Row(0), places.Row(1))
            yield ("mlp", part, kind), WeightSource(tensors, rows if config.gated_mlp else transposed)
            if kind == "weight":
                tensor = self._matrix(f"{prefix}.{names.down}", hidden, inner, inputs_axis="mlp")
                yield ("mlp", "down_proj", kind), WeightSource((tensor,), transposed)
            else:
                yield ("mlp", "down_proj", kind), self._vector(f"{prefix}.{names.down}.bias")

    def _experts(self, prefix: str) -> Iterator[tuple[ParamPath, WeightSource]]:
        experts, hidden = self.config.experts, self.config.hidden_size
        assert experts is not None
        router = CheckpointTensor(
            f"{prefix}.{self.names.router}.weight", (experts.num_experts, hidden), ("replicated", "embed")
        )
        yield ("mlp", "router", "weight"), WeightSource((router,))
        gate, up, down = self.names.expert_products
        count, inner = experts.num_experts, experts.intermediate_size
        name = f"{prefix}.{self.names.experts}"
        both = tuple(
            self._matrix(f"{name}.{i}.{product}", inner, hidden, outputs_axis="mlp")
            for i in range(count)
            for product in (gate, up)
        )
        indices = tuple(i for i in range(count) for _ in range(2))
        yield (
            ("mlp", "gate_up_proj", "weight"),
            WeightSource(both, (places.ExpertRow(0), places.ExpertRow(1)) * count, indices),
        )
        downs = tuple(self._matrix(f"{name}.{i}.{down}", hidden, inner, inputs_axis="mlp") for i in range(count))
        yield ("mlp", "down_proj", "weight"), WeightSource(downs, (places.indexed,) * count, tuple(range(count)))

    def _norms(self) -> Iterator[tuple[ParamPath, WeightSource]]:
        """Those of all layers, and the last."""
        config, names = self.config, self.names
        parts = [getattr(names, part) for part in config.layer_norms]
        norms = [f"{names.layers}.{i}.{part}" for i in range(config.num_layers) for part in parts] + [names.final_norm]
        for kind in ("weight", "bias") if config.norm == "layer" else ("weight",):
            # Weights of ones and small biases, where values are made up.
            scale = None if kind == "weight" else 0.02
            shape = (config.hidden_size,)
            tensors = tuple(CheckpointTensor(f"{name}.{kind}", shape, ("embed",), scale=scale) for name in norms)
            yield ("norms", kind), WeightSource(tensors, (places.indexed,) * len(norms), tuple(range(len(norms))))

    def _vector(self, name: str) -> WeightSource:
        """A bias [D], which every device holds."""
        return WeightSource((CheckpointTensor(name, (self.config.hidden_size,), ("embed",)),))

    def _vocab_table(self, name: str, place: tuple[Place, ...] = ()) -> WeightSource:
        shape = (self.config.vocab_size, self.config.hidden_size)
        rows = -(-self.config.vocab_size // self.size) * self.size
        return WeightSource((CheckpointTensor(f"{name}.weight", shape, ("vocab", "embed"), rows=rows),), place)

    def _matrix(
        self, name: str, outputs: int, inputs: int, *, outputs_axis: str = "embed", inputs_axis: str = "embed"
    ) -> CheckpointTensor:
        """A matrix [outputs, inputs], or [inputs, outputs] where they lie transposed."""
        shape = (outputs, inputs)
        axes = (self._split(outputs_axis, outputs), self._split(inputs_axis, inputs))
        if self.names.transposed:
            shape, axes = shape[::-1], axes[::-1]
        return CheckpointTensor(f"{name}.weight", shape, axes)

    def _bias(self, name: str, outputs: int, inputs: int, *, outputs_axis: str) -> CheckpointTensor:
        """A bias [outputs]."""
        return CheckpointTensor(f"{name}.bias", (outputs,), (self._split(outputs_axis, outputs),))

    def _split(self, axis: str, size: int) -> str:
        """The axis, if the devices divide it; packed heads may not divide before they are put in place."""
        return axis if size % self.size == 0 else "replicated"
