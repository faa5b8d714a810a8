"""Buckets: which shapes there are and which one a step runs in; compiling them ahead."""

import random
import threading
import time
from collections.abc import Callable

import pytest

from jaxserve.runner import compile_ahead
from jaxserve.runner.buckets import Bucket, Buckets, SamplerKind
from jaxserve.runner.compile_ahead import BackgroundCompiler, compile_all


def token_counts(buckets: Buckets) -> list[int]:
    return sorted({bucket.num_tokens for bucket in buckets})


def test_token_counts_grow_by_a_factor_up_to_the_budget_itself() -> None:
    def counts(budget: int, growth: int) -> list[int]:
        return token_counts(Buckets(max_num_seqs=4, max_num_batched_tokens=budget, page_size=16, growth=growth))

    assert counts(100, 2) == [1, 2, 4, 8, 16, 32, 64, 100]
    assert counts(64, 4) == [1, 4, 16, 64]
    assert counts(1, 2) == [1]


def test_a_step_runs_in_the_smallest_bucket_that_holds_it() -> None:
    buckets = Buckets(max_num_seqs=8, max_num_batched_tokens=50, page_size=4, growth=4)
    for num_tokens in range(1, 51):
        for kind in SamplerKind:
            bucket = buckets.pick(num_tokens, kind)
            assert bucket.sampler is kind
            assert bucket.num_tokens == min(count for count in token_counts(buckets) if count >= num_tokens)


def test_steps_that_only_decode_have_buckets_of_their_own_where_asked_for() -> None:
    buckets = Buckets(max_num_seqs=24, max_num_batched_tokens=300, page_size=4, split_decode=True)
    kind = SamplerKind.GREEDY
    for num_tokens in range(1, 301):
        mixed = buckets.pick(num_tokens, kind)
        assert not mixed.decode_only
        assert mixed.num_tokens == next(count for count in (64, 128, 256, 300) if count >= num_tokens)
    for num_tokens in range(1, 25):
        decode = buckets.pick(num_tokens, kind, decode_only=True)
        assert decode.decode_only
        assert decode.num_tokens == decode.num_seqs
        assert decode.num_tokens == next(count for count in (1, 2, 4, 8, 16, 24) if count >= num_tokens)
    assert not buckets.largest.decode_only
    together = Buckets(max_num_seqs=24, max_num_batched_tokens=300, page_size=4)
    assert together.pick(5, kind, decode_only=True) == together.pick(5, kind)


def test_the_largest_bucket_is_the_full_sampler_over_the_whole_budget() -> None:
    largest = Buckets(max_num_seqs=8, max_num_batched_tokens=50, page_size=4).largest
    assert (largest.num_tokens, largest.num_seqs, largest.sampler) == (50, 8, SamplerKind.FULL)


