"""Whatever a checkpoint's files hold, it is either read or refused with CheckpointError."""

import json
import struct
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxserve.errors import CheckpointError
from jaxserve.layers.rope import rope_table
from jaxserve.models.checkpoint.safetensors_file import SafetensorsFile
from jaxserve.models.config import ModelConfig
from jaxserve.models.registry import load_config
from tests.support.recorded_models import CASES, DATA

KEYS = (
    "architectures vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "intermediate_size rms_norm_eps max_position_embeddings tie_word_embeddings attention_bias mlp_bias hidden_act "
    "eos_token_id bos_token_id torch_dtype dtype rope_theta rope_scaling rope_parameters sliding_window layer_types "
    "original_max_position_embeddings quantization_config unknown"
).split()
ROPE_KEYS = (
    "rope_type type rope_theta factor original_max_position_embeddings low_freq_factor high_freq_factor "
    "attention_factor beta_fast beta_slow mscale mscale_all_dim truncate partial_rotary_factor short_factor "
    "long_factor unknown"
).split()
KINDS = ["default", "linear", "dynamic", "llama3", "yarn", "longrope"]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.integers(),
    st.floats(0.5, 64.0),
    st.floats(),
    st.sampled_from(["bfloat16", "silu", "LlamaForCausalLM", *KINDS]),
    st.text(max_size=4),
)
ropes = st.dictionaries(st.sampled_from(ROPE_KEYS), scalars | st.sampled_from(KINDS), max_size=8)
values = st.one_of(scalars, ropes, st.lists(scalars, max_size=3))
fuzz = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _check(config: ModelConfig) -> None:
    """What a config that was accepted promises."""
    assert config.num_query_heads % config.num_kv_heads == 0
    assert config.head_dim % 2 == 0
    assert all(0 <= token < config.vocab_size for token in config.eos_token_ids)
    assert config.context_length >= config.max_position_embeddings
    assert config.layer_kinds == () or len(config.layer_kinds) == config.num_layers
    assert ("local" in config.layer_kinds) == (config.window is not None)
    rotary_dim = config.rotary_dim or config.head_dim
    assert 2 <= rotary_dim <= config.head_dim
    for rope in (config.rope, config.local_rope):
        if rope is not None and config.positions == "rope" and rotary_dim <= 512:
            assert rope_table(rope, rotary_dim, 8).shape == (8, 2, rotary_dim // 2)


@fuzz
@given(changes=st.dictionaries(st.sampled_from(KEYS), values, max_size=4))
def test_any_config_is_translated_or_refused(tmp_path: Path, data_dir: Path, changes: dict[str, Any]) -> None:
    config = json.loads((data_dir / "gqa" / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    try:
        _check(load_config(tmp_path))
    except CheckpointError as error:
        assert "config.json: " in str(error)


@fuzz
@given(case=st.sampled_from(CASES), data=st.data())
def test_any_config_of_any_family_is_translated_or_refused(tmp_path: Path, case: str, data: st.DataObject) -> None:
    config = json.loads((DATA / case / "config.json").read_text())
    keys = st.sampled_from([key for key in config if key != "architectures"])
    config |= data.draw(st.dictionaries(keys, values, max_size=3))
    for key in data.draw(st.lists(keys, max_size=2)):
        config.pop(key, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    try:
        _check(load_config(tmp_path))
    except CheckpointError as error:
        assert "config.json: " in str(error)


@fuzz
@given(rope=ropes, kind=st.sampled_from(KINDS))
def test_any_rope_settings_are_translated_or_refused(
    tmp_path: Path, data_dir: Path, rope: dict[str, Any], kind: str
) -> None:
    rope = {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": kind} | rope
    config = json.loads((data_dir / "gqa" / "config.json").read_text()) | {"rope_parameters": rope}
    (tmp_path / "config.json").write_text(json.dumps(config))
    try:
        _check(load_config(tmp_path))
    except CheckpointError as error:
        assert "config.json: " in str(error)


@fuzz
@given(
    edits=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=4),
    length=st.none() | st.integers(0, 2**64 - 1) | st.integers(0, 4000),
    keep=st.none() | st.integers(0, 140_000),
)
def test_any_safetensors_file_is_read_or_refused(
    tmp_path: Path, data_dir: Path, edits: list[tuple[int, int]], length: int | None, keep: int | None
) -> None:
    content = bytearray((data_dir / "gqa" / "model.safetensors").read_bytes())
    for position, value in edits:
        content[position] = value
    if length is not None:
        content[:8] = struct.pack("<Q", length)
    path = tmp_path / "model.safetensors"
    path.write_bytes(content[:keep])
    try:
        file = SafetensorsFile(path)
        assert sum(file.view(name).nbytes for name in file.names) <= len(content)
    except CheckpointError as error:
        assert "model.safetensors: " in str(error)
