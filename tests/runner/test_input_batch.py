"""The packed array: the device reads what the host wrote."""

import jax
import numpy as np
import pytest

from jaxserve.request import MAX_STOP_TOKEN_IDS, SamplingParams
from jaxserve.runner.buckets import Bucket, SamplerKind
from jaxserve.runner.input_batch import InputBatch
from jaxserve.runner.packing import packed_layout
from jaxserve.step import SlotAssignment, StepPlan
from tests.support.written_plan import Entry, plan

NUM_SLOTS = 6


def unpacked(batch: InputBatch, step: StepPlan, bucket: Bucket) -> dict[str, np.ndarray]:
    """The fields as a compiled step sees them."""
    fields: dict[str, np.ndarray] = jax.device_get(jax.jit(packed_layout(bucket).unpack)(batch.pack(step, bucket)))
    return fields


@pytest.mark.parametrize("kind", SamplerKind)
def test_the_device_unpacks_what_the_host_packed(kind: SamplerKind) -> None:
    layout = packed_layout(Bucket(7, 3, 5, kind))
    packed = np.zeros(layout.size, np.int32)
    rng = np.random.default_rng(0)
    for view in layout.views(packed).values():
        view[...] = rng.integers(-(2**31), 2**31, view.shape) if view.dtype == np.int32 else rng.normal(size=view.shape)
    on_device = jax.device_get(jax.jit(layout.unpack)(packed))
    views = layout.views(packed)
    assert on_device.keys() == views.keys()
    for name, view in views.items():
        assert on_device[name].dtype == view.dtype
        np.testing.assert_array_equal(on_device[name], view)
    assert sum(view.size for view in views.values()) == layout.size


def test_tokens_and_sequences_lie_where_the_plan_says() -> None:
    batch = InputBatch(NUM_SLOTS)
    step = plan(
        0,
        Entry(4, 3, [10, 11, 12], ((0, 8), (1, 9))),
        Entry(0, 7),
        Entry(2, 0, [13]),
        Entry(5, 20, None, ((5, 3),)),
    )
    fields = unpacked(batch, step, Bucket(8, 5, 6, SamplerKind.GREEDY))
    assert fields["token_ids"].tolist() == [10, 11, 12, ~0, 13, ~5, 0, 0]
    assert fields["query_start_loc"].tolist() == [0, 3, 4, 5, 6, 6]
    assert fields["seq_lens"].tolist() == [6, 8, 1, 21, 0]
    assert fields["slots"].tolist() == [4, 0, 2, 5, NUM_SLOTS]
    assert fields["page_updates"][:3].tolist() == [[4, 0, 8], [4, 1, 9], [5, 5, 3]]
    assert fields["page_updates"][3:, 0].tolist() == [NUM_SLOTS] * 3
    assert "temperature" not in fields


def test_steps_of_single_tokens_do_not_say_where_their_sequences_begin() -> None:
    fields = unpacked(
        InputBatch(NUM_SLOTS), plan(0, Entry(0, 7), Entry(5, 20)), Bucket(4, 4, 1, SamplerKind.GREEDY, True)
    )
    assert "query_start_loc" not in fields
    assert fields["token_ids"].tolist() == [~0, ~5, 0, 0]
    assert fields["seq_lens"].tolist() == [8, 21, 0, 0]


def test_sampling_parameters_follow_their_slots() -> None:
    batch = InputBatch(NUM_SLOTS)
    params = [
        SamplingParams(temperature=0.5, top_p=0.9, min_p=0.05, top_k=7),
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=2.0, top_k=-1),
    ]
    seeds = [-2, 2**40 + 3, 0]
    batch.assign([SlotAssignment(s, p, seed, (9, 8)) for s, p, seed in zip((5, 1, 3), params, seeds, strict=True)])
    step = plan(0, Entry(1, 4), Entry(3, 4), Entry(5, 4))
    step.suppress_stops = [False, False, True]
    fields = unpacked(batch, step, Bucket(4, 4, 1, SamplerKind.FULL))
    np.testing.assert_array_equal(fields["temperature"][:3], np.array([0.0, 2.0, 0.5], np.float32))
    np.testing.assert_array_equal(fields["top_p"][:3], np.array([1.0, 1.0, 0.9], np.float32))
    np.testing.assert_array_equal(fields["min_p"][:3], np.array([0.0, 0.0, 0.05], np.float32))
    assert fields["top_k"][2] == 7 and min(fields["top_k"][:2]) > 2**30
    halves = fields["seed_high"].view(np.uint32).astype(np.uint64) << 32 | fields["seed_low"].view(np.uint32)
    assert halves[:3].tolist() == [2**40 + 3, 0, 2**64 - 2]
    assert fields["suppress"].tolist() == [0, 0, 1, 0]
    assert fields["suppressed_ids"][2, :2].tolist() == [9, 8]
    assert min(fields["suppressed_ids"][2, 2:]) > 2**30
    assert fields["suppressed_ids"].shape == (4, MAX_STOP_TOKEN_IDS)


def test_the_full_sampler_runs_only_for_those_who_need_it() -> None:
    batch = InputBatch(NUM_SLOTS)
    batch.assign([SlotAssignment(0, SamplingParams(temperature=0.0), 0), SlotAssignment(1, SamplingParams(), 0)])
    greedy, mixed, held_back = plan(0, Entry(0, 1)), plan(0, Entry(0, 1), Entry(1, 1)), plan(0, Entry(0, 1))
    held_back.suppress_stops = [True]
    kinds = [batch.sampler_kind(step) for step in (greedy, mixed, held_back)]
    assert kinds == [SamplerKind.GREEDY, SamplerKind.FULL, SamplerKind.FULL]
    batch.assign([SlotAssignment(1, SamplingParams(temperature=0.0), 0)])
    assert batch.sampler_kind(mixed) is SamplerKind.GREEDY
