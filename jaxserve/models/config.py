"""What a model is, translated from a Hugging Face config.json."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from jaxserve.errors import ConfigError
from jaxserve.layers.rope import RopeConfig
from jaxserve.models.config_file import HARMLESS_KEYS, ConfigFile, read_json
from jaxserve.models.rope_config import read_rope

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
SUPPORTED_ARCHITECTURES = ("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM")

WeightDType = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The sizes and switches of a decoder-only model.

    Attributes:
        architecture: the class name in config.json's `architectures`.
        vocab_size: V.
        hidden_size: D.
        num_layers: L.
        num_query_heads: N.
        num_kv_heads: K, as the checkpoint has them.
        head_dim: H.
        intermediate_size: F.
        rms_norm_eps: added to the mean square in each norm.
        rope: how positions turn into angles.
        max_position_embeddings: the checkpoint's own word on its context, before rope scaling.
        tie_word_embeddings: the output head is the embedding table.
        attention_bias: biases on the four products of attention.
        mlp_bias: biases on the three products of the feed-forward.
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
    rms_norm_eps: float = 1e-6
    rope: RopeConfig = field(default_factory=RopeConfig)
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: WeightDType = "float32"

    @property
    def context_length(self) -> int:
        """Tokens the model can be expected to handle, rope scaling included: the default of max_model_len."""
        rope = self.rope
        if rope.kind in ("linear", "dynamic"):
            return int(self.max_position_embeddings * rope.factor)
        if rope.kind == "yarn" and rope.original_max_position_embeddings is not None:
            return max(self.max_position_embeddings, int(rope.original_max_position_embeddings * rope.factor))
        return self.max_position_embeddings

    def parallel_heads(self, tensor_parallel_size: int) -> tuple[int, int]:
        """How heads are laid out over the devices.

        Fewer kv heads than devices are copied, so that each device has one. Copy j then serves the query heads
        j * G to j * G + G - 1.

        Args:
            tensor_parallel_size: number of devices.

        Returns:
            K, the kv heads with their copies, and G, the query heads of each.

        Raises:
            ConfigError: the heads or the feed-forward cannot be divided so.
        """
        size = tensor_parallel_size
        for name, value in (("query heads", self.num_query_heads), ("feed-forward columns", self.intermediate_size)):
            if value % size:
                raise ConfigError(f"tensor_parallel_size {size} does not divide the model's {value} {name}")
        if self.num_kv_heads % size and size % self.num_kv_heads:
            raise ConfigError(
                f"tensor_parallel_size {size} and the model's {self.num_kv_heads} kv heads do not divide each other"
            )
        num_kv_heads = max(self.num_kv_heads, size)
        return num_kv_heads, self.num_query_heads // num_kv_heads


def load_config(directory: str | Path) -> ModelConfig:
    """Translate a model directory's config.json, and generation_config.json if there is one.

    Raises:
        CheckpointError: a file or key is missing, malformed, contradicts another, or asks for something that is not
            implemented; the message names the file and the key.
    """
    path = Path(directory) / CONFIG_FILE
    file = ConfigFile(path, read_json(path))
    architecture = _architecture(file)
    _refuse_other_mathematics(file, architecture)
    vocab_size = file.integer("vocab_size")
    num_query_heads, num_kv_heads, head_dim = _heads(file, architecture)
    max_position_embeddings = file.integer("max_position_embeddings", 2048)
    config = ModelConfig(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=file.integer("hidden_size"),
        num_layers=file.integer("num_hidden_layers"),
        num_query_heads=num_query_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=file.integer("intermediate_size"),
        rms_norm_eps=file.number("rms_norm_eps", 1e-6),
        rope=read_rope(file, max_position_embeddings, head_dim),
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=file.boolean("tie_word_embeddings", False),
        attention_bias=file.boolean("attention_bias", False),
        mlp_bias=file.boolean("mlp_bias", False),
        bos_token_id=next(iter(file.token_ids("bos_token_id", vocab_size)), None),
        eos_token_ids=_eos_token_ids(file, vocab_size),
        dtype=_dtype(file),
    )
    file.refuse_unknown(HARMLESS_KEYS)
    return config


def _architecture(file: ConfigFile) -> str:
    names = file.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise file.error("architectures", f"must be a list of one name, got {names!r}")
    if names[0] not in SUPPORTED_ARCHITECTURES:
        raise file.error(
            "architectures",
            f"names {names[0]}, which is not supported; supported: {', '.join(SUPPORTED_ARCHITECTURES)}",
        )
    return names[0]


def _refuse_other_mathematics(file: ConfigFile, architecture: str) -> None:
    file.refuse("hidden_act", ("silu", "swish"), "only silu is implemented")
    file.refuse("partial_rotary_factor", (1.0, 1), "rotating a part of each head is not implemented")
    file.refuse("quantization_config", (), "quantized weights are not implemented; use an unquantized checkpoint")
    file.refuse("rope_interleaved", (False,), "interleaved rotation is not implemented")
    file.refuse("is_encoder_decoder", (False,), "only decoder-only models are implemented")
    layers = file.get("layer_types")
    if layers is not None and (not isinstance(layers, list) or any(t != "full_attention" for t in layers)):
        raise file.error("layer_types", f"is {layers!r}: only full_attention is implemented")
    window = file.get("sliding_window")
    if architecture == "MistralForCausalLM" and "sliding_window" not in file.values:
        raise file.error("sliding_window", "is missing, which for Mistral means 4096; set it to null if there is none")
    if window is not None and file.get("use_sliding_window") is not False:
        raise file.error("sliding_window", f"is {window!r}: attention within a window is not implemented")


def _heads(file: ConfigFile, architecture: str) -> tuple[int, int, int]:
    num_query_heads = file.integer("num_attention_heads")
    # Mistral's own default is 8, Llama's is one kv head a query head; only the latter may be left out.
    default = num_query_heads if architecture != "MistralForCausalLM" else None
    num_kv_heads = file.integer("num_key_value_heads", default)
    if num_query_heads % num_kv_heads:
        raise file.error(
            "num_key_value_heads", f"is {num_kv_heads}, which does not divide num_attention_heads ({num_query_heads})"
        )
    hidden_size = file.integer("hidden_size")
    if file.get("head_dim") is None and hidden_size % num_query_heads:
        raise file.error(
            "num_attention_heads", f"is {num_query_heads}, which does not divide hidden_size ({hidden_size})"
        )
    head_dim = file.integer("head_dim", hidden_size // num_query_heads, minimum=2)
    if head_dim % 2:
        raise file.error("head_dim", f"is {head_dim}; rotary embeddings need an even number")
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
