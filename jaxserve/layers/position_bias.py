"""What positions add to attention apart from rotation: ALiBi's slopes and the growth of scores with log n."""

import math

import numpy as np

from jaxserve.layers.rope import Float32Array


def alibi_slopes(num_heads: int) -> Float32Array:
    """The slope of each query head: scores fall by it with each token between query and key (Press et al. 2022).

    For a power of two heads they are a geometric series from 2 ** (-8 / num_heads). For another number they are those
    of the next smaller power of two, and then every second one of the next larger.

    Returns:
        [num_heads] float32.
    """
    smaller = 2 ** int(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / smaller) for i in range(smaller)]
    slopes += [2.0 ** (-4.0 * (2 * i + 1) / smaller) for i in range(num_heads - smaller)]
    return np.array(slopes, np.float32)


def logn_scales(length: int, max_positions: int) -> Float32Array:
    """What the query at each position is multiplied by, to keep attention as sharp over more tokens (Su 2021).

    Args:
        length: tokens of context in pretraining; up to there the factor is 1.
        max_positions: number of rows.

    Returns:
        [max_positions] float32: max(1, log(p + 1) / log(length)).
    """
    tokens = np.arange(1, max_positions + 1, dtype=np.float64)
    return np.maximum(1.0, np.log(tokens) / math.log(length)).astype(np.float32)
