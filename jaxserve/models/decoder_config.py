"""Reading what the config.json of most families have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import cast

from jaxserve.layers.mlp import Activation
from jaxserve.layers.rope import RopeConfig
from jaxserve.models.config import ExpertsConfig, LayerKind, ModelConfig, WeightDType
from jaxserve.models.config_file import ConfigFile, read_json
from jaxserve.models.rope_config import RopeKeys, Ropes, read_ropes

GENERATION_CONFIG_FILE = "generation_config.json"

ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "silu": "silu",
        "swish": "silu",
        "gelu": "gelu",
        "gelu_python": "gelu",
        "gelu_new": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "relu": "relu",
    }
)
# Bounds on what is listed one by one, far above any model's.
MAX_LAYERS, MAX_EXPERTS = 4096, 4096
_LAYER_KINDS: Mapping[str, LayerKind] = MappingProxyType({"full_attention": "global", "sliding_attention": "local"})


@dataclass(frozen=True, kw_only=True)
class DecoderKeys:
    """What a family calls its settings, and what they are if left out: Llama's, unless told otherwise.

    Attributes:
        hidden_size: key of D.
        num_layers: key of L.
        num_query_heads: key of N.
        num_kv_heads: key of K; None if there is none and each query head has its own.
        needs_kv_heads: K may not be left out. Else it is then N.
        intermediate_size: key of F.
        inner_multiple: F is this many times D if left out; F is required if None.
        max_position_embeddings: key of the context.
        default_max_position_embeddings: its value if left out.
        norm_eps: key of what norms add.
        default_norm_eps: its value if left out.
        activation: key of the feed-forward's activation.
        default_activation: its value if left out.
        tied: embeddings are tied if nothing is said.
        head_dim: H if left out; D / N if None.
        rope: how the rotary settings are called; None if there is no rotation.
    """

    hidden_size: str = "hidden_size"
    num_layers: str = "num_hidden_layers"
    num_query_heads: str = "num_attention_heads"
    num_kv_heads: str | None = "num_key_value_heads"
    needs_kv_heads: bool = False
    intermediate_size: str = "intermediate_size"
    inner_multiple: int | None = None
    max_position_embeddings: str = "max_position_embeddings"
    default_max_position_embeddings: int = 2048
    norm_eps: str = "rms_norm_eps"
    default_norm_eps: float = 1e-6
    activation: str = "hidden_act"
    default_activation: str = "silu"
    tied: bool = False
    head_dim: int | None = None
    rope: RopeKeys | None = RopeKeys()


def read_decoder(file: ConfigFile, keys: DecoderKeys) -> ModelConfig:
    """Sizes, norm, activation, positions, tokens and dtype of a config.json. What else a family has, it adds itself.

    Raises:
        CheckpointError: a key is missing, malformed or contradicts another.
    """
    vocab_size = file.integer("vocab_size")
    hidden_size = file.integer(keys.hidden_size)
    num_query_heads, num_kv_heads, head_dim = _heads(file, keys, hidden_size)
    inner = None if keys.inner_multiple is None else keys.inner_multiple * hidden_size
    max_position_embeddings = file.integer(keys.max_position_embeddings, keys.default_max_position_embeddings)
    ropes = Ropes(RopeConfig(), None, head_dim)
    if keys.rope is not None:
        ropes = read_ropes(file, max_position_embeddings, head_dim, keys.rope)
    return ModelConfig(
        architecture=file.values["architectures"][0],
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=file.integer(keys.num_layers, maximum=MAX_LAYERS),
        num_query_heads=num_query_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=file.integer(keys.intermediate_size, inner),
        norm_eps=file.number(keys.norm_eps, keys.default_norm_eps),
        rope=ropes.rope,
        local_rope=ropes.local_rope,
        rotary_dim=None if ropes.rotary_dim == head_dim else ropes.rotary_dim,
        activation=read_activation(file, keys.activation, keys.default_activation),
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=file.boolean("tie_word_embeddings", keys.tied),
        bos_token_id=next(iter(file.token_ids("bos_token_id", vocab_size)), None),
        eos_token_ids=_eos_token_ids(file, vocab_size),
        dtype=_dtype(file),
    )


def read_activation(file: ConfigFile, key: str, default: str) -> Activation:
    """The feed-forward's activation by its name in transformers."""
    name = file.get(key)
    name = default if name is None else name
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise file.error(key, f"is {name!r}, which is not implemented; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def with_window(config: ModelConfig, kinds: Sequence[LayerKind], window: int | None) -> ModelConfig:
    """The same model with a window in its local layers, if it has any."""
    return replace(config, layer_kinds=tuple(kinds), window=window) if "local" in kinds else config


def read_layer_kinds(file: ConfigFile, num_layers: int, default: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
    """Which layers attend to a window: `layer_types`, or what the family makes of its other keys.

    Returns:
        The kind of each layer; empty if all are global.
    """
    types = file.get("layer_types")
    kinds = tuple(default)
    if types is not None:
        if not isinstance(types, list) or any(t not in _LAYER_KINDS for t in types):
            raise file.error("layer_types", f"is {types!r}: only {' and '.join(_LAYER_KINDS)} are implemented")
        if len(types) != num_layers:
            raise file.error("layer_types", f"names {len(types)} layers, but there are {num_layers}")
        kinds = tuple(_LAYER_KINDS[t] for t in types)
    return kinds if "local" in kinds else ()


def check_experts(file: ConfigFile, experts: ExpertsConfig, key: str) -> None:
    """Refuse more experts a token than there are.

    Args:
        file: the config.
        experts: as read from it.
        key: what it calls the number of experts a token.
    """
    if experts.num_experts_per_token > experts.num_experts:
        raise file.error(key, f"is {experts.num_experts_per_token}, but there are {experts.num_experts} experts")


def _heads(file: ConfigFile, keys: DecoderKeys, hidden_size: int) -> tuple[int, int, int]:
    num_query_heads = file.integer(keys.num_query_heads)
    num_kv_heads = num_query_heads
    if keys.num_kv_heads is None:
        file.refuse("num_key_value_heads", (num_query_heads,), "this architecture has one kv head a query head")
    else:
        num_kv_heads = file.integer(keys.num_kv_heads, None if keys.needs_kv_heads else num_query_heads)
        if num_query_heads % num_kv_heads:
            raise file.error(
                keys.num_kv_heads,
                f"is {num_kv_heads}, which does not divide {keys.num_query_heads} ({num_query_heads})",
            )
    head_dim = keys.head_dim
    if head_dim is None:
        if file.get("head_dim") is None and hidden_size % num_query_heads:
            raise file.error(
                keys.num_query_heads,
                f"is {num_query_heads}, which does not divide {keys.hidden_size} ({hidden_size})",
            )
        head_dim = hidden_size // num_query_heads
    head_dim = file.integer("head_dim", head_dim, minimum=2)
    if head_dim % 2:
        raise file.error("head_dim", f"is {head_dim}; it must be an even number")
    return num_query_heads, num_kv_heads, head_dim


def _eos_token_ids(file: ConfigFile, vocab_size: int) -> tuple[int, ...]:
    ids = file.token_ids("eos_token_id", vocab_size)
    path = file.path.with_name(GENERATION_CONFIG_FILE)
    if path.exists():
        ids = ConfigFile(path, read_json(path)).token_ids("eos_token_id", vocab_size) or ids
    return ids


def _dtype(file: ConfigFile) -> WeightDType:
    old, new = file.get("torch_dtype"), file.get("dtype")
    if old is not None and new is not None and old != new:
        raise file.error("dtype", f"is {new!r}, but torch_dtype is {old!r}")
    name = new if new is not None else old if old is not None else "float32"
    if name not in ("float32", "bfloat16", "float16"):
        raise file.error(
            "torch_dtype" if new is None else "dtype", f"must be float32, bfloat16 or float16, got {name!r}"
        )
    return cast(WeightDType, name)