def test_a_bucket_carries_every_page_that_its_tokens_can_open() -> None:
    rng = random.Random(0)
    buckets = Buckets(max_num_seqs=6, max_num_batched_tokens=40, page_size=4)
    for _ in range(500):
        lengths = [rng.randint(1, 6) for _ in range(rng.randint(1, 6))]
        starts = [rng.randint(0, 30) for _ in lengths]
        new_pages = sum(-(-(s + n) // 4) - -(-s // 4) for s, n in zip(starts, lengths, strict=True))
        bucket = buckets.pick(sum(lengths), SamplerKind.GREEDY)
        assert new_pages <= bucket.num_page_updates
        assert len(lengths) <= bucket.num_seqs


GPU_SIZES = {"max_num_seqs": 1024, "max_num_batched_tokens": 8192, "page_size": 16, "split_decode": True, "fine": True}


def test_fine_buckets_stand_between_where_padding_costs() -> None:
    buckets = Buckets(**GPU_SIZES)
    decode = sorted({b.num_tokens for b in buckets if b.decode_only})
    assert decode[:16] == [1, 2, 4, 8, 16, 32, 64, 128, 160, 192, 224, 256, 320, 384, 448, 512]
    assert decode[16:] == [576, 640, 704, 768, 832, 896, 960, 1024]
    mixed = sorted({b.num_tokens for b in buckets if not b.decode_only})
    assert mixed[:6] == [64, 128, 160, 192, 224, 256]
    assert mixed[-6:] == [1792, 2048, 3072, 4096, 6144, 8192]
    # Where padding costs, it is at most a fifth of a step up to 2048 tokens.
    assert all((high - low) / high <= 0.2 for low, high in zip(mixed, mixed[1:], strict=False) if 128 <= low < 2048)


def test_every_step_can_run_in_one_of_a_few_first_buckets() -> None:
    buckets = Buckets(**GPU_SIZES)
    first = set(buckets.first)
    assert {b.num_tokens for b in first if b.decode_only} == {1, 4, 16, 64, 256, 1024}
    # Prompts are what the largest serves, so it is there without the sampler's work too.
    assert {(b.num_tokens, b.sampler) for b in first if not b.decode_only} == {
        *((count, SamplerKind.FULL) for count in (64, 256, 1024, 8192)),
        (8192, SamplerKind.GREEDY),
    }
    for kind in SamplerKind:
        for num_tokens in range(1, 1025):
            assert buckets.pick(num_tokens, kind, decode_only=True, ready=first) in first
        for num_tokens in range(1, 8193, 7):
            assert buckets.pick(num_tokens, kind, ready=first) in first
    together = Buckets(max_num_seqs=32, max_num_batched_tokens=512, page_size=16, growth=4)
    assert set(together.first) == set(together)


def test_a_step_runs_in_the_smallest_bucket_that_is_ready_while_others_are_being_compiled() -> None:
    buckets = Buckets(**GPU_SIZES)
    greedy, full = SamplerKind
    assert buckets.pick(600, greedy).num_tokens == 640
    # The full sampler does for all, but a bucket of its own size comes first.
    fallback = buckets.pick(600, greedy, ready=set(buckets.first))
    assert (fallback.num_tokens, fallback.sampler) == (1024, full)
    some = {buckets.pick(700, kind) for kind in SamplerKind} | set(buckets.first)
    assert buckets.pick(600, greedy, ready=some) == buckets.pick(700, greedy)
    assert buckets.pick(600, full, ready=some) == buckets.pick(700, full)
    # With none ready it is the one to compile.
    assert buckets.pick(600, greedy, ready=set()).num_tokens == 640


def some_buckets() -> list[Bucket]:
    return list(Buckets(max_num_seqs=4, max_num_batched_tokens=64, page_size=4))


def test_all_buckets_are_compiled_and_each_is_reported() -> None:
    reports: list[tuple[int, int]] = []
    buckets = some_buckets()
    steps = compile_all(buckets, lambda bucket: bucket.num_tokens, lambda _, done, total: reports.append((done, total)))
    assert steps == {bucket: bucket.num_tokens for bucket in buckets}
    assert reports == [(done, len(buckets)) for done in range(len(buckets) + 1)]


def test_a_failed_compilation_is_raised_and_the_rest_given_up() -> None:
    tried: list[Bucket] = []
    lock = threading.Lock()

    def compile_one(bucket: Bucket) -> None:
        with lock:
            tried.append(bucket)
            is_first = len(tried) == 1
        if is_first:
            raise RuntimeError("cannot compile the first")
        time.sleep(0.02)

    buckets = [Bucket(count, 1, 1, SamplerKind.GREEDY) for count in range(1, 1000)]
    with pytest.raises(RuntimeError, match="cannot compile the first"):
        compile_all(buckets, compile_one, lambda what, done, total: None)
    assert len(tried) < len(buckets)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_buckets_compiled_in_the_background_are_handed_over_once() -> None:
    buckets = some_buckets()
    compiler = BackgroundCompiler(buckets, lambda bucket: bucket.num_tokens, lambda: float("-inf"))
    wait_for(lambda: not compiler.is_running)
    assert compiler.take_finished() == {bucket: bucket.num_tokens for bucket in buckets}
    assert compiler.take_finished() == {}


def test_the_background_waits_while_steps_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_ahead, "IDLE_S", 0.1)
    busy = True
    compiler = BackgroundCompiler(some_buckets(), lambda bucket: 0, lambda: time.monotonic() if busy else float("-inf"))
    time.sleep(3 * compile_ahead.IDLE_S)
    assert compiler.take_finished() == {} and compiler.is_running
    busy = False
    wait_for(lambda: not compiler.is_running)
    assert len(compiler.take_finished()) == len(some_buckets())


def test_a_bucket_that_a_step_wants_is_compiled_next_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_ahead, "IDLE_S", 0.1)
    compiler = BackgroundCompiler(some_buckets(), lambda bucket: 0, time.monotonic)
    wanted = some_buckets()[-1]
    assert not compiler.wait_for_wanted()
    compiler.want(wanted)
    assert compiler.wait_for_wanted()
    finished = compiler.take_finished()
    compiler.want(wanted)
    assert not compiler.wait_for_wanted()
    time.sleep(2 * compile_ahead.IDLE_S)
    assert finished | compiler.take_finished() == {wanted: 0}
    assert compiler.close(10)


