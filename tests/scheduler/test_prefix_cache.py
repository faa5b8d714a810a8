"""PrefixCache: pages are found by everything before them, and by nothing else."""

from array import array

import pytest

from jaxserve.scheduler.page_allocator import IntegrityError
from jaxserve.scheduler.prefix_cache import PrefixCache

PAGE_SIZE = 4


def tokens(*token_ids: int) -> "array[int]":
    return array("i", token_ids)


def fill(cache: PrefixCache, token_ids: "array[int]", step_id: int = 0) -> list[int]:
    """Pages that hold these tokens, with one reference."""
    pages = cache.allocator.allocate(len(token_ids) // PAGE_SIZE)
    digests: list[bytes] = []
    cache.extend_digests(digests, token_ids, len(pages))
    cache.insert(pages, digests, step_id)
    return pages


def test_lookup_finds_the_longest_prefix_of_full_pages() -> None:
    cache = PrefixCache(10, PAGE_SIZE)
    pages = fill(cache, tokens(*range(12)))
    assert cache.lookup([], tokens(*range(12))) == pages
    assert cache.lookup([], tokens(*range(11))) == pages[:2]
    assert cache.lookup([], tokens(*range(8), 99, 99, 99, 99)) == pages[:2]
    assert cache.lookup([], tokens(*range(3))) == []


def test_a_page_with_the_same_tokens_after_another_prefix_is_not_found() -> None:
    cache = PrefixCache(10, PAGE_SIZE)
    fill(cache, tokens(1, 1, 1, 1, 5, 6, 7, 8))
    assert cache.lookup([], tokens(5, 6, 7, 8)) == []
    assert cache.lookup([], tokens(2, 2, 2, 2, 5, 6, 7, 8)) == []


def test_tokens_that_spell_the_same_bytes_differently_have_different_digests() -> None:
    digests: list[list[bytes]] = [[], []]
    cache = PrefixCache(10, PAGE_SIZE)
    for out, token_ids in zip(digests, (tokens(1, 23, 4, 5), tokens(12, 3, 4, 5)), strict=True):
        cache.extend_digests(out, token_ids, 1)
    assert digests[0] != digests[1]


def test_digests_grown_one_page_at_a_time_are_those_computed_at_once() -> None:
    token_ids = tokens(*range(12))
    at_once: list[bytes] = []
    PrefixCache(10, PAGE_SIZE).extend_digests(at_once, token_ids, 3)
    cache = PrefixCache(10, PAGE_SIZE)
    one_by_one: list[bytes] = []
    pages = cache.allocator.allocate(3)
    for page in pages:
        cache.insert_next(page, one_by_one, token_ids, 0)
    assert one_by_one == at_once
    assert cache.lookup([], token_ids) == pages


def test_of_two_pages_with_the_same_contents_the_first_stays_and_the_second_is_freed() -> None:
    cache = PrefixCache(10, PAGE_SIZE)
    first, second = fill(cache, tokens(1, 2, 3, 4)), fill(cache, tokens(1, 2, 3, 4))
    assert cache.lookup([], tokens(1, 2, 3, 4)) == first
    cache.allocator.release(second)
    assert cache.allocator.num_cached == 0 and cache.allocator.num_free == 8


def test_an_evicted_page_is_not_found_again() -> None:
    cache = PrefixCache(3, PAGE_SIZE)
    cache.allocator.release(reversed(fill(cache, tokens(*range(8)))))
    assert len(cache.lookup([], tokens(*range(8)))) == 2
    (page,) = cache.allocator.allocate(1)
    assert len(cache.lookup([], tokens(*range(8)))) == 1, "the end of the chain goes before its beginning"
    cache.check_integrity([[page]])


def test_a_page_can_be_copied_only_in_a_step_after_the_one_that_writes_it() -> None:
    cache = PrefixCache(3, PAGE_SIZE)
    (page,) = fill(cache, tokens(1, 2, 3, 4), step_id=5)
    assert not cache.can_copy(page, 5)
    assert cache.can_copy(page, 6)


def test_check_integrity_counts_the_holders_of_each_page() -> None:
    cache = PrefixCache(10, PAGE_SIZE)
    pages = fill(cache, tokens(*range(8)))
    cache.check_integrity([pages])
    with pytest.raises(IntegrityError, match="references"):
        cache.check_integrity([pages, pages[:1]])
