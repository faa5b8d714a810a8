"""What the NumPy references of decoder-only models share, in float64 and one whole sequence at a time.

Written from the papers, for clarity and not for speed. Shapes: T tokens, D model, N heads, K kv heads, H head_dim,
V vocabulary. Products follow the checkpoints' layout: weights are [outputs, inputs].
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Config = Mapping[str, Any]
Tensors = Mapping[str, Array]
TensorShapes = dict[str, tuple[int, ...]]


class Reference(Protocol):
    """What a family's module holds."""

    def tensor_shapes(self, config: Config) -> TensorShapes:
        """Names and shapes of a checkpoint's tensors."""
        ...

    def logits(self, config: Config, tensors: Tensors, token_ids: Sequence[int]) -> Array:
        """Scores [T, V] after each token."""
        ...


def linear(x: Array, tensors: Tensors, name: str) -> Array:
    """x W^T, plus a bias if the checkpoint has one."""
    y = x @ tensors[f"{name}.weight"].T
    bias = tensors.get(f"{name}.bias")
    return y if bias is None else y + bias


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Zhang and Sennrich 2019."""
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def silu(x: Array) -> Array:
    """x times its logistic function."""
    return x / (1.0 + np.exp(-x))


def softmax(scores: Array) -> Array:
    """Over the last axis."""
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def rotate(x: Array, bases: Array) -> Array:
    """Rotary embedding (Su et al. 2021): dimension i turns with dimension i + H / 2, as in GPT-NeoX and Llama.

    Args:
        x: [T, N, H], the token at index p being at position p.
        bases: [T], the base of the wavelengths at each position.
    """
    half = x.shape[-1] // 2
    positions = np.arange(len(x), dtype=np.float64)
    angles = positions[:, None] * bases[:, None] ** (-np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend(q: Array, k: Array, v: Array, slopes: Array | None = None) -> Array:
    """Causal attention (Vaswani et al. 2017), kv heads shared by consecutive query heads (Ainslie et al. 2023).

    Args:
        q: [T, N, H].
        k: [T, K, H].
        v: [T, K, H].
        slopes: [N], ALiBi (Press et al. 2022): how much a head's scores fall with each token of distance.

    Returns:
        [T, N * H].
    """
    length, num_heads, head_dim = q.shape
    k, v = (np.repeat(each, num_heads // each.shape[1], axis=1) for each in (k, v))
    scores = np.einsum("qnh,knh->nqk", q, k) / np.sqrt(head_dim)
    distance = np.arange(length)[:, None] - np.arange(length)[None, :]
    if slopes is not None:
        scores = scores - slopes[:, None, None] * distance
    weights = softmax(np.where(distance >= 0, scores, -np.inf))
    return np.einsum("nqk,knh->qnh", weights, v).reshape(length, num_heads * head_dim)


def dynamic_ntk_bases(length: int, base: float, factor: float, original: int, head_dim: int) -> Array:
    """[length] bases of dynamic NTK scaling, by position: p takes the base for a sequence of p + 1 tokens.

    The published definition takes the length of the whole sequence instead. Both say `base` within `original` tokens;
    and both say the same for tokens generated one by one after a prompt of at most `original`, since a key keeps the
    base of its time. See docs/decisions/0007-dynamic-ntk-by-position.md.
    """
    lengths = np.maximum(np.arange(1, length + 1), original)
    return base * (factor * lengths / original - (factor - 1)) ** (head_dim / (head_dim - 2))
