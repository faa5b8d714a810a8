"""Reading config.json: checked values by key, and which keys are understood."""

import json
import sys
from pathlib import Path
from typing import Any

from jaxserve.errors import CheckpointError

# Keys that do not change what the model computes: provenance, training, and defaults of other programs.
HARMLESS_KEYS = frozenset(
    """
    model_type transformers_version use_cache initializer_range pad_token_id attention_dropout pretraining_tp auto_map
    max_sequence_length max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size num_return_sequences
    encoder_no_repeat_ngram_size bad_words_ids output_scores return_dict_in_generate remove_invalid_values
    output_attentions output_hidden_states return_dict torchscript use_bfloat16 tf_legacy_loss is_decoder
    id2label label2id problem_type task_specific_params finetuning_task tokenizer_class prefix sep_token_id
    decoder_start_token_id chunk_size_feed_forward unk_token_id cls_token_id mask_token_id is_llama_config
    transformers.js_config unsloth_fixed unsloth_version attn_implementation max_window_layers resid_pdrop embd_pdrop
    hidden_dropout attention_probs_dropout_prob dropout gradient_checkpointing num_logits_to_keep
    cache_implementation output_router_logits router_aux_loss_coef router_jitter_noise custom_pipelines
    """.split()
)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file is missing, is not JSON or is not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; a model directory holds config.json and its weights") from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, not an object")
    return value


class ConfigFile:
    """The keys of one JSON object, each checked as it is taken.

    Args:
        path: the file, named in every error.
        values: its content.
        prefix: what comes before a key in errors, where `values` is an object inside the file.
    """

    def __init__(self, path: Path, values: dict[str, Any], prefix: str = "") -> None:
        self.path = path
        self.values = values
        self._prefix = prefix
        self._taken: set[str] = set()

    def error(self, key: str, problem: str) -> CheckpointError:
        """The error that names the file and a key."""
        return CheckpointError(f"{self.path}: {self._prefix}{key} {problem}")

    def get(self, key: str) -> Any:
        """The value of a key, unchecked; None if it is missing."""
        self._taken.add(key)
        return self.values.get(key)

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1, maximum: int = 2**31 - 1) -> int:
        """An integer within bounds; without a default the key is required."""
        value = self.get(key)
        if value is None:
            value = default
        if value is None:
            raise self.error(key, "is missing")
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, f"must be an integer, got {value!r}")
        if not minimum <= value <= maximum:
            raise self.error(key, f"must be from {minimum} to {maximum}, got {value}")
        return value

    def number(self, key: str, default: float | None = None, *, above: float = 0.0) -> float:
        """A finite number above a bound; without a default the key is required."""
        value = self.get(key)
        if value is None:
            value = default
        if value is None:
            raise self.error(key, "is missing")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, f"must be a number, got {value!r}")
        if not above < value <= sys.float_info.max:
            raise self.error(key, f"must be finite and above {above:g}, got {value}")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """A finite number above 0, or None."""
        return None if self.get(key) is None else self.number(key)

    def boolean(self, key: str, default: bool) -> bool:
        """True or False."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, got {value!r}")
        return value

    def token_ids(self, key: str, vocab_size: int) -> tuple[int, ...]:
        """One token id or a list of them, each within the vocabulary; none if the key is missing."""
        value = self.get(key)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
                raise self.error(key, f"must name token ids from 0 to {vocab_size - 1} (vocab_size), got {value!r}")
        return tuple(dict.fromkeys(ids))

    def refuse(self, key: str, accepted: tuple[object, ...], reason: str) -> None:
        """Refuse a key whose value is neither missing nor one of those that change nothing."""
        value = self.get(key)
        if value is not None and not any(value == a and type(value) is type(a) for a in accepted):
            raise self.error(key, f"is {value!r}: {reason}")

    def refuse_unknown(self, harmless: frozenset[str]) -> None:
        """Refuse keys that nobody asked for, unless they are known to be harmless, switched off, or private (`_…`).

        A key that is not understood may change the mathematics, and the answers would be wrong without a sign.
        """
        for key, value in self.values.items():
            if key in self._taken or key in harmless or key.startswith("_") or value in (None, False, [], {}):
                continue
            raise self.error(
                key,
                f"is {value!r}, a setting that jaxserve does not know; if it does not change what the model computes, "
                "remove it from the file",
            )
