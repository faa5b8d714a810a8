"""The sampler on the device, given parameters as the runner packs them, against plain NumPy definitions."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.request import SamplingParams
from jaxserve.runner.buckets import Bucket, SamplerKind
from jaxserve.runner.input_batch import InputBatch
from jaxserve.runner.packing import packed_layout
from jaxserve.runner.sampler import sample
from jaxserve.step import SlotAssignment, StepPlan
from pallas_kernels.sampling_floor import sampling_floor

VOCAB_SIZE = 32
NUM_ROWS = 4096
LOGITS = np.random.default_rng(7).normal(scale=1.5, size=VOCAB_SIZE).astype(np.float32)
BY_RANK = np.argsort(-LOGITS)  # ids, the most probable first
BUCKET = Bucket(NUM_ROWS, NUM_ROWS, 1, SamplerKind.FULL)


@jax.jit
def _sample(logits: jax.Array, positions: jax.Array, packed: jax.Array) -> jax.Array:
    return sample(logits, positions, packed_layout(BUCKET).unpack(packed))


def draw(
    params: Sequence[SamplingParams],
    seeds: Sequence[int],
    *,
    logits: np.ndarray = LOGITS,
    position: int = 5,
    suppressed: tuple[int, ...] = (),
    suppress: Sequence[bool] = (),
) -> np.ndarray:
    """One token for each entry, drawn from the same scores [V] or from its own [N, V]."""
    size = len(seeds)
    batch = InputBatch(NUM_ROWS)
    batch.assign(
        [SlotAssignment(i, p, seed, suppressed) for i, (p, seed) in enumerate(zip(params, seeds, strict=True))]
    )
    plan = StepPlan(
        0,
        slots=list(range(size)),
        query_lens=[1] * size,
        start_positions=[position - 1] * size,
        samples=[True] * size,
        feeds_back=[True] * size,
        suppress_stops=list(suppress) or [False] * size,
    )
    packed = batch.pack(plan, BUCKET)
    rows = np.zeros((NUM_ROWS, logits.shape[-1]), np.float32)
    rows[:size] = logits
    return np.asarray(_sample(rows, np.full(NUM_ROWS, position, np.int32), packed))[:size]


def draw_many(params: SamplingParams, **options: object) -> np.ndarray:
    """A token for each of NUM_ROWS seeds."""
    return draw([params] * NUM_ROWS, range(NUM_ROWS), **options)  # type: ignore[arg-type]


def distribution(params: SamplingParams) -> np.ndarray:
    """[V] probabilities by definition: tempered, then cut by min_p, top_k and top_p, each of what the last one left."""
    p = np.exp(LOGITS.astype(np.float64) / params.temperature)
    p[p < params.min_p * p.max()] = 0.0
    if params.top_k > 0:
        p[np.argsort(-p)[params.top_k :]] = 0.0
    p /= p.sum()
    order = np.argsort(-p)
    nucleus_size = int(np.argmax(np.cumsum(p[order]) >= params.top_p - 1e-12)) + 1
    p[order[nucleus_size:]] = 0.0
    cut: np.ndarray = p / p.sum()
    return cut


@pytest.mark.parametrize(
    "params",
    [
        pytest.param(SamplingParams(), id="plain"),
        pytest.param(SamplingParams(temperature=0.4), id="cold"),
        pytest.param(SamplingParams(temperature=3.0), id="hot"),
        pytest.param(SamplingParams(top_k=5), id="top_k"),
        pytest.param(SamplingParams(top_p=0.6), id="top_p"),
        pytest.param(SamplingParams(min_p=0.2), id="min_p"),
        pytest.param(SamplingParams(temperature=2.0, min_p=0.15, top_k=10, top_p=0.8), id="all"),
        # What top_p keeps depends on what top_k left: of all tokens it would keep more.
        pytest.param(SamplingParams(top_k=4, top_p=0.7), id="top_k-before-top_p"),
    ],
)
def test_tokens_follow_the_distribution_that_the_parameters_define(params: SamplingParams) -> None:
    counts = np.bincount(draw_many(params), minlength=VOCAB_SIZE)
    expected = NUM_ROWS * distribution(params)
    assert not counts[expected == 0].any()
    assert (counts[expected > 20] > 0).all()
    likely = expected > 5
    chi_square = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    freedom = max(1, int(likely.sum()) - 1)
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)


def test_temperature_0_takes_the_best_token() -> None:
    assert set(draw_many(SamplingParams(temperature=0.0)).tolist()) == {int(BY_RANK[0])}


def test_top_k_of_1_takes_the_best_token() -> None:
    assert set(draw_many(SamplingParams(top_k=1, temperature=5.0)).tolist()) == {int(BY_RANK[0])}


@pytest.mark.parametrize("temperature", [1e-5, 1e-30, 2e-38, 1e-40, 1e-300])
def test_the_smallest_temperatures_take_the_best_token(temperature: float) -> None:
    """Scores divided by them lie outside the range of 32-bit floats."""
    drawn = draw_many(SamplingParams(temperature=temperature), logits=20 * LOGITS)
    assert set(drawn.tolist()) == {int(BY_RANK[0])}


@pytest.mark.parametrize("top_k", [0, -1, VOCAB_SIZE, 10**12])
def test_top_k_of_0_or_of_more_than_there_are_keeps_all(top_k: int) -> None:
    assert set(draw_many(SamplingParams(top_k=top_k, temperature=100.0)).tolist()) == set(range(VOCAB_SIZE))


def test_tokens_that_tie_with_the_last_one_kept_are_kept() -> None:
    logits = np.full(VOCAB_SIZE, -5.0, np.float32)
    logits[[3, 9, 20]] = 2.0
    assert set(draw_many(SamplingParams(top_k=2), logits=logits).tolist()) == {3, 9, 20}


def test_top_p_of_1_keeps_even_the_least_probable_tokens() -> None:
    """Running sums of 32-bit floats reach the whole before the last tokens do."""
    logits = 3.0 * jax.random.normal(jax.random.key(0), (2, 50_000))
    everything = jnp.full(2, 2**31 - 1, jnp.int32)
    floor = sampling_floor(logits, logits.max(axis=-1), jnp.ones(2), everything, jnp.ones(2), jnp.zeros(2))
    assert bool((logits >= floor[:, None]).all())


def test_the_same_seed_gives_the_same_token_in_any_row_beside_any_others() -> None:
    rng = np.random.default_rng(0)
    params = SamplingParams(temperature=1.3, top_p=0.95)
    alone = [int(draw([params], [seed])[0]) for seed in range(20)]
    rows = rng.permutation(100)
    others = [SamplingParams(temperature=float(t), top_k=int(k)) for t, k in rng.integers(0, 9, (100, 2))]
    seeds = rng.integers(0, 2**60, 100).tolist()
    for seed in range(20):
        others[rows[seed]], seeds[rows[seed]] = params, seed
    mixed = draw(others, seeds)
    assert [int(mixed[rows[seed]]) for seed in range(20)] == alone
    assert len(set(alone)) > 3


def draws_over_positions(seed: int) -> list[int]:
    params = SamplingParams(temperature=2.0)
    return [int(draw([params], [seed], position=position)[0]) for position in range(1, 31)]


def test_seeds_that_differ_in_any_bit_draw_differently() -> None:
    seeds = [0, 1, 5, 5 + 2**32, 5 + 2**62, -1, -5, 2**31, 2**63 - 1, -(2**63), 2**40, 2**40 + 1]
    sequences = {tuple(draws_over_positions(seed)) for seed in seeds}
    assert len(sequences) == len(seeds)


def test_positions_draw_independently() -> None:
    first, second = (draw_many(SamplingParams(temperature=2.0), position=position) for position in (8, 9))
    expected = float((distribution(SamplingParams(temperature=2.0)) ** 2).sum())
    assert abs((first == second).mean() - expected) < 6 * np.sqrt(expected / NUM_ROWS)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 100.0])
def test_suppressed_ids_are_never_taken_while_they_are_held_back(temperature: float) -> None:
    params = SamplingParams(temperature=temperature)
    ids = (*BY_RANK[:3].tolist(), int(BY_RANK[-1]))
    held = draw_many(params, suppressed=ids, suppress=[True] * NUM_ROWS)
    free = draw_many(params, suppressed=ids, suppress=[False] * NUM_ROWS)
    assert not set(held.tolist()) & set(ids)
    assert set(free.tolist()) & set(ids)
    if temperature == 0.0:
        assert set(held.tolist()) == {int(BY_RANK[3])}


def test_ids_are_held_back_only_in_the_rows_that_say_so() -> None:
    best = int(BY_RANK[0])
    rows = draw([SamplingParams(temperature=0.0)] * 6, range(6), suppressed=(best,), suppress=[True, False] * 3)
    assert rows.tolist() == [int(BY_RANK[1]), best] * 3


def test_greedy_and_random_rows_go_together() -> None:
    logits = np.random.default_rng(3).normal(size=(NUM_ROWS, VOCAB_SIZE)).astype(np.float32)
    kinds = [SamplingParams(temperature=0.0), SamplingParams(temperature=1.0)]
    drawn = draw(kinds * (NUM_ROWS // 2), range(NUM_ROWS), logits=logits)
    is_best = drawn == logits.argmax(axis=-1)
    assert is_best[::2].all()
    assert 0.05 < is_best[1::2].mean() < 0.5