def test_who_waits_for_what_steps_asked_for_does_not_wait_for_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though no step begins meanwhile, which is when else the background goes on."""
    begun, go_on = threading.Event(), threading.Event()

    def compile_one(bucket: Bucket) -> int:
        begun.set()
        go_on.wait(10)
        time.sleep(0.01)
        return 0

    monkeypatch.setattr(compile_ahead, "IDLE_S", 0.2)
    compiler = BackgroundCompiler(some_buckets(), compile_one, lambda: float("-inf"))
    assert begun.wait(10)
    first, wanted = some_buckets()[0], some_buckets()[-1]
    compiler.want(wanted)
    threading.Timer(0.05, go_on.set).start()
    assert compiler.wait_for_wanted()
    assert set(compiler.take_finished()) == {first, wanted}
    # Steps have time to begin.
    time.sleep(0.1)
    assert not compiler.take_finished()
    wait_for(lambda: not compiler.is_running)
    assert len(compiler.take_finished()) == len(some_buckets()) - 2


def test_buckets_of_as_many_tokens_are_compiled_one_after_the_other() -> None:
    under_way: set[int] = set()

    def compile_one(bucket: Bucket) -> int:
        assert bucket.num_tokens not in under_way
        under_way.add(bucket.num_tokens)
        time.sleep(0.01)
        under_way.remove(bucket.num_tokens)
        return 0

    assert len(compile_all(some_buckets(), compile_one, lambda what, done, total: None)) == len(some_buckets())


def test_a_background_that_is_closed_ends_after_the_compilation_under_way() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def compile_one(bucket: Bucket) -> int:
        begun.set()
        go_on.wait(10)
        return 0

    compiler = BackgroundCompiler(some_buckets(), compile_one, lambda: float("-inf"))
    assert begun.wait(10)
    assert not compiler.close(0.05)
    go_on.set()
    assert compiler.close(10)
    assert len(compiler.take_finished()) == 1


def test_a_failure_in_the_background_is_logged_and_keeps_what_was_compiled(caplog: pytest.LogCaptureFixture) -> None:
    def compile_one(bucket: Bucket) -> int:
        if bucket.num_tokens > 1:
            raise RuntimeError("no such kernel")
        return 7

    compiler = BackgroundCompiler(sorted(some_buckets()), compile_one, lambda: float("-inf"))
    wait_for(lambda: not compiler.is_running)
    assert set(compiler.take_finished().values()) == {7}
    assert "no such kernel" in caplog.text
