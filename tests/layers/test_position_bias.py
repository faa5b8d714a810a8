"""ALiBi's slopes and the growth of queries with log n."""

import math

import numpy as np

from jaxserve.layers.position_bias import alibi_slopes, logn_scales


def test_slopes_of_a_power_of_two_heads_are_a_geometric_series() -> None:
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-i for i in range(1, 9)])


def test_slopes_of_another_number_of_heads_continue_with_every_second_of_the_next_power() -> None:
    """As in the table of Press et al. 2022: 12 heads have the slopes of 8, and then those of 16 with odd numbers."""
    np.testing.assert_allclose(alibi_slopes(12)[:8], alibi_slopes(8))
    np.testing.assert_allclose(alibi_slopes(12)[8:], alibi_slopes(16)[0:8:2])
    assert len(alibi_slopes(40)) == 40


def test_queries_grow_by_the_logarithm_beyond_the_training_length_only() -> None:
    scales = logn_scales(16, 64)
    np.testing.assert_array_equal(scales[:16], np.ones(16))
    np.testing.assert_allclose(scales[63], math.log(64) / math.log(16))
    assert (np.diff(scales[15:]) > 0).all()
