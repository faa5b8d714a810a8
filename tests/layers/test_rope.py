"""Rotary embeddings."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.layers.rope import RopeConfig, rope_table
from jaxserve.models.registry import load_config
from pallas_kernels.cached_attention import rotate

RECORDED = Path(__file__).parents[1] / "data" / "rope_tables.npz"
NUM_RECORDED = 9


@pytest.mark.parametrize("i", range(NUM_RECORDED))
def test_table_equals_the_original_implementation(i: int, tmp_path: Path) -> None:
    recorded = np.load(RECORDED)
    settings = json.loads(str(recorded["settings"]))
    assert len(settings) == NUM_RECORDED
    (tmp_path / "config.json").write_text(json.dumps(settings[i]))
    config = load_config(tmp_path)
    table = rope_table(config.rope, config.head_dim, int(recorded["positions"].max()) + 1)
    # Angles reach thousands of turns, where one rounding of a float32 product is worth 2e-4.
    np.testing.assert_allclose(table[recorded["positions"]], recorded["tables"][i], atol=5e-4, rtol=0)
    near = recorded["positions"] <= 129
    np.testing.assert_allclose(table[recorded["positions"][near]], recorded["tables"][i][near], atol=2e-5, rtol=0)


def test_dynamic_scaling_leaves_the_original_context_alone() -> None:
    dynamic = RopeConfig(kind="dynamic", factor=4.0, original_max_position_embeddings=32)
    scaled, plain = rope_table(dynamic, 16, 48), rope_table(RopeConfig(), 16, 48)
    np.testing.assert_array_equal(scaled[:32], plain[:32])
    assert np.abs(scaled[32:] - plain[32:]).max(axis=(1, 2)).min() > 1e-3


def test_dynamic_rows_do_not_depend_on_the_length_of_the_table() -> None:
    config = RopeConfig(kind="dynamic", factor=4.0, original_max_position_embeddings=32)
    np.testing.assert_array_equal(rope_table(config, 16, 48), rope_table(config, 16, 96)[:48])


def test_qwen_raises_the_base_in_powers_of_two_by_position() -> None:
    """Twice the original length and one token more: the base is that of factor 1, 3 and 7 of its NTK formula."""
    config = RopeConfig(kind="dynamic_qwen", original_max_position_embeddings=16)
    table = rope_table(config, 8, 40)
    for position, alpha in ((15, 1), (16, 3), (31, 3), (32, 7)):
        expected = rope_table(RopeConfig(theta=10000.0 * alpha ** (8 / 6)), 8, 40)
        np.testing.assert_allclose(table[position], expected[position], atol=1e-6)


def test_longrope_takes_long_factors_where_there_are_more_positions_than_the_original() -> None:
    short, long = (1.0, 1.0, 2.0, 3.0), (2.0, 3.0, 4.0, 5.0)
    config = RopeConfig(
        kind="longrope",
        original_max_position_embeddings=32,
        attention_factor=1.5,
        short_factors=short,
        long_factors=long,
    )
    positions = np.arange(33, dtype=np.float32)[:, None]
    for rows, factors in ((32, short), (33, long)):
        angles = positions[:rows] / (np.array(factors) * 10000.0 ** (np.arange(4) / 4))
        expected = 1.5 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        np.testing.assert_allclose(rope_table(config, 8, rows), expected, atol=1e-5)


def test_rotation_keeps_lengths_and_depends_on_distance_alone() -> None:
    table = jnp.asarray(rope_table(RopeConfig(), 16, 64))
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 3, 16))
    at = lambda x, position: rotate(x, table[position : position + 1])  # noqa: E731
    np.testing.assert_allclose(jnp.linalg.norm(at(q, 50), axis=-1), jnp.linalg.norm(q, axis=-1), rtol=1e-5)
    near, far = (at(q, p + 7) * at(k, p) for p in (0, 40))
    np.testing.assert_allclose(near.sum(-1), far.sum(-1), atol=1e-4)


def test_rotation_is_computed_in_float32_and_returned_in_the_dtype_given() -> None:
    table = jnp.asarray(rope_table(RopeConfig(), 16, 64))[40:41]
    x = jax.random.normal(jax.random.key(1), (1, 2, 16)).astype(jnp.bfloat16)
    rotated = rotate(x, table)
    assert rotated.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rotated, rotate(x.astype(jnp.float32), table).astype(jnp.bfloat16))
