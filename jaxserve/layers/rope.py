"""Rotary position embeddings (Su et al. 2021) and the ways their frequencies are scaled."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

RopeKind = Literal["default", "linear", "dynamic", "dynamic_qwen", "llama3", "yarn", "longrope"]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """How positions turn into angles.

    Attributes:
        kind: `default`; `linear` (Chen et al. 2023) divides positions by `factor`; `dynamic` raises the base with the
            length (dynamic NTK); `dynamic_qwen` is Qwen 1's way to do that, in powers of two; `llama3` divides the long
            wavelengths only; `yarn` is Peng et al. 2023; `longrope` (Ding et al. 2024) divides each frequency by a
            searched factor.
        theta: base of the wavelengths.
        factor: how many times longer the context is than in pretraining.
        original_max_position_embeddings: tokens of context in pretraining (all but default and linear).
        low_freq_factor: llama3: wavelengths over original / low_freq_factor are divided by `factor`.
        high_freq_factor: llama3: wavelengths under original / high_freq_factor are kept.
        beta_fast: yarn: rotations within the original context above which a dimension is kept.
        beta_slow: yarn: rotations below which a dimension is divided by `factor`.
        attention_factor: yarn, longrope: what cos and sin are multiplied by; from `factor`, and yarn's mscales,
            if None.
        mscale: yarn: see `attention_factor`.
        mscale_all_dim: yarn: see `attention_factor`.
        truncate: yarn: round the bounds between kept and divided dimensions outwards to whole ones.
        short_factors: longrope: R / 2 factors where the table is no longer than the original context.
        long_factors: longrope: R / 2 factors where it is longer.
    """

    kind: RopeKind = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    @property
    def cos_sin_scale(self) -> float:
        """What cos and sin are multiplied by: 1 but for yarn and longrope."""
        if self.kind not in ("yarn", "longrope"):
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.kind == "longrope":
            growth = math.log(self.factor) / math.log(_original_length(self))
            return math.sqrt(1.0 + growth) if self.factor > 1.0 else 1.0
        if self.mscale and self.mscale_all_dim:
            return _yarn_mscale(self.factor, self.mscale) / _yarn_mscale(self.factor, self.mscale_all_dim)
        return _yarn_mscale(self.factor, 1.0)


def rope_table(config: RopeConfig, rotary_dim: int, max_positions: int) -> Float32Array:
    """Cosines and sines of every position.

    With the kind `dynamic` the row of position p takes the base for a sequence of p + 1 tokens. That equals
    token-by-token generation with a cache that starts from a prompt within the original context, as transformers does
    it, and a token's key does not depend on how its sequence was split into steps, so that preemption and cached
    prefixes change nothing. (A prompt longer than the original context is rotated by transformers with one base, that
    of its whole length.) `dynamic_qwen` follows the same rule.

    With the kind `longrope` the number of rows decides: all rows take the long factors if there are more than the
    original context has, and the short ones if not. transformers decides by the length of each sequence.

    Args:
        config: how positions turn into angles.
        rotary_dim: R, the rotated dimensions of each head, even.
        max_positions: number of rows.

    Returns:
        [max_positions, 2, R / 2] float32: cos, then sin.
    """
    positions = np.arange(max_positions, dtype=np.float32)
    frequencies = _inverse_frequencies(config, rotary_dim, max_positions)
    # Angles are rounded to float32 as the reference implementations do, only then taken to more digits.
    angles = (positions[:, None] * frequencies).astype(np.float64)
    table = np.stack([np.cos(angles), np.sin(angles)], axis=1) * config.cos_sin_scale
    return table.astype(np.float32)


def _inverse_frequencies(config: RopeConfig, rotary_dim: int, max_positions: int) -> Float32Array:
    """[1, R / 2], or [max_positions, R / 2] where they depend on the position."""
    base = np.full((1, 1), config.theta, dtype=np.float64)
    if config.kind in ("dynamic", "dynamic_qwen"):
        base = _dynamic_base(config, rotary_dim, max_positions)
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    frequencies = (1.0 / base ** exponents.astype(np.float64)).astype(np.float32)
    if config.kind == "linear":
        frequencies /= np.float32(config.factor)
    elif config.kind == "llama3":
        frequencies = _llama3_frequencies(config, frequencies)
    elif config.kind == "yarn":
        frequencies = _yarn_frequencies(config, frequencies, rotary_dim)
    elif config.kind == "longrope":
        is_long = max_positions > _original_length(config)
        factors = config.long_factors if is_long else config.short_factors
        frequencies = (1.0 / (np.array(factors, np.float32) / frequencies)).astype(np.float32)
    return frequencies


def _original_length(config: RopeConfig) -> int:
    if config.original_max_position_embeddings is None:
        raise ValueError(f"rope of kind {config.kind} needs original_max_position_embeddings")
    return config.original_max_position_embeddings


def _dynamic_base(config: RopeConfig, rotary_dim: int, max_positions: int) -> npt.NDArray[np.float64]:
    original = _original_length(config)
    lengths = np.maximum(np.arange(1, max_positions + 1, dtype=np.float64), original)[:, None]
    if config.kind == "dynamic":
        growth = config.factor * lengths / original - (config.factor - 1.0)
    else:
        growth = np.maximum(2.0 ** (np.ceil(np.log2(lengths / original)) + 1.0) - 1.0, 1.0)
    return np.asarray(config.theta * growth ** (rotary_dim / (rotary_dim - 2)), dtype=np.float64)


def _llama3_frequencies(config: RopeConfig, frequencies: Float32Array) -> Float32Array:
    original = _original_length(config)
    wavelengths = 2.0 * math.pi / frequencies.astype(np.float64)
    low, high = config.low_freq_factor, config.high_freq_factor
    # 1 keeps the frequency, 0 divides it by the factor; in between the two are mixed.
    kept = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    return ((1.0 - kept) * frequencies / config.factor + kept * frequencies).astype(np.float32)


def _yarn_frequencies(config: RopeConfig, frequencies: Float32Array, rotary_dim: int) -> Float32Array:
    original = _original_length(config)

    def dimension(rotations: float) -> float:
        """The (fractional) dimension that turns this often within the original context."""
        return rotary_dim * math.log(original / (rotations * 2.0 * math.pi)) / (2.0 * math.log(config.theta))

    low, high = dimension(config.beta_fast), dimension(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    if low == high:
        high += 0.001
    divided = np.clip((np.arange(rotary_dim // 2, dtype=np.float64) - low) / (high - low), 0.0, 1.0)
    return (frequencies / config.factor * divided + frequencies * (1.0 - divided)).astype(np.float32)


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1.0 else 1.0
