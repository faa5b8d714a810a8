"""How the tensors of a checkpoint become a model's parameters.

A checkpoint holds Hugging Face tensors, one a product. A parameter may join several of them and be laid out for the
mesh: each `WeightSource` says which tensors it needs, how they are split while loading, and where in the parameter
they go, which happens on the devices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from jaxserve.layers.rope import Float32Array, rope_table
from jaxserve.models.config import ModelConfig

ParamPath = tuple[str | int, ...]
Place = Callable[[jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class CheckpointTensor:
    """One tensor as checkpoints store it.

    Attributes:
        name: its Hugging Face name.
        shape: its shape there.
        axes: the logical axis of each dimension, by which it is split while loading.
        rows: first dimension after loading, if rows of zeros are added; else that of `shape`.
        scale: standard deviation of the values that the load format `dummy` gives it; None for ones (norms).
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    rows: int | None = None
    scale: float | None = 0.02

    @property
    def loaded_shape(self) -> tuple[int, ...]:
        """The shape after loading, padding included."""
        return self.shape if self.rows is None else (self.rows, *self.shape[1:])


@dataclass(frozen=True)
class WeightSource:
    """Where one parameter comes from.

    Attributes:
        tensors: what it is made of.
        places: for each tensor, a traceable function of the parameter so far and the tensor that puts it in its place;
            none if the parameter is the one tensor as it is. Tensors that go to the same place of parameters of the
            same shapes share one function, so that it is compiled once.
    """

    tensors: tuple[CheckpointTensor, ...]
    places: tuple[Place, ...] = ()


def llama_weights(config: ModelConfig, tensor_parallel_size: int) -> dict[ParamPath, WeightSource]:
    """The source of every parameter of `jaxserve.models.llama.Llama` but the rotary table, by its path."""
    size = tensor_parallel_size
    layer = _LlamaLayer(config, size)
    sources: dict[ParamPath, WeightSource] = {
        ("embed_tokens", "weight"): _vocab_table("model.embed_tokens", config, size)
    }
    for i in range(config.num_layers):
        for path, source in layer.sources(f"model.layers.{i}").items():
            sources[("layers", i, *path)] = source
    sources[("norm", "weight")] = _norm("model.norm", config)
    if not config.tie_word_embeddings:
        sources[("lm_head", "weight")] = _vocab_table("lm_head", config, size)
    return sources


def llama_constants(config: ModelConfig, max_model_len: int) -> dict[ParamPath, Float32Array]:
    """The parameters that no checkpoint holds."""
    return {("cos_sin",): rope_table(config.rope, config.head_dim, max_model_len)}


class _LlamaLayer:
    """The sources of one decoder layer; the placing functions are shared by all layers."""

    def __init__(self, config: ModelConfig, tensor_parallel_size: int) -> None:
        self.config = config
        _, group_size = config.parallel_heads(tensor_parallel_size)
        self.places_qkv = (
            partial(_place_queries, group_size),
            partial(_place_keys_or_values, group_size),
            partial(_place_keys_or_values, group_size + 1),
        )
        # Copied kv heads cannot be split before they are copied.
        self.kv_axis = "kv_heads" if config.num_kv_heads % tensor_parallel_size == 0 else "replicated"

    def sources(self, prefix: str) -> dict[ParamPath, WeightSource]:
        sources: dict[ParamPath, WeightSource] = {
            ("input_layernorm", "weight"): _norm(f"{prefix}.input_layernorm", self.config),
            ("post_attention_layernorm", "weight"): _norm(f"{prefix}.post_attention_layernorm", self.config),
        }
        kinds = ("weight", "bias") if self.config.attention_bias else ("weight",)
        for kind in kinds:
            sources |= self._attention(f"{prefix}.self_attn", kind)
        kinds = ("weight", "bias") if self.config.mlp_bias else ("weight",)
        for kind in kinds:
            sources |= self._mlp(f"{prefix}.mlp", kind)
        return sources

    def _attention(self, prefix: str, kind: str) -> dict[ParamPath, WeightSource]:
        c = self.config
        q_size, kv_size = c.num_query_heads * c.head_dim, c.num_kv_heads * c.head_dim
        qkv = (
            _outputs_first(f"{prefix}.q_proj", kind, q_size, "heads", c.hidden_size),
            _outputs_first(f"{prefix}.k_proj", kind, kv_size, self.kv_axis, c.hidden_size),
            _outputs_first(f"{prefix}.v_proj", kind, kv_size, self.kv_axis, c.hidden_size),
        )
        out = _inputs_split(f"{prefix}.o_proj", kind, c.hidden_size, "heads", q_size)
        return {
            ("self_attn", "qkv_proj", kind): WeightSource(qkv, self.places_qkv),
            ("self_attn", "o_proj", kind): WeightSource((out,), (_place_reshaped,) if kind == "weight" else ()),
        }

    def _mlp(self, prefix: str, kind: str) -> dict[ParamPath, WeightSource]:
        c = self.config
        gate_up = tuple(
            _outputs_first(f"{prefix}.{name}_proj", kind, c.intermediate_size, "mlp", c.hidden_size)
            for name in ("gate", "up")
        )
        down = _inputs_split(f"{prefix}.down_proj", kind, c.hidden_size, "mlp", c.intermediate_size)
        return {
            ("mlp", "gate_up_proj", kind): WeightSource(gate_up, (_place_gate, _place_up)),
            ("mlp", "down_proj", kind): WeightSource((down,)),
        }


