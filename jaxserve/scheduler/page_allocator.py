"""Pages of the KV pool: who holds them, which are free, and which keep reusable contents.

The pool is cut into pages of a fixed number of tokens, handed out one at a time, so that a sequence wastes at most the
rest of its last page (PagedAttention, Kwon et al. 2023).
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping

from jaxserve.errors import JaxserveError


class IntegrityError(JaxserveError):
    """The books of the scheduler contradict each other: a defect in jaxserve, never the caller's fault."""


class PageAllocator:
    """Hands out pages by reference count. Every operation is O(1).

    A page is in exactly one of three states: *free* (no holder, contents worthless), *used* (one holder or more), or
    *cached* (no holder, contents kept for reuse, evicted least recently released first when no page is free).
    Page 0 is never handed out: the device writes padding there.

    Args:
        num_pages: pages of the pool, page 0 included.
        on_evict: called with a cached page whose contents are given up.
    """

    __slots__ = ("_cacheable", "_cached", "_free", "_on_evict", "_ref_counts", "num_pages")

    def __init__(self, num_pages: int, on_evict: Callable[[int], None]) -> None:
        self.num_pages = num_pages - 1
        self._on_evict = on_evict
        self._ref_counts = [0] * num_pages
        self._cacheable = bytearray(num_pages)
        # A stack: the page freed last is the likeliest to be in the device's caches still.
        self._free = list(range(num_pages - 1, 0, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Pages without holder or contents."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Pages without holder whose contents can be reused."""
        return len(self._cached)

    @property
    def num_used(self) -> int:
        """Pages with at least one holder."""
        return self.num_pages - len(self._free) - len(self._cached)

    @property
    def num_available(self) -> int:
        """Pages that `allocate` can still hand out, by eviction where need be."""
        return len(self._free) + len(self._cached)

    def ref_count(self, page: int) -> int:
        """Number of holders of a page."""
        return self._ref_counts[page]

    def is_cached(self, page: int) -> bool:
        """Whether a page has contents to reuse and no holder."""
        return page in self._cached

    def allocate(self) -> int:
        """Hand out a page with one reference, evicting the least recently released cached page if none is free.

        Raises:
            IntegrityError: every page has a holder; callers check `num_available` first.
        """
        if self._free:
            page = self._free.pop()
        elif self._cached:
            page, _ = self._cached.popitem(last=False)
            self._cacheable[page] = False
            self._on_evict(page)
        else:
            raise IntegrityError("every page of the KV pool has a holder")
        self._ref_counts[page] = 1
        return page

    def share(self, page: int) -> None:
        """Add a reference to a used or cached page."""
        if self._ref_counts[page] == 0:
            del self._cached[page]
        self._ref_counts[page] += 1

    def release(self, page: int) -> None:
        """Drop a reference; the last one makes the page cached if its contents are worth keeping, else free."""
        count = self._ref_counts[page] - 1
        if count < 0:
            raise IntegrityError(f"page {page} was released more often than it was handed out")
        self._ref_counts[page] = count
        if count == 0:
            if self._cacheable[page]:
                self._cached[page] = None
            else:
                self._free.append(page)

    def keep_contents(self, page: int) -> None:
        """Have a used page become cached, not free, at its last release."""
        self._cacheable[page] = True

    def check_integrity(self, holders: Mapping[int, int]) -> None:
        """Check the books against the number of holders that the caller knows of each page.

        Raises:
            IntegrityError: a count is wrong, or a page is in no state or in two.
        """
        if len(set(self._free)) != len(self._free):
            raise IntegrityError("a page stands twice in the free list")
        if self.num_free + self.num_used + self.num_cached != self.num_pages or self.num_used < 0:
            raise IntegrityError(f"{self.num_free} free, {self.num_cached} cached of {self.num_pages} pages")
        if 0 in self._cached or 0 in self._free or 0 in holders:
            raise IntegrityError("page 0 was handed out")
        free = set(self._free)
        for page in range(1, self.num_pages + 1):
            expected = holders.get(page, 0)
            if self._ref_counts[page] != expected:
                raise IntegrityError(
                    f"page {page} counts {self._ref_counts[page]} references, but has {expected} holders"
                )
            states = (page in free) + (page in self._cached) + (expected > 0)
            if states != 1:
                raise IntegrityError(f"page {page} is in {states} of the states free, cached and used")
            if page in free and self._cacheable[page] or page in self._cached and not self._cacheable[page]:
                raise IntegrityError(f"page {page} is free and cacheable, or cached and not")
