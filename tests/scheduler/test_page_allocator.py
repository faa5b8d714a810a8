"""PageAllocator: references, eviction order, and books that balance."""

import pytest

from jaxserve.scheduler.page_allocator import IntegrityError, PageAllocator


def make_allocator(num_pages: int) -> tuple[PageAllocator, list[int]]:
    evicted: list[int] = []
    return PageAllocator(num_pages, evicted.extend), evicted


def test_every_page_but_page_0_is_handed_out_once() -> None:
    allocator, _ = make_allocator(9)
    pages = [*allocator.allocate(7), allocator.allocate_one()]
    assert sorted(pages) == list(range(1, 9))
    assert (allocator.num_free, allocator.num_used, allocator.num_cached) == (0, 8, 0)


@pytest.mark.parametrize("num_pages", [1, 3])
def test_asking_for_more_pages_than_there_are_takes_none(num_pages: int) -> None:
    allocator, _ = make_allocator(3)
    allocator.allocate(3 - num_pages)
    with pytest.raises(IntegrityError):
        allocator.allocate(num_pages)
    assert allocator.num_free == num_pages - 1


def test_a_shared_page_is_free_only_after_its_last_release() -> None:
    allocator, _ = make_allocator(3)
    page = allocator.allocate_one()
    allocator.share([page])
    allocator.release([page])
    assert allocator.ref_count(page) == 1 and allocator.num_used == 1
    allocator.release([page])
    assert allocator.num_free == 2


def test_a_page_released_too_often_is_an_error() -> None:
    allocator, _ = make_allocator(3)
    page = allocator.allocate_one()
    allocator.release([page])
    with pytest.raises(IntegrityError, match="released more often"):
        allocator.release([page])


def test_cached_pages_are_evicted_least_recently_released_first_and_only_when_no_page_is_free() -> None:
    allocator, evicted = make_allocator(5)
    pages = allocator.allocate(3)
    for page in pages:
        allocator.keep_contents(page)
    allocator.release([pages[1], pages[2], pages[0]])
    allocator.share([pages[1]])
    allocator.release([pages[1]])
    allocator.allocate_one()
    assert evicted == []
    assert allocator.allocate_one() == pages[2]
    assert allocator.allocate(2) == [pages[0], pages[1]]
    assert evicted == [pages[2], pages[0], pages[1]]


def test_an_evicted_page_is_no_longer_kept_for_its_contents() -> None:
    allocator, _ = make_allocator(2)
    page = allocator.allocate_one()
    allocator.keep_contents(page)
    allocator.release([page])
    allocator.release(allocator.allocate(1))
    assert allocator.num_free == 1 and allocator.num_cached == 0


def test_check_integrity_accepts_only_the_true_holders() -> None:
    allocator, _ = make_allocator(4)
    page, other = allocator.allocate(2)
    allocator.share([page])
    allocator.check_integrity({page: 2, other: 1})
    for wrong in ({page: 1, other: 1}, {page: 2}, {page: 2, other: 1, 3: 1}, {0: 1, page: 2, other: 1}):
        with pytest.raises(IntegrityError):
            allocator.check_integrity(wrong)
