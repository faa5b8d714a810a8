"""What the families make of their config.json: switches, defaults of keys left out, and what they refuse."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from jaxserve.errors import CheckpointError
from jaxserve.layers.rope import RopeConfig
from jaxserve.models.config import ExpertsConfig, ModelConfig
from jaxserve.models.families import FAMILIES
from jaxserve.models.registry import load_config
from tests.support.recorded_models import CASES, DATA

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "intermediate_size": 96,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
GPT2 = {"vocab_size": 128, "n_embd": 64, "n_layer": 4, "n_head": 8}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 64,
}


def _load(directory: Path, architecture: str, sizes: dict[str, Any] = GROUPED, **more: Any) -> ModelConfig:
    (directory / "config.json").write_text(json.dumps({"architectures": [architecture], **sizes, **more}))
    return load_config(directory)


def test_every_family_is_proved_by_a_recorded_checkpoint() -> None:
    recorded = {json.loads((DATA / case / "config.json").read_text())["architectures"][0] for case in CASES}
    assert [family.name for family in FAMILIES if not recorded & set(family.architectures)] == []


def test_no_architecture_belongs_to_two_families() -> None:
    names = [name for family in FAMILIES for name in family.architectures]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("positions", "vocab_size", "z_loss", "expected"),
    [
        ({"max_position_embeddings": 256}, 128, {}, ("rope", False)),
        ({"max_position_embeddings": 256, "model_max_length": 256}, 128, {"z_loss_weight": 0}, ("rope", True)),
        ({"model_max_length": 256}, 128, {}, ("alibi", False)),
        ({"model_max_length": 256}, 125696, {}, ("alibi", True)),
        ({}, 128, {}, ("rope", False)),
    ],
)
def test_baichuan_checkpoint_decides_which_mathematics_it_has(
    tmp_path: Path, positions: dict[str, int], vocab_size: int, z_loss: dict[str, int], expected: tuple[str, bool]
) -> None:
    sizes = SIZES | positions | z_loss | {"vocab_size": vocab_size}
    config = _load(tmp_path, "BaichuanForCausalLM", sizes)
    assert (config.positions, config.normalized_head) == expected
    assert config.num_kv_heads == 8


def test_baichuan_13b_takes_its_context_from_model_max_length(tmp_path: Path) -> None:
    assert _load(tmp_path, "BaichuanForCausalLM", SIZES, model_max_length=96).context_length == 96


def test_qwen_halves_its_feed_forward_and_scales_beyond_its_training_length(tmp_path: Path) -> None:
    config = _load(tmp_path, "QWenLMHeadModel", SIZES, kv_channels=8, seq_length=32, max_position_embeddings=256)
    assert config.intermediate_size == 48
    assert config.rope == RopeConfig(kind="dynamic_qwen", original_max_position_embeddings=32)
    assert (config.logn_length, config.context_length, config.dtype) == (32, 256, "bfloat16")
    plain = _load(tmp_path, "QWenLMHeadModel", SIZES, kv_channels=8, use_dynamic_ntk=False, use_logn_attn=False)
    assert (plain.rope, plain.logn_length) == (RopeConfig(), None)


@pytest.mark.parametrize(
    ("flags", "dtype"), [({"fp16": True}, "float16"), ({"fp32": True}, "float32"), ({"bf16": True}, "bfloat16")]
)
def test_qwen_has_flags_of_its_own_for_the_dtype(tmp_path: Path, flags: dict[str, bool], dtype: str) -> None:
    assert _load(tmp_path, "QWenLMHeadModel", SIZES, kv_channels=8, **flags).dtype == dtype


@pytest.mark.parametrize(
    ("keys", "kinds"),
    [
        ({}, ()),
        ({"sliding_window": 16}, ()),
        ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 3}, ("global",) * 3 + ("local",)),
        ({"use_sliding_window": True, "sliding_window": 16}, ()),
        ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, ()),
    ],
)
def test_qwen2_windows_the_layers_from_max_window_layers_on(
    tmp_path: Path, keys: dict[str, Any], kinds: tuple[str, ...]
) -> None:
    config = _load(tmp_path, "Qwen2ForCausalLM", **keys)
    assert (config.layer_kinds, config.window) == (kinds, 16 if kinds else None)


def test_qwen3_moe_keeps_dense_layers_where_it_says(tmp_path: Path) -> None:
    keys = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}
    config = _load(tmp_path, "Qwen3MoeForCausalLM", **keys, decoder_sparse_step=2, mlp_only_layers=[3])
    assert config.experts == ExpertsConfig(
        num_experts=4, num_experts_per_token=2, intermediate_size=32, dense_layers=(0, 2, 3)
    )


def test_internlm_scales_dynamically_unless_told_otherwise(tmp_path: Path) -> None:
    config = _load(tmp_path, "InternLMForCausalLM", SIZES)
    assert config.rope == RopeConfig(kind="dynamic", original_max_position_embeddings=2048)
    assert (config.qkv_bias, config.attention_out_bias, config.context_length) == (True, True, 16384)
    plain = _load(tmp_path, "InternLMForCausalLM", SIZES, rotary={"type": "origin", "base": 500.0}, bias=False)
    assert (plain.rope, plain.qkv_bias, plain.context_length) == (RopeConfig(theta=500.0), False, 2048)


def test_gemma2_soft_caps_are_its_own_unless_null(tmp_path: Path) -> None:
    config = _load(tmp_path, "Gemma2ForCausalLM")
    assert (config.attention_soft_cap, config.logits_soft_cap) == (50.0, 30.0)
    assert (config.head_dim, config.attention_scale, config.tie_word_embeddings) == (256, 256**-0.5, True)
    assert config.layer_kinds == ("local", "global", "local", "global")
    null = _load(tmp_path, "Gemma2ForCausalLM", attn_logit_softcapping=None, final_logit_softcapping=None)
    assert (null.attention_soft_cap, null.logits_soft_cap) == (None, None)


def test_gemma3_layers_rotate_by_bases_of_their_own_in_both_styles(tmp_path: Path) -> None:
    old = _load(tmp_path, "Gemma3ForCausalLM", rope_scaling={"rope_type": "linear", "factor": 8.0})
    new = _load(
        tmp_path,
        "Gemma3ForCausalLM",
        layer_types=["sliding_attention"] * 4,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )
    assert old.layer_kinds == ("local",) * 4 == new.layer_kinds
    assert old.rope == new.rope == RopeConfig(kind="linear", theta=1e6, factor=8.0)
    assert old.local_rope == new.local_rope == RopeConfig(theta=1e4)


def test_longrope_scales_angles_by_the_growth_of_the_context(tmp_path: Path) -> None:
    keys = {"max_position_embeddings": 256, "rope_scaling": LONGROPE}
    config = _load(tmp_path, "Phi3ForCausalLM", **keys)
    assert config.rope.cos_sin_scale == pytest.approx(math.sqrt(1 + math.log(4) / math.log(64)))
    assert config.context_length == 256
    first_name = LONGROPE | {"type": "su"}
    del first_name["rope_type"]
    assert _load(tmp_path, "Phi3ForCausalLM", **keys | {"rope_scaling": first_name}) == config


@pytest.mark.parametrize(("window", "kinds"), [(None, ()), (128, ()), (32, ("local",) * 4)])
def test_window_as_long_as_the_context_is_none(tmp_path: Path, window: int | None, kinds: tuple[str, ...]) -> None:
    config = _load(tmp_path, "Phi3ForCausalLM", max_position_embeddings=128, sliding_window=window)
    assert config.layer_kinds == kinds


def test_gpt_neox_rotates_a_quarter_of_each_head_unless_told_otherwise(tmp_path: Path) -> None:
    assert _load(tmp_path, "GPTNeoXForCausalLM", SIZES).rotary_dim == 2
    assert _load(tmp_path, "GPTNeoXForCausalLM", SIZES, rotary_pct=1.0, rotary_emb_base=500).rotary_dim is None
    # Some versions of transformers wrote each under two names.
    twice = {"rotary_pct": 0.5, "partial_rotary_factor": 0.5, "rotary_emb_base": 500, "rope_theta": 500}
    both = _load(tmp_path, "GPTNeoXForCausalLM", SIZES, **twice)
    assert (both.rotary_dim, both.rope.theta) == (4, 500.0)
    within = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}
    new = _load(tmp_path, "GPTNeoXForCausalLM", SIZES, rope_parameters=within)
    assert (new.rotary_dim, new.rope.theta) == (4, 500.0)


def test_gpt2_feed_forward_is_four_times_as_wide_unless_told_otherwise(tmp_path: Path) -> None:
    assert _load(tmp_path, "GPT2LMHeadModel", GPT2).intermediate_size == 256
    assert _load(tmp_path, "GPT2LMHeadModel", GPT2, n_inner=96).intermediate_size == 96


def test_starcoder_has_one_kv_head_unless_told_otherwise(tmp_path: Path) -> None:
    assert _load(tmp_path, "GPTBigCodeForCausalLM", GPT2).num_kv_heads == 1
    assert _load(tmp_path, "GPTBigCodeForCausalLM", GPT2, multi_query=False).num_kv_heads == 8


@pytest.mark.parametrize(
    ("architecture", "sizes", "key", "value"),
    [
        ("MistralForCausalLM", GROUPED, "layer_types", ["sliding_attention"]),
        ("MistralForCausalLM", GROUPED, "layer_types", ["chunked_attention"] * 4),
        ("MinistralForCausalLM", SIZES | {"sliding_window": 4}, "num_key_value_heads", None),
        ("MixtralForCausalLM", GROUPED, "num_experts_per_tok", 9),
        ("Qwen2ForCausalLM", GROUPED, "layer_types", ["sliding_attention"] * 4),
        ("Qwen3MoeForCausalLM", GROUPED | {"moe_intermediate_size": 8}, "use_sliding_window", True),
        ("Qwen3MoeForCausalLM", GROUPED, "moe_intermediate_size", None),
        ("Qwen3MoeForCausalLM", GROUPED | {"moe_intermediate_size": 8}, "mlp_only_layers", ["0"]),
        ("QWenLMHeadModel", SIZES | {"kv_channels": 8}, "scale_attn_weights", False),
        ("QWenLMHeadModel", SIZES | {"kv_channels": 8}, "intermediate_size", 97),
        ("InternLMForCausalLM", SIZES, "rotary.type", "linear"),
        ("BaichuanForCausalLM", SIZES | {"z_loss_weight": 0}, "tie_word_embeddings", True),
        ("Gemma2ForCausalLM", GROUPED, "hidden_act", "relu"),
        ("Gemma3ForCausalLM", GROUPED, "use_bidirectional_attention", True),
        ("Phi3ForCausalLM", GROUPED, "attention_bias", True),
        ("Phi3ForCausalLM", GROUPED, "interpolate_factor", 2),
        ("Phi3ForCausalLM", GROUPED, "rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("Olmo2ForCausalLM", GROUPED, "clip_qkv", 8.0),
        ("GPT2LMHeadModel", GPT2, "scale_attn_by_inverse_layer_idx", True),
        ("GPT2LMHeadModel", GPT2, "add_cross_attention", True),
        ("GPTNeoXForCausalLM", SIZES, "rotary_pct", 0.1),
        ("GPTNeoXForCausalLM", SIZES | {"rotary_emb_base": 500}, "rope_theta", 10000.0),
        ("InternLMForCausalLM", SIZES, "rope_theta", 500.0),
        ("InternLMForCausalLM", SIZES, "num_key_value_heads", 2),
        ("QWenLMHeadModel", SIZES | {"kv_channels": 8}, "rope_scaling", {"type": "linear", "factor": 2.0}),
        ("FalconForCausalLM", SIZES, "alibi", True),
        ("FalconForCausalLM", SIZES, "new_decoder_architecture", True),
        ("FalconForCausalLM", SIZES, "parallel_attn", False),
        ("FalconForCausalLM", SIZES, "multi_query", False),
    ],
)
def test_key_that_a_family_cannot_honour_is_named(
    tmp_path: Path, architecture: str, sizes: dict[str, Any], key: str, value: Any
) -> None:
    outer, _, inner = key.partition(".")
    if architecture == "MistralForCausalLM":
        sizes = sizes | {"sliding_window": 4}
    with pytest.raises(CheckpointError, match=rf"config\.json: {key} "):
        _load(tmp_path, architecture, sizes, **{outer: {inner: value} if inner else value})