def _norm(name: str, config: ModelConfig) -> WeightSource:
    return WeightSource((CheckpointTensor(f"{name}.weight", (config.hidden_size,), ("embed",), scale=None),))


def _vocab_table(name: str, config: ModelConfig, tensor_parallel_size: int) -> WeightSource:
    shape = (config.vocab_size, config.hidden_size)
    rows = -(-config.vocab_size // tensor_parallel_size) * tensor_parallel_size
    return WeightSource((CheckpointTensor(f"{name}.weight", shape, ("vocab", "embed"), rows=rows),))


def _outputs_first(name: str, kind: str, outputs: int, axis: str, inputs: int) -> CheckpointTensor:
    """A matrix [outputs, inputs] split over its outputs, or its bias."""
    if kind == "bias":
        return CheckpointTensor(f"{name}.bias", (outputs,), (axis,))
    return CheckpointTensor(f"{name}.weight", (outputs, inputs), (axis, "embed"))


def _inputs_split(name: str, kind: str, outputs: int, axis: str, inputs: int) -> CheckpointTensor:
    """A matrix [outputs, inputs] split over its inputs, or its bias, which every device holds."""
    if kind == "bias":
        return CheckpointTensor(f"{name}.bias", (outputs,), ("embed",))
    return CheckpointTensor(f"{name}.weight", (outputs, inputs), ("embed", axis))


def _place_queries(group_size: int, param: jax.Array, tensor: jax.Array) -> jax.Array:
    """[N * H, ...] into the first G of each group of [K, G + 2, H, ...]."""
    num_kv_heads, _, *rest = param.shape
    return param.at[:, :group_size].set(tensor.reshape(num_kv_heads, group_size, *rest))


def _place_keys_or_values(index: int, param: jax.Array, tensor: jax.Array) -> jax.Array:
    """[K0 * H, ...] into one row of each group of [K, G + 2, H, ...], each of the K0 kv heads copied K / K0 times."""
    num_kv_heads, _, *rest = param.shape
    heads = tensor.reshape(-1, *rest)
    return param.at[:, index].set(jnp.repeat(heads, num_kv_heads // heads.shape[0], axis=0))


def _place_reshaped(param: jax.Array, tensor: jax.Array) -> jax.Array:
    """[D, N * H] as [D, K, G, H]."""
    return param.at[...].set(tensor.reshape(param.shape))


def _place_gate(param: jax.Array, tensor: jax.Array) -> jax.Array:
    """[F, ...] into [2, F, ...]."""
    return param.at[0].set(tensor)


def _place_up(param: jax.Array, tensor: jax.Array) -> jax.Array:
    """[F, ...] into [2, F, ...]."""
    return param.at[1].set(tensor)
