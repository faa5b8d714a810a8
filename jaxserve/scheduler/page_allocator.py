"""Pages of the KV pool: who holds them, which are free, and which keep reusable contents.

The pool is cut into pages of a fixed number of tokens, handed out one at a time, so that a sequence wastes at most the
rest of its last page (PagedAttention, Kwon et al. 2023).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

from jaxserve.errors import JaxserveError


class IntegrityError(JaxserveError):
    """The books of the scheduler contradict each other: a defect in jaxserve, never the caller's fault."""


class PageAllocator:
    """Hands out pages by reference count. Every operation is O(1) a page.

    A page is in exactly one of three states: *free* (no holder, contents worthless), *used* (one holder or more), or
    *cached* (no holder, contents kept for reuse, evicted least recently released first when no page is free).
    Page 0 is never handed out: entries of the device's page table that were never set point to it.

    Args:
        num_pages: pages of the pool, page 0 included.
        on_evict: called with the cached pages whose contents are given up.
    """

    __slots__ = ("_cacheable", "_cached", "_free", "_on_evict", "_ref_counts", "num_pages")

    def __init__(self, num_pages: int, on_evict: Callable[[list[int]], None]) -> None:
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

    def allocate(self, num_pages: int) -> list[int]:
        """Hand out pages with one reference each, evicting the least recently released cached ones if few are free.

        Raises:
            IntegrityError: fewer than `num_pages` are available; callers check that first.
        """
        if num_pages > self.num_available:
            raise IntegrityError(f"{num_pages} pages were asked for and {self.num_available} are available")
        free = self._free
        pages = [free.pop() for _ in range(min(num_pages, len(free)))]
        if len(pages) < num_pages:
            pop, cacheable = self._cached.popitem, self._cacheable
            evicted = [pop(last=False)[0] for _ in range(num_pages - len(pages))]
            for page in evicted:
                cacheable[page] = False
            self._on_evict(evicted)
            pages += evicted
        ref_counts = self._ref_counts
        for page in pages:
            ref_counts[page] = 1
        return pages

    def allocate_one(self) -> int:
        """As `allocate(1)[0]`, but faster: most steps of a sequence need no page and the others just one."""
        if not self._free:
            return self.allocate(1)[0]
        page = self._free.pop()
        self._ref_counts[page] = 1
        return page

    def share(self, pages: Iterable[int]) -> None:
        """Add a reference to each of some used or cached pages."""
        for page in pages:
            if self._ref_counts[page] == 0:
                del self._cached[page]
            self._ref_counts[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Drop a reference of each page; its last one makes a page cached if its contents are kept, else free."""
        ref_counts, cacheable = self._ref_counts, self._cacheable
        for page in pages:
            count = ref_counts[page] = ref_counts[page] - 1
            if count == 0:
                if cacheable[page]:
                    self._cached[page] = None
                else:
                    self._free.append(page)
            elif count < 0:
                raise IntegrityError(f"page {page} was released more often than it was handed out")

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
