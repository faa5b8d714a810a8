"""Heads that the devices do not divide: copies of kv heads, and query heads of zeros."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.errors import ConfigError
from jaxserve.models.checkpoint import load_model
from jaxserve.models.head_layout import HeadLayout
from jaxserve.sharding import make_mesh

PROMPTS = [[1, 2, 3, 30], [7]]


def test_query_heads_follow_their_kv_head_over_its_copies() -> None:
    layout = HeadLayout.over(10, 2, 4)
    assert (layout.num_kv_heads, layout.group_size) == (4, 3)
    grouped = layout.queries(jnp.arange(1, 11)[:, None])
    assert grouped[..., 0].tolist() == [[1, 2, 3], [4, 5, 0], [6, 7, 8], [9, 10, 0]]
    assert layout.keys_or_values(jnp.array([[1], [6]]))[:, 0].tolist() == [1, 1, 6, 6]


@pytest.mark.parametrize(("heads", "devices"), [((4, 4), 8), ((8, 4), 3), ((6, 3), 2)])
def test_heads_that_cannot_be_divided_are_refused(heads: tuple[int, int], devices: int) -> None:
    with pytest.raises(ConfigError, match=f"tensor_parallel_size {devices}"):
        HeadLayout.over(*heads, devices)


# Falcon 7B has 71 heads and one kv head; OLMo 2 normalises all heads together, which zeros and copies must not change.
UNEVEN: dict[str, dict[str, Any]] = {
    "falcon": {
        "architectures": ["FalconForCausalLM"],
        "vocab_size": 31,
        "hidden_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "bias": True,
    },
    "olmo2": {
        "architectures": ["Olmo2ForCausalLM"],
        "vocab_size": 31,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "attention_bias": True,
    },
}


@pytest.mark.parametrize("name", UNEVEN)
def test_uneven_heads_are_the_same_model_on_every_mesh(name: str, tmp_path: Path, forward: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(UNEVEN[name]))

    def logits(devices: int) -> np.ndarray:
        model = load_model(tmp_path, make_mesh(devices), load_format="dummy", max_model_len=64)
        return forward(model, PROMPTS) * 1e3

    expected = logits(1)
    assert expected.std() > 10
    np.testing.assert_allclose(logits(4), expected, atol=1e-2)
