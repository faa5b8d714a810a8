"""Rows that are hard to cut right, and what cutting them right means, in float64."""

from dataclasses import dataclass

import numpy as np

from pallas_kernels.sampling_floor.arg_specs import PARAMS, ParamsSpec

VOCAB_SIZE = 300
TINY = float(np.finfo(np.float32).tiny)
# Relative error of a probability that is compared with a bound.
TOLERANCE = 2e-5


@dataclass(frozen=True)
class Row:
    """One row's logits [V] and parameters."""

    logits: np.ndarray
    params: ParamsSpec


def hard_rows() -> dict[str, Row]:
    """Name -> row."""
    rng = np.random.default_rng(0)
    normal = rng.normal(scale=3.0, size=VOCAB_SIZE).astype(np.float32)
    tied = np.round(normal)
    equal = np.full(VOCAB_SIZE, 1.5, np.float32)
    around_zero = np.where(rng.random(VOCAB_SIZE) < 0.5, np.float32(0.0), np.float32(-0.0))
    suppressed = np.where(rng.random(VOCAB_SIZE) < 0.7, -np.inf, normal).astype(np.float32)
    one_finite = np.full(VOCAB_SIZE, -np.inf, np.float32)
    one_finite[17] = -2.0
    peak = normal.copy()
    peak[123] = 60.0
    rows = {f"normal {name}": Row(normal, params) for name, params in PARAMS.items()}
    for k in (1, 2, 13, VOCAB_SIZE - 1, VOCAB_SIZE, 2**31 - 1):
        rows[f"normal k={k}"] = Row(normal, ParamsSpec(top_k=k))
    for p in (0.0, 1e-6, 0.3, 0.999, 0.9999999):
        rows[f"normal p={p}"] = Row(normal, ParamsSpec(top_p=p))
    for temperature in (0.0, 1e-40, 2 * TINY, 1e-5, 100.0, 1e6):
        rows[f"normal T={temperature}"] = Row(normal, ParamsSpec(temperature, top_p=0.5))
        rows[f"normal T={temperature} k"] = Row(normal, ParamsSpec(temperature, top_k=30, top_p=0.5))
    for name, logits in {
        "tied": tied,
        "equal": equal,
        "zeros of both signs": around_zero,
        "suppressed": suppressed,
        "one finite": one_finite,
        "peak": peak,
        "wide": normal * np.float32(1e4),
        "far from zero": normal + np.float32(3e4),
        "narrow": normal * np.float32(1e-6),
    }.items():
        rows[f"{name} k"] = Row(logits, ParamsSpec(top_k=40))
        rows[f"{name} p"] = Row(logits, ParamsSpec(top_p=0.7))
        rows[f"{name} k and p"] = Row(logits, ParamsSpec(top_k=60, top_p=0.6))
    rows["suppressed keep all"] = Row(suppressed, ParamsSpec())
    rows["suppressed k above the finite"] = Row(suppressed, ParamsSpec(top_k=250))
    rows["huge k"] = Row(normal * np.float32(1e30), ParamsSpec(top_k=40))
    rows["min_p 1"] = Row(tied, ParamsSpec(min_p=1.0))
    rows["min_p then k"] = Row(normal, ParamsSpec(min_p=0.2, top_k=200))
    rows["min_p then p"] = Row(normal, ParamsSpec(min_p=0.05, top_p=0.9))
    rows["padding"] = Row(np.zeros(VOCAB_SIZE, np.float32), ParamsSpec(temperature=0.0, top_k=0, top_p=0.0))
    return rows


def random_rows(num: int) -> dict[str, Row]:
    rng = np.random.default_rng(1)
    rows = {}
    for i in range(num):
        logits = rng.normal(scale=rng.choice([0.3, 1.0, 4.0]), size=VOCAB_SIZE)
        if rng.random() < 0.3:
            logits = np.round(logits, 1)
        params = ParamsSpec(
            temperature=float(np.float32(rng.uniform(0.2, 2.0))),
            top_k=int(rng.integers(1, VOCAB_SIZE)) if rng.random() < 0.6 else None,
            top_p=float(np.float32(rng.uniform(0.1, 1.0))) if rng.random() < 0.7 else 1.0,
            min_p=float(np.float32(rng.uniform(0.0, 0.2))) if rng.random() < 0.3 else 0.0,
        )
        rows[f"random {i}"] = Row(logits.astype(np.float32), params)
    return rows


def arrays(rows: list[Row]) -> dict[str, np.ndarray]:
    """The arguments of sampling_floor and gumbel_argmax but the floor."""
    rng = np.random.default_rng(2)
    logits = np.stack([row.logits for row in rows])
    params = [row.params for row in rows]
    return {
        "logits": logits,
        "best": logits.max(axis=-1),
        "temperature": np.array([p.temperature for p in params], np.float32),
        "top_k": np.array([2**31 - 1 if p.top_k is None else p.top_k for p in params], np.int32),
        "top_p": np.array([p.top_p for p in params], np.float32),
        "min_p": np.array([p.min_p for p in params], np.float32),
        "seeds": rng.integers(-(2**31), 2**31, (len(rows), 2)).astype(np.int32),
        "positions": rng.integers(0, 2**17, len(rows)).astype(np.int32),
    }


def kept_by_definition(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """(what must be kept, what may be kept), [V] bool each; they differ where rounding decides."""
    params = row.params
    x = row.logits.astype(np.float64)
    best = x.max()
    if np.float32(params.temperature) < TINY:
        return x == best, x == best
    weights = np.exp((x - best) / float(np.float32(params.temperature)))
    finite = np.isfinite(x)
    left = finite & (weights >= params.min_p * (1 - TOLERANCE))
    if params.top_k is not None:
        last = np.sort(np.where(left, x, -np.inf))[::-1][min(max(params.top_k, 1), len(x)) - 1]
        left &= x >= last
    must, may = left & (weights >= params.min_p * (1 + TOLERANCE)), left
    if params.top_p < 1.0:
        masses = np.where(left, weights, 0.0)
        above = np.array([masses[x > value].sum() for value in x])
        bound = float(np.float32(params.top_p)) * masses.sum()
        must = left & (above < bound - TOLERANCE * masses.sum())
        may = left & (above < bound + TOLERANCE * masses.sum())
    return must | (x == best), may | (x == best)
