"""Buckets: the few shapes that steps are compiled for. A step runs in the smallest one that holds it."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class SamplerKind(StrEnum):
    """What a bucket's sampler can do. Greedy alone costs one argmax and no sort."""

    GREEDY = "greedy"
    FULL = "full"


@dataclass(frozen=True, order=True)
class Bucket:
    """One compiled shape.

    Attributes:
        num_tokens: T, padded tokens.
        num_seqs: S, padded sequences.
        num_page_updates: U, most pages that can join sequences within the step's own call.
        sampler: what its sampler can do.
    """

    num_tokens: int
    num_seqs: int
    num_page_updates: int
    sampler: SamplerKind


class Buckets:
    """All buckets of a runner.

    A sequence computes at least one token, so T tokens hold at most T sequences and one list of token counts serves
    decode, prefill and mixed steps alike.

    Args:
        max_num_seqs: most sequences in a step.
        max_num_batched_tokens: most tokens in a step.
        page_size: tokens a page.
        growth: ratio of neighbouring token counts. 2 wastes least, 4 compiles half as many.
    """

    def __init__(self, *, max_num_seqs: int, max_num_batched_tokens: int, page_size: int, growth: int = 2) -> None:
        self._token_counts = _geometric(max_num_batched_tokens, growth)
        self._buckets = {
            (tokens, kind): Bucket(
                num_tokens=tokens,
                num_seqs=min(tokens, max_num_seqs),
                # Each sequence fills whole pages with its tokens and may open one more at either end.
                num_page_updates=tokens // page_size + 2 * min(tokens, max_num_seqs),
                sampler=kind,
            )
            for tokens in self._token_counts
            for kind in SamplerKind
        }

    def __iter__(self) -> Iterator[Bucket]:
        return iter(self._buckets.values())

    def __len__(self) -> int:
        return len(self._buckets)

    @property
    def largest(self) -> Bucket:
        """The bucket that needs the most memory."""
        return self._buckets[self._token_counts[-1], SamplerKind.FULL]

    def pick(self, num_tokens: int, sampler: SamplerKind) -> Bucket:
        """The smallest bucket for a step of num_tokens."""
        return self._buckets[self._token_counts[bisect_left(self._token_counts, num_tokens)], sampler]


def _geometric(last: int, growth: int) -> list[int]:
    """1, growth, growth², … up to and including last."""
    counts, count = [], 1
    while count < last:
        counts.append(count)
        count *= growth
    return [*counts, last]
