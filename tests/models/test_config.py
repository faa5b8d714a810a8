"""Translating config.json."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxserve.errors import CheckpointError, ConfigError
from jaxserve.layers.rope import RopeConfig
from jaxserve.models.config import ModelConfig
from jaxserve.models.registry import load_config

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def _load(directory: Path, generation: dict[str, Any] | None = None, **changes: Any) -> ModelConfig:
    config = {key: value for key, value in (BASE | changes).items() if value is not ...}
    (directory / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return load_config(directory)


def test_sizes_are_read(tmp_path: Path) -> None:
    config = _load(tmp_path, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, torch_dtype="bfloat16")
    assert config == ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=128,
        hidden_size=64,
        num_layers=2,
        num_query_heads=8,
        num_kv_heads=2,
        head_dim=8,
        intermediate_size=96,
        norm_eps=1e-5,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_ids=(2,),
        dtype="bfloat16",
    )


def test_missing_kv_heads_mean_one_a_query_head(tmp_path: Path) -> None:
    assert _load(tmp_path, num_key_value_heads=...).num_kv_heads == 8


def test_both_styles_of_rope_settings_mean_the_same(tmp_path: Path) -> None:
    old = _load(tmp_path, rope_theta=500000.0, rope_scaling={"rope_type": "llama3", **LLAMA3})
    new = _load(tmp_path, rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3})
    assert old == new
    assert old.rope == RopeConfig(
        kind="llama3",
        theta=500000.0,
        factor=8.0,
        original_max_position_embeddings=64,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )


def test_oldest_rope_style_names_its_kind_type(tmp_path: Path) -> None:
    assert _load(tmp_path, rope_scaling={"type": "linear", "factor": 2.0}).rope.kind == "linear"


@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        (None, 256),
        ({"rope_type": "linear", "factor": 4.0}, 1024),
        ({"rope_type": "dynamic", "factor": 2.0}, 512),
        ({"rope_type": "llama3", **LLAMA3}, 256),
        ({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}, 512),
    ],
)
def test_context_length_counts_what_scaling_adds(tmp_path: Path, scaling: dict[str, Any] | None, length: int) -> None:
    assert _load(tmp_path, rope_scaling=scaling).context_length == length


def test_generation_config_names_the_end_tokens(tmp_path: Path) -> None:
    assert _load(tmp_path, {"eos_token_id": [3, 5]}, eos_token_id=2).eos_token_ids == (3, 5)


def test_config_names_the_end_tokens_where_generation_config_does_not(tmp_path: Path) -> None:
    assert _load(tmp_path, {"temperature": 0.5}, eos_token_id=[2, 4]).eos_token_ids == (2, 4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", ["T5ForConditionalGeneration"]),
        ("architectures", None),
        ("vocab_size", ...),
        ("vocab_size", "128"),
        ("vocab_size", True),
        ("hidden_size", 0),
        ("num_hidden_layers", -1),
        ("num_key_value_heads", 3),
        ("num_attention_heads", 10),
        ("head_dim", 9),
        ("hidden_act", "xielu"),
        ("rms_norm_eps", "small"),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", -1.0),
        ("rope_theta", 10**400),
        ("rope_theta", 1.0),
        ("rope_scaling", "linear"),
        ("partial_rotary_factor", 0.45),
        ("sliding_window", 4096),
        ("quantization_config", {"bits": 4}),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("eos_token_id", 128),
        ("eos_token_id", [2, -1]),
        ("bos_token_id", 1000),
        ("torch_dtype", "int8"),
        ("tie_word_embeddings", "yes"),
        ("attention_bias", 1),
        ("final_logit_softcapping", 30.0),
    ],
)
def test_key_that_cannot_be_honoured_is_named(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: (rope_scaling\.)?{key} "):
        _load(tmp_path, **{key: value})


@pytest.mark.parametrize(
    ("key", "scaling"),
    [
        ("rope_type", {"rope_type": "axial", "factor": 2.0}),
        ("short_factor", {"rope_type": "longrope", "original_max_position_embeddings": 64, "short_factor": [1.0]}),
        ("long_factor", {"rope_type": "longrope", "original_max_position_embeddings": 64, "short_factor": [1.0] * 4}),
        ("original_max_position_embeddings", {"rope_type": "longrope", "short_factor": [1.0] * 4}),
        ("rope_type", {"rope_type": "linear", "type": "yarn", "factor": 2.0}),
        ("factor", {"rope_type": "linear"}),
        ("factor", {"rope_type": "dynamic", "factor": 0.5}),
        ("factor", {"rope_type": "linear", "factor": 1e308}),
        ("low_freq_factor", {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}),
        ("high_freq_factor", {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}),
        ("beta_fast", {"rope_type": "yarn", "factor": 2.0, "beta_fast": 0.5}),
        (
            "original_max_position_embeddings",
            {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 1},
        ),
        ("long_factor", {"rope_type": "linear", "factor": 2.0, "long_factor": [1.0]}),
    ],
)
def test_rope_setting_that_cannot_be_honoured_is_named(tmp_path: Path, key: str, scaling: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: rope_scaling\.{key} "):
        _load(tmp_path, rope_scaling=scaling)


def test_rope_settings_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"rope_parameters and rope_scaling are both given and differ"):
        _load(tmp_path, rope_scaling={"type": "linear", "factor": 2.0}, rope_parameters={"rope_type": "default"})
    with pytest.raises(CheckpointError, match=r"rope_parameters\.rope_theta is 2"):
        _load(tmp_path, rope_theta=10.0, rope_parameters={"rope_type": "default", "rope_theta": 20.0})


def test_generation_config_is_named_where_it_is_at_fault(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id must name token ids"):
        _load(tmp_path, {"eos_token_id": [2, 128]})


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("Qwen2VLForConditionalGeneration", "Qwen2ForCausalLM"), ("GemmaForCausal", "GemmaForCausalLM")],
)
def test_unknown_architecture_error_names_the_nearest_supported(tmp_path: Path, name: str, nearest: str) -> None:
    with pytest.raises(CheckpointError, match=rf"names {name}, which is not supported; the nearest .*{nearest}"):
        _load(tmp_path, architectures=[name])


def test_unknown_key_is_refused_unless_it_is_switched_off_or_harmless(tmp_path: Path) -> None:
    _load(tmp_path, use_qk_norm=False, logit_scale=None, _name_or_path="x", transformers_version="5", use_cache=True)
    with pytest.raises(CheckpointError, match="use_qk_norm is True, a setting that jaxserve does not know"):
        _load(tmp_path, use_qk_norm=True)


def test_mistral_must_say_whether_it_has_a_window(tmp_path: Path) -> None:
    mistral = {"architectures": ["MistralForCausalLM"]}
    assert _load(tmp_path, **mistral, sliding_window=None).window is None
    windowed = _load(tmp_path, **mistral, sliding_window=32)
    assert (windowed.window, windowed.layer_kinds) == (32, ("local", "local"))
    with pytest.raises(CheckpointError, match="sliding_window is missing"):
        _load(tmp_path, **mistral)


@pytest.mark.parametrize("text", ["", "{", "[]", '"config"', "[" * 100_000])
def test_file_that_is_not_an_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        load_config(tmp_path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("tensor_parallel_size", "layout"), [(1, (2, 4)), (2, (2, 4)), (4, (4, 2)), (8, (8, 1)), (6, (6, 2))]
)
def test_kv_heads_are_copied_where_devices_are_more(
    tmp_path: Path, tensor_parallel_size: int, layout: tuple[int, int]
) -> None:
    assert _load(tmp_path, intermediate_size=96).parallel_heads(tensor_parallel_size) == layout


@pytest.mark.parametrize(
    ("tensor_parallel_size", "changes", "reason"),
    [
        (3, {}, "2 kv heads do not divide each other"),
        (16, {}, "8 query heads"),
        (8, {"intermediate_size": 100}, "100 feed-forward columns"),
        (2, {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8}, "3 kv heads do not divide each other"),
    ],
)
def test_mesh_that_cannot_work_is_refused_with_the_reason(
    tmp_path: Path, tensor_parallel_size: int, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        _load(tmp_path, **changes).parallel_heads(tensor_parallel_size)
