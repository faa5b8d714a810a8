"""Buckets: which shapes there are and which one a step runs in; compiling them ahead."""

import random
import threading
import time

import pytest

from jaxserve.runner.buckets import Bucket, Buckets, SamplerKind
from jaxserve.runner.compile_ahead import compile_all


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
