"""Buckets: the few shapes that steps are compiled for. A step runs in the smallest one that holds it."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

# Steps with prompts in them have many tokens; smaller shapes of them would hardly be used.
MIXED_MIN_TOKENS = 64


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
        decode_only: whether every sequence computes exactly one token, for which there is a faster kernel.
    """

    num_tokens: int
    num_seqs: int
    num_page_updates: int
    sampler: SamplerKind
    decode_only: bool = False


class Buckets:
    """All buckets of a runner.

    A sequence computes at least one token, so T tokens hold at most T sequences and one list of token counts serves
    decode, prefill and mixed steps alike. Where decoding has a kernel of its own, its steps get buckets of their own,
    and the others begin at MIXED_MIN_TOKENS.

    Args:
        max_num_seqs: most sequences in a step.
        max_num_batched_tokens: most tokens in a step.
        page_size: tokens a page.
        growth: ratio of neighbouring token counts. 2 wastes least, 4 compiles half as many.
        split_decode: give steps that only decode buckets of their own.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        page_size: int,
        growth: int = 2,
        split_decode: bool = False,
    ) -> None:
        first = min(MIXED_MIN_TOKENS, max_num_batched_tokens) if split_decode else 1
        self._counts = {False: _geometric(first, max_num_batched_tokens, growth)}
        if split_decode:
            self._counts[True] = _geometric(1, max_num_seqs, growth)
        self._buckets = {
            (tokens, kind, decode_only): Bucket(
                num_tokens=tokens,
                num_seqs=min(tokens, max_num_seqs),
                # Each sequence fills whole pages with its tokens and may open one more at either end.
                num_page_updates=tokens // page_size + 2 * min(tokens, max_num_seqs),
                sampler=kind,
                decode_only=decode_only,
            )
            for decode_only, counts in self._counts.items()
            for tokens in counts
            for kind in SamplerKind
        }

    def __iter__(self) -> Iterator[Bucket]:
        return iter(self._buckets.values())

    def __len__(self) -> int:
        return len(self._buckets)

    @property
    def largest(self) -> Bucket:
        """The bucket that needs the most memory."""
        return self._buckets[self._counts[False][-1], SamplerKind.FULL, False]

    def pick(self, num_tokens: int, sampler: SamplerKind, *, decode_only: bool = False) -> Bucket:
        """The smallest bucket for a step of num_tokens; decode_only if every sequence computes exactly one."""
        decode_only = decode_only and True in self._counts
        counts = self._counts[decode_only]
        return self._buckets[counts[bisect_left(counts, num_tokens)], sampler, decode_only]


def _geometric(first: int, last: int, growth: int) -> list[int]:
    """first, first * growth, first * growth², … up to and including last."""
    counts, count = [], first
    while count < last:
        counts.append(count)
        count *= growth
    return [*counts, last]
