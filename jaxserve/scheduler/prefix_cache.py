"""Full pages found again by their contents, so that prompts with a common beginning share its keys and values.

A page's keys and values depend on every token up to its end, so a page is named by a hash chain: the digest of its
predecessor's digest and its own token ids. BLAKE2b with 256 bits, since a collision would show one user's context to
another; a cheaper hash can be forged.
"""

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from jaxserve.scheduler.page_allocator import IntegrityError, PageAllocator

DIGEST_SIZE = 32


class PrefixCache:
    """The table from page digests to pages, and the allocator whose pages it names.

    Args:
        num_pages: pages of the pool, page 0 included.
        page_size: tokens a page.
    """

    __slots__ = ("_digests", "_pages", "_steps", "allocator", "page_size")

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.allocator = PageAllocator(num_pages, self._forget)
        self._pages: dict[bytes, int] = {}
        self._digests: list[bytes | None] = [None] * num_pages
        self._steps = [0] * num_pages

    def __len__(self) -> int:
        return len(self._pages)

    def extend_digests(self, digests: list[bytes], token_ids: "array[int]", num_pages: int) -> None:
        """Grow a sequence's list of page digests to `num_pages`, which must all be full."""
        first, stride = len(digests), self.page_size * token_ids.itemsize
        packed = token_ids[first * self.page_size : num_pages * self.page_size].tobytes()
        parent = digests[-1] if digests else b""
        for start in range(0, (num_pages - first) * stride, stride):
            parent = blake2b(parent + packed[start : start + stride], digest_size=DIGEST_SIZE).digest()
            digests.append(parent)

    def lookup(self, digests: list[bytes], token_ids: "array[int]") -> list[int]:
        """The pages of the longest cached prefix of whole pages, not yet shared.

        Args:
            digests: the digests known so far of this sequence's pages; grown as far as the search goes.
            token_ids: the sequence's tokens.
        """
        pages: list[int] = []
        for i in range(len(token_ids) // self.page_size):
            if i == len(digests):
                self.extend_digests(digests, token_ids, i + 1)
            page = self._pages.get(digests[i])
            if page is None:
                break
            pages.append(page)
        return pages

    def insert(self, pages: Iterable[int], digests: Iterable[bytes], step_id: int) -> None:
        """Name used pages by their contents, which the device has after step `step_id` at the latest.

        If another page has the same contents, that one stays and this one will be freed as usual.
        """
        named, own_digests, steps = self._pages, self._digests, self._steps
        for page, digest in zip(pages, digests, strict=True):
            if named.setdefault(digest, page) == page:
                own_digests[page] = digest
                steps[page] = step_id
                self.allocator.keep_contents(page)

    def insert_next(self, page: int, digests: list[bytes], token_ids: "array[int]", step_id: int) -> None:
        """As `extend_digests` and `insert` of the one page after those of `digests`, which decoding needs often."""
        start = len(digests) * self.page_size
        packed = token_ids[start : start + self.page_size].tobytes()
        digest = blake2b(digests[-1] + packed if digests else packed, digest_size=DIGEST_SIZE).digest()
        digests.append(digest)
        if self._pages.setdefault(digest, page) == page:
            self._digests[page] = digest
            self._steps[page] = step_id
            self.allocator.keep_contents(page)

    def can_copy(self, page: int, step_id: int) -> bool:
        """Whether a copy at the start of step `step_id` finds the page written, which takes an earlier step."""
        return self._steps[page] < step_id

    def _forget(self, pages: list[int]) -> None:
        for page in pages:
            digest = self._digests[page]
            self._digests[page] = None
            if digest is None or self._pages.pop(digest) != page:
                raise IntegrityError(f"page {page} was kept for its contents, but the prefix table does not name it")

    def check_integrity(self, holders: "Sequence[Sequence[int]]") -> None:
        """Check the table, and the allocator against the page lists of all holders.

        Raises:
            IntegrityError: the table names a page without contents, or names one wrongly.
        """
        counts: dict[int, int] = {}
        for pages in holders:
            for page in pages:
                counts[page] = counts.get(page, 0) + 1
        self.allocator.check_integrity(counts)
        if len(self._pages) != sum(1 for digest in self._digests if digest is not None):
            raise IntegrityError("the prefix table and its inverse differ in size")
        for digest, page in self._pages.items():
            if self._digests[page] != digest:
                raise IntegrityError(f"page {page} is named by a digest that is not its own")
            if not counts.get(page) and not self.allocator.is_cached(page):
                raise IntegrityError(f"the prefix table names page {page}, which is free")
        if self.allocator.num_cached > len(self._pages):
            raise IntegrityError("a cached page is missing from the prefix table")
