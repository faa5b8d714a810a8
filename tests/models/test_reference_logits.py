"""Every recorded model against the outputs of its original implementation."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxserve.models.checkpoint import LoadedModel, load_model
from jaxserve.sharding import make_mesh
from tests.support.recorded_models import CASES

# Of each way heads, packed products and vocabulary are divided, one model; the rest differ in nothing that depends on
# the mesh. With four devices kv heads are copied.
SPLIT_CASES = ("gqa", "mqa", "mha", "tied", "bias", "olmo2", "phi3", "gpt2", "gpt_bigcode", "falcon", "mixtral")
MAX_MODEL_LEN = 128


def _load(directory: Path, tensor_parallel_size: int) -> LoadedModel:
    return load_model(directory, make_mesh(tensor_parallel_size), max_model_len=MAX_MODEL_LEN)


def _prompts(reference: Any) -> list[list[int]]:
    ends = np.cumsum(reference["prompt_lens"])
    return [part.tolist() for part in np.split(reference["prompts"], ends[:-1])]


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_tokens_equal_the_original_implementation(case: str, data_dir: Path, forward: Any) -> None:
    reference = np.load(data_dir / case / "reference.npz")
    model = _load(data_dir / case, 1)
    logits = forward(model, _prompts(reference))
    np.testing.assert_allclose(logits, reference["logits"], atol=1e-4, rtol=0)
    # Scores of the recorded continuation, all at once: each token is the best one after those before it.
    for prompt, greedy in zip(_prompts(reference), reference["greedy"].tolist(), strict=True):
        logits = forward(model, [prompt + greedy])
        assert logits[len(prompt) - 1 : -1].argmax(axis=-1).tolist() == greedy


@pytest.mark.parametrize("tensor_parallel_size", [2, 4])
@pytest.mark.parametrize("case", SPLIT_CASES)
def test_logits_split_over_devices_equal_the_original_implementation(
    case: str, tensor_parallel_size: int, data_dir: Path, forward: Any
) -> None:
    reference = np.load(data_dir / case / "reference.npz")
    logits = forward(_load(data_dir / case, tensor_parallel_size), _prompts(reference))
    np.testing.assert_allclose(logits, reference["logits"], atol=1e-4, rtol=0)


def test_weights_are_split_over_the_devices_and_not_copied(data_dir: Path) -> None:
    model = _load(data_dir / "gqa", 2)
    state = jax.tree.unflatten(model.treedef, model.weights)
    layer = state["layers"][0]
    sizes = {
        "qkv": layer["self_attn"]["qkv_proj"]["weight"].get_value(),
        "o": layer["self_attn"]["o_proj"]["weight"].get_value(),
        "gate_up": layer["mlp"]["gate_up_proj"]["weight"].get_value(),
        "down": layer["mlp"]["down_proj"]["weight"].get_value(),
        "embed": state["embed_tokens"]["weight"].get_value(),
        "head": state["lm_head"]["weight"].get_value(),
    }
    assert {
        name: array.addressable_shards[0].data.size * 2 == array.size for name, array in sizes.items()
    } == dict.fromkeys(sizes, True)


def test_tied_embeddings_are_one_array(data_dir: Path) -> None:
    tied, untied = _load(data_dir / "tied", 1), _load(data_dir / "gqa", 1)
    assert len(tied.weights) == len(untied.weights) - 1


def test_padding_of_the_vocabulary_is_never_scored(data_dir: Path, forward: Any) -> None:
    model = _load(data_dir / "gqa", 4)
    assert model.config.vocab_size == 131
    assert forward(model, [[130]]).shape == (1, 131)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_dtypes_stay_near_the_original_implementation(dtype: Any, data_dir: Path, forward: Any) -> None:
    reference = np.load(data_dir / "bias" / "reference.npz")
    model = load_model(data_dir / "bias", make_mesh(2), dtype=dtype, max_model_len=MAX_MODEL_LEN)
    error = np.abs(forward(model, _prompts(reference)) - reference["logits"])
    rounding = {"bfloat16": 2**-8, "float16": 2**-11}[dtype]
    assert rounding / 20 < error.mean() / reference["logits"].std() < rounding * 8
