"""The NumPy references: that they are what was recorded, and that they agree with transformers where both apply."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.references import baichuan, internlm, qwen
from tests.references.blocks import Array, dynamic_ntk_bases, rotate
from tests.references.cases import NUMPY_CASES
from tests.references.checkpoint import read_checkpoint

DATA = Path(__file__).parents[1] / "data"


def _recording(case: str) -> tuple[list[list[int]], list[Array], list[list[int]]]:
    """Prompts, the scores after each of their tokens, and the tokens chosen after them."""
    reference = np.load(DATA / case / "reference.npz")
    ends = np.cumsum(reference["prompt_lens"])[:-1]
    prompts = [part.tolist() for part in np.split(reference["prompts"], ends)]
    return prompts, np.split(reference["logits"], ends), reference["greedy"].tolist()


@pytest.mark.parametrize("name", NUMPY_CASES)
def test_recorded_outputs_are_those_of_the_numpy_reference(name: str) -> None:
    case = NUMPY_CASES[name]
    config, tensors = read_checkpoint(DATA / name)
    assert config == case.config
    for prompt, logits, greedy in zip(*_recording(name), strict=True):
        scores = case.reference.logits(config, tensors, prompt + greedy)
        np.testing.assert_allclose(scores[: len(prompt)], logits, atol=1e-5, rtol=0)
        assert scores[len(prompt) - 1 : -1].argmax(axis=-1).tolist() == greedy


def test_baichuan_with_packed_llama_weights_equals_transformers() -> None:
    config, tensors = read_checkpoint(DATA / "mha")
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.self_attn."
        packed = np.concatenate([tensors[f"{prefix}{name}_proj.weight"] for name in "qkv"])
        tensors[prefix + "W_pack.weight"] = packed
    for prompt, logits, _ in zip(*_recording("mha"), strict=True):
        np.testing.assert_allclose(baichuan.logits(config, tensors, prompt), logits, atol=1e-4, rtol=0)


def test_internlm2_with_packed_mistral_weights_equals_transformers() -> None:
    """Within Mistral's window, which InternLM2 does not have."""
    config, tensors = read_checkpoint(DATA / "mistral_window")
    config |= {"model_type": "internlm2", "rope_scaling": None}
    kv_heads = config["num_key_value_heads"]
    renamed = {
        "tok_embeddings": "embed_tokens",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w3": "mlp.up_proj",
        "feed_forward.w2": "mlp.down_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    for new, old in renamed.items():
        tensors |= {name.replace(old, new): each for name, each in tensors.items() if old in name}
    tensors["output.weight"] = tensors["lm_head.weight"]
    for layer in range(config["num_hidden_layers"]):
        parts = [tensors[f"model.layers.{layer}.self_attn.{name}_proj.weight"] for name in "qkv"]
        grouped = [each.reshape(kv_heads, -1, each.shape[-1]) for each in parts]
        packed = np.concatenate(grouped, axis=1).reshape(-1, config["hidden_size"])
        tensors[f"model.layers.{layer}.attention.wqkv.weight"] = packed
    for prompt, logits, _ in zip(*_recording("mistral_window"), strict=True):
        within = prompt[: config["sliding_window"]]
        scores = internlm.logits(config, tensors, within)
        np.testing.assert_allclose(scores, logits[: len(within)], atol=1e-4, rtol=0)


def test_internlm1_with_qwen2_weights_equals_transformers() -> None:
    """Both have biases on queries, keys and values; Qwen2's shared heads are written out, its output has no bias."""
    config, tensors = read_checkpoint(DATA / "qwen2")
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    shared = config["num_attention_heads"] // config["num_key_value_heads"]
    for name in [name for name in tensors if ".k_proj." in name or ".v_proj." in name]:
        heads = tensors[name].reshape(config["num_key_value_heads"], head_dim, -1)
        tensors[name] = np.repeat(heads, shared, axis=0).reshape(-1, *tensors[name].shape[1:])
    config |= {"model_type": "internlm", "rotary": {"base": config["rope_theta"], "type": "origin"}}
    for prompt, logits, _ in zip(*_recording("qwen2"), strict=True):
        np.testing.assert_allclose(internlm.logits(config, tensors, prompt), logits, atol=1e-4, rtol=0)


def test_dynamic_ntk_by_position_equals_transformers_asked_for_one_position_after_another() -> None:
    recorded = np.load(DATA / "rope_tables.npz")
    settings = json.loads(str(recorded["settings"]))
    index = next(i for i, each in enumerate(settings) if each["rope_parameters"]["rope_type"] == "dynamic")
    config, rope = settings[index], settings[index]["rope_parameters"]
    positions, head_dim = recorded["positions"], config["head_dim"]
    bases = dynamic_ntk_bases(
        positions.max() + 1, rope["rope_theta"], rope["factor"], config["max_position_embeddings"], head_dim
    )
    ones = np.concatenate([np.ones(head_dim // 2), np.zeros(head_dim // 2)])
    turned = rotate(np.tile(ones, (len(bases), 1, 1)), bases)[:, 0].reshape(-1, 2, head_dim // 2)
    np.testing.assert_allclose(turned[positions], recorded["tables"][index], atol=1e-3)


def test_alibi_slopes_of_heads_that_are_no_power_of_two_come_from_the_next_lower_and_higher_ones() -> None:
    assert baichuan.alibi_slopes(4).tolist() == [1 / 4, 1 / 16, 1 / 64, 1 / 256]
    assert baichuan.alibi_slopes(6).tolist() == [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]
    assert len(baichuan.alibi_slopes(40)) == 40


def test_normhead_makes_scores_independent_of_the_length_of_the_heads_rows() -> None:
    config, tensors = read_checkpoint(DATA / "baichuan2_7b")
    scaled = tensors | {"lm_head.weight": tensors["lm_head.weight"] * np.linspace(1, 5, config["vocab_size"])[:, None]}
    np.testing.assert_allclose(baichuan.logits(config, scaled, [5, 7]), baichuan.logits(config, tensors, [5, 7]))


@pytest.mark.parametrize(("name", "agrees"), [("qwen", True), ("qwen_long", False)])
def test_qwen_by_position_is_the_published_definition_within_the_original_context_only(name: str, agrees: bool) -> None:
    config, tensors = read_checkpoint(DATA / name)
    prompt = _recording(name)[0][-1]
    published = qwen.logits(config, tensors, prompt, ntk_length=len(prompt))
    assert np.allclose(published, qwen.logits(config, tensors, prompt), atol=1e-6) == agrees


def test_qwen_alpha_doubles_and_adds_one_each_time_the_length_passes_a_power_of_two() -> None:
    lengths = np.array([1.0, 15, 16, 17, 32, 33, 64, 65])
    assert qwen.ntk_alphas(lengths, 16).tolist() == [1, 1, 1, 3, 3, 7, 7, 15]
