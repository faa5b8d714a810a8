"""ModelRunner on hand-written plans: what it computes, keeps on the device, and leaves alone."""

import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.errors import DeviceLostError, DeviceMemoryError
from jaxserve.request import SamplingParams
from jaxserve.runner import buckets, model_runner
from jaxserve.runner.buckets import SamplerKind
from jaxserve.runner.host_memory import HostArray
from jaxserve.runner.model_runner import DispatchedStep, ModelRunner
from jaxserve.runner.step_function import copy_pages
from tests.support.recorded_models import Recording
from tests.support.written_plan import Entry, plan

PAGE_SIZE = 4
GREEDY = SamplingParams(temperature=0.0)
RECORDING = Recording.of("gqa")
LONG, LONG_GREEDY = RECORDING.prompts[3], RECORDING.greedy[3]
SHORT, SHORT_GREEDY = RECORDING.prompts[1], RECORDING.greedy[1]


def pages(first: int, num_tokens: int, start: int = 0) -> tuple[tuple[int, int], ...]:
    """Pages from `first` on, for a sequence's tokens from page `start` on."""
    return tuple((i, first + i) for i in range(start, -(-num_tokens // PAGE_SIZE)))


def pool(runner: ModelRunner) -> np.ndarray:
    """[layers, P, 2, page_size, K, H]"""
    pages = np.asarray(runner.allocate())
    return pages.reshape(runner._pool.num_layers, runner._pool.num_pages, *pages.shape[1:])


def run(runner: ModelRunner, *args: Any, **options: Any) -> list[int]:
    return runner.collect(runner.dispatch(plan(*args, **options)))


def test_tokens_are_fed_back_on_the_device_without_being_collected(runner: ModelRunner) -> None:
    """Steps are started one after the other, each on the last one's token; only then is any collected."""
    handles = [runner.dispatch(plan(0, Entry(2, 0, SHORT, pages(5, 30), GREEDY)))]
    handles += [runner.dispatch(plan(1 + i, Entry(2, len(SHORT) + i))) for i in range(23)]
    assert [runner.collect(handle)[0] for handle in handles] == SHORT_GREEDY


def test_what_a_step_keeps_stays_where_it_is_and_what_it_reads_and_writes_takes_turns(runner: ModelRunner) -> None:
    """A CUDA graph is bound to addresses, and updating all of it takes the host a millisecond."""
    tokens, handles, kept, read, written = [], [], set(), set(), set()
    for step in range(12):
        entry = Entry(2, 0, SHORT, pages(5, 30), GREEDY) if step == 0 else Entry(2, len(SHORT) + step - 1)
        handle = runner.dispatch(plan(step, entry))
        handles.append(handle)
        kept.add(tuple(array.unsafe_buffer_pointer() for array in (runner.allocate(), *runner._state)))
        read.add((handle.packed.array.size, handle.packed.array.unsafe_buffer_pointer()))
        written.add(handle.sampled.unsafe_buffer_pointer())
        if step > 0:
            # As in the engine, a step is in flight when the next is started.
            tokens += runner.collect(handles[step - 1])
    assert tokens == SHORT_GREEDY[:11]
    assert len(kept) == 1
    # The prompt's, and of the decoding steps in turn. The first ones' tokens lie where NumPy's zeros did.
    assert len(read) == 3
    assert len(written) <= 4
    assert len(runner._in_flight) == 1


def step_that_gave(tokens: Any, num_seqs: int) -> DispatchedStep:
    return DispatchedStep(tokens, HostArray(tokens, ()), num_seqs)


def test_a_step_in_which_a_device_waited_in_vain_raises(runner: ModelRunner) -> None:
    tokens = jnp.array([5, -1, 0], jnp.int32)
    with pytest.raises(DeviceLostError, match="waited in vain"):
        runner.collect(step_that_gave(tokens, 2))
    assert runner.collect(step_that_gave(tokens, 1)) == [5]


class Failed:
    """Tokens of a step that failed on the device."""

    def __init__(self, message: str) -> None:
        self._message = message

    def block_until_ready(self) -> jax.Array:
        raise jax.errors.JaxRuntimeError(self._message)


def test_a_step_without_room_on_the_device_says_what_to_change(runner: ModelRunner) -> None:
    failed = Failed("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1.69GiB")
    with pytest.raises(DeviceMemoryError, match="num_pages or a lower max_num_batched_tokens") as caught:
        runner.collect(step_that_gave(failed, 1))
    assert "1.69GiB" in str(caught.value.__cause__)
    other = Failed("INTERNAL: an illegal memory access was encountered")
    with pytest.raises(jax.errors.JaxRuntimeError, match="illegal memory access"):
        runner.collect(step_that_gave(other, 1))


def test_each_slot_feeds_back_its_own_token(runner: ModelRunner) -> None:
    first = plan(0, Entry(3, 0, SHORT, pages(1, 30), GREEDY), Entry(0, 0, LONG, pages(20, 64), GREEDY))
    steps = [runner.collect(runner.dispatch(first))]
    for i in range(8):
        # In the other order, beside a third sequence that comes and goes.
        entries = [Entry(0, len(LONG) + i), Entry(3, len(SHORT) + i)]
        if i % 3 == 0:
            entries.insert(1, Entry(1, 0, [7, 9], pages(50, 2), GREEDY))
        sampled = run(runner, i + 1, *entries)
        steps.append([sampled[-1], sampled[0]])
    assert [list(column) for column in zip(*steps, strict=True)] == [SHORT_GREEDY[:9], LONG_GREEDY[:9]]


def test_shapes_for_decoding_alone_give_the_same_tokens(make_runner: Callable[..., ModelRunner]) -> None:
    """Three sequences in a shape of four, a prompt of one token among them."""
    runner = make_runner(split_decode=True)
    run(runner, 0, Entry(3, 0, SHORT, pages(1, 30), GREEDY), Entry(0, 0, LONG[:-1], pages(20, 64), GREEDY))
    one, one_greedy = RECORDING.prompts[0], RECORDING.greedy[0]
    last = Entry(0, len(LONG) - 1, LONG[-1:])
    steps = [run(runner, 1, last, Entry(1, 0, one, pages(50, 25), GREEDY), Entry(3, len(SHORT)))]
    for i in range(8):
        entries = [Entry(slot, start + i) for slot, start in ((0, len(LONG)), (1, 1), (3, len(SHORT) + 1))]
        steps.append(run(runner, 2 + i, *entries))
    expected = [LONG_GREEDY[:9], one_greedy[:9], SHORT_GREEDY[1:10]]
    assert [list(column) for column in zip(*steps, strict=True)] == expected
    assert {bucket.num_tokens for bucket in runner._steps if bucket.decode_only} == {4}


def test_a_prompt_in_chunks_gives_the_token_of_the_whole_one(runner: ModelRunner) -> None:
    run(runner, 0, Entry(1, 0, LONG[:13], pages(1, 13), GREEDY))
    run(runner, 1, Entry(1, 13, LONG[13:30], pages(1, 30, start=4)))
    assert run(runner, 2, Entry(1, 30, LONG[30:], pages(1, 41, start=8))) == LONG_GREEDY[:1]


@pytest.mark.parametrize("entries_a_call", [1024, 3])
def test_a_cached_prefix_of_more_pages_than_the_step_carries(
    runner: ModelRunner, entries_a_call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_runner, "_UPDATES_A_CALL", entries_a_call)
    run(runner, 0, Entry(0, 0, LONG, pages(1, 44), GREEDY))
    shared = plan(1, Entry(1, 40, LONG[40:], pages(1, 44), GREEDY))
    assert len(shared.page_table_updates) > runner._buckets.pick(1, SamplerKind.GREEDY).num_page_updates + 3
    assert runner.collect(runner.dispatch(shared)) == LONG_GREEDY[:1]


def test_copied_pages_serve_like_the_originals(runner: ModelRunner) -> None:
    run(runner, 0, Entry(0, 0, LONG, pages(1, 44), GREEDY))
    # More copies than one call makes, onto pages that a second sequence then computes its last token with.
    originals, copies = range(1, 12), range(30, 41)
    others = [(page, page + 10) for page in range(12, 20)]
    copied = plan(
        1,
        Entry(1, 40, LONG[40:], tuple(enumerate(copies)), GREEDY),
        copies=[*zip(originals, copies, strict=True), *others],
    )
    assert len(copied.page_copies) > model_runner._COPIES_A_CALL
    assert runner.collect(runner.dispatch(copied)) == LONG_GREEDY[:1]


def test_copying_changes_the_target_pages_and_no_other(runner: ModelRunner) -> None:
    run(runner, 0, Entry(0, 0, LONG, pages(1, 44), GREEDY))
    before = pool(runner)
    pairs = [(1 + i % 10, 40 + i) for i in range(18)]
    runner._copy_pages(pairs)
    expected = before.copy()
    for source, target in pairs:
        expected[:, target] = before[:, source]
    np.testing.assert_array_equal(pool(runner), expected)
    assert np.abs(expected[:, 40]).sum() > 0


def test_copies_onto_pages_that_there_are_not_are_dropped_in_every_layer() -> None:
    """Past the pages of one layer lie those of the next."""
    pages = jnp.arange(3 * 5 * 2, dtype=jnp.float32).reshape(15, 2, 1, 1, 1)
    sources, targets = jnp.array([1, 2, 4, 3]), jnp.array([5, 0, 9, 16])
    copied = np.asarray(copy_pages(pages, sources, targets, num_layers=3)).reshape(3, 5, 2)
    expected = np.asarray(pages).reshape(3, 5, 2).copy()
    expected[:, 0] = expected[:, 2]
    np.testing.assert_array_equal(copied, expected)


def test_each_layer_writes_the_slots_of_the_tokens_among_its_own_pages(runner: ModelRunner) -> None:
    """Five tokens in a shape of sixteen, whose padding no layer may write anywhere."""
    run(runner, 0, Entry(1, 0, LONG[:5], ((0, 33), (1, 20)), GREEDY))
    first, second = pool(runner)
    for layer in (first, second):
        slots = zip(*np.nonzero(layer.any(axis=(1, 3, 4))), strict=True)
        assert sorted(slots) == [(20, 0), (33, 0), (33, 1), (33, 2), (33, 3)]
    assert not np.array_equal(first, second)


def test_a_step_writes_the_slots_of_its_tokens_and_no_other(runner: ModelRunner) -> None:
    """Five tokens in a shape of sixteen, on pages of a pool that held something before."""
    run(runner, 0, Entry(0, 0, LONG, pages(1, 41), GREEDY))
    before = pool(runner)
    run(runner, 1, Entry(1, 0, LONG[:5], ((0, 33), (1, 20)), GREEDY))
    changed = (pool(runner) != before).any(axis=(0, 2, 4, 5))
    assert sorted(zip(*np.nonzero(changed), strict=True)) == [(20, 0), (33, 0), (33, 1), (33, 2), (33, 3)]


def test_compiling_ahead_leaves_pool_and_state_untouched_and_nothing_to_compile(
    runner: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[tuple[str, int, int]] = []
    run(runner, 0, Entry(0, 0, LONG, pages(1, 41), GREEDY))
    before, state = pool(runner), jax.device_get(runner._state)
    runner.compile_ahead(lambda *report: reports.append(report))
    np.testing.assert_array_equal(pool(runner), before)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(runner._state), state)
    assert reports[0][1] == 0 and reports[-1][1] == reports[-1][2] == len(runner._buckets)
    monkeypatch.setattr(runner._compiler, "compile", None)
    assert run(runner, 1, Entry(0, 41)) == LONG_GREEDY[1:2]
    run(runner, 2, Entry(1, 0, SHORT, pages(20, 6), SamplingParams(temperature=1.0)))


def test_steps_run_in_the_first_shapes_until_closer_ones_are_compiled_in_the_background(
    make_runner: Callable[..., ModelRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "FINE_FROM", 16)
    runner = make_runner(fine=True)
    fine = [bucket for bucket in runner._buckets if bucket not in runner._buckets.first]
    assert {bucket.num_tokens for bucket in fine} == {28, 40, 52}
    go_on = threading.Event()
    compile_bucket = runner._compiler.compile

    def compile_when_told(bucket: Any) -> Any:
        if bucket in fine:
            go_on.wait(60)
        return compile_bucket(bucket)

    monkeypatch.setattr(runner._compiler, "compile", compile_when_told)
    runner.compile_ahead()
    assert set(runner.compiled_steps) == set(runner._buckets.first)
    entry = Entry(0, 0, LONG[:20], pages(1, 20), GREEDY)
    before = run(runner, 0, entry)
    assert set(runner.compiled_steps) == set(runner._buckets.first)
    go_on.set()
    runner.finish_compiling()
    assert run(runner, 1, entry) == before
    assert set(runner.compiled_steps) == set(runner._buckets)
    assert runner._pick_bucket(20, SamplerKind.GREEDY, decode_only=False).num_tokens == 28
    assert runner.close()


def test_with_everything_compiled_ahead_the_closest_shape_is_there_from_the_first_step_on(
    make_runner: Callable[..., ModelRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "FINE_FROM", 16)
    runner = make_runner(fine=True)
    runner.compile_ahead(everything=True)
    assert set(runner.compiled_steps) == set(runner._buckets)
    monkeypatch.setattr(runner._compiler, "compile", None)
    assert not runner.finish_compiling()
    assert runner._pick_bucket(20, SamplerKind.GREEDY, decode_only=False).num_tokens == 28
    run(runner, 0, Entry(0, 0, LONG[:20], pages(1, 20), GREEDY))


def test_the_pool_is_updated_in_place(runner: ModelRunner) -> None:
    def addresses() -> list[int]:
        return [shard.data.unsafe_buffer_pointer() for shard in runner.allocate().addressable_shards]

    run(runner, 0, Entry(0, 0, SHORT, pages(1, 30), GREEDY))
    before = addresses()
    for i in range(4):
        run(runner, 1 + i, Entry(0, len(SHORT) + i))
    runner._copy_pages([(1, 9)])
    assert addresses() == before


def test_every_shape_gives_its_pool_and_state_to_the_next_step(runner: ModelRunner) -> None:
    """What XLA aliases between arguments and results of a step covers all that stays on the device."""
    kept = sum(a.nbytes for a in (runner.allocate(), *runner._state))
    for num_tokens in (1, 4):
        compiled: Any = runner._compiler.compile(runner._buckets.pick(num_tokens, SamplerKind.FULL))
        assert compiled.memory_analysis().alias_size_in_bytes >= kept


def test_greedy_steps_run_without_the_full_sampler(runner: ModelRunner) -> None:
    run(runner, 0, Entry(0, 0, SHORT, pages(1, 30), GREEDY), Entry(1, 0, [4], pages(20, 9), GREEDY))
    assert {bucket.sampler for bucket in runner._steps} == {SamplerKind.GREEDY}
    run(runner, 1, Entry(0, 6), Entry(2, 0, [4], pages(30, 9), SamplingParams(temperature=0.5)))
    assert {bucket.sampler for bucket in runner._steps} == set(SamplerKind)
    assert run(runner, 2, Entry(0, 7)) == SHORT_GREEDY[2:3]


def test_a_slot_forgets_the_parameters_of_its_last_owner(runner: ModelRunner) -> None:
    run(runner, 0, Entry(0, 0, SHORT, pages(1, 30), SamplingParams(temperature=50.0), seed=3))
    again = [run(runner, 1 + i, Entry(0, 0, SHORT, pages(1, 30), GREEDY)) for i in range(2)]
    assert again == [SHORT_GREEDY[:1]] * 2


def test_sampled_tokens_are_the_same_alone_and_beside_others(make_runner: Callable[..., ModelRunner]) -> None:
    params = SamplingParams(temperature=1.5)

    def tokens(*, beside_others: bool) -> list[int]:
        runner = make_runner()
        others = [Entry(2, 0, LONG[:9], pages(40, 40), GREEDY)] if beside_others else []
        sampled = [run(runner, 0, *others, Entry(1, 0, SHORT, pages(1, 30), params, seed=-77))[-1]]
        for i in range(12):
            others = [Entry(2, 9 + i)] if beside_others and i % 2 else []
            sampled.append(run(runner, 1 + i, *others, Entry(1, len(SHORT) + i))[-1])
        return sampled

    alone = tokens(beside_others=False)
    assert tokens(beside_others=True) == alone
    assert alone != SHORT_GREEDY[:13]
