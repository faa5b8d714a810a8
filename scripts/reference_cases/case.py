"""Case: one checkpoint to record."""

from dataclasses import dataclass
from typing import Any

PROMPT_LENS = (1, 6, 19, 41)


@dataclass(frozen=True)
class Case:
    """One checkpoint to record.

    Attributes:
        config: config.json, word for word: the keys that the family's published checkpoints have, with small sizes.
            Its `dtype` or `torch_dtype` is that of the stored weights; the model computes in float32 from them.
        prompt_lens: tokens of each prompt.
        shard_bytes: largest safetensors file; one file if None.
        generation_eos: end-of-sequence ids for generation_config.json, if not those of config.json.
        max_draws: how many prompts of a length are tried with one model before another model is.
        signed_final_norm: draw the last norm's scales around 0. With tied embeddings a token would otherwise mostly be
            followed by itself, and a greedy continuation would prove little.
        renamed: beginnings of tensor names that published checkpoints write differently, with what they write.
        buffers: for each layer, tensors that published checkpoints hold beside the parameters though they are no
            weights, such as causal masks: shape (`()` is a scalar) and dtype, by name with `{}` for the layer.
    """

    config: dict[str, Any]
    prompt_lens: tuple[int, ...] = PROMPT_LENS
    shard_bytes: int | None = None
    generation_eos: int | list[int] | None = None
    max_draws: int = 60
    signed_final_norm: bool = False
    renamed: tuple[tuple[str, str], ...] = ()
    buffers: tuple[tuple[str, tuple[int, ...], str], ...] = ()

    @property
    def dtype(self) -> str:
        """Name of the stored weights' dtype."""
        return str(self.config.get("dtype") or self.config["torch_dtype"])

    @property
    def num_layers(self) -> int:
        """L, under whichever name the family gives it."""
        names = ("num_hidden_layers", "n_layer")
        return int(next(self.config[name] for name in names if name in self.config))
