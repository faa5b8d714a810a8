"""Buckets: the few shapes that steps are compiled for. A step runs in the smallest one that holds it."""

from bisect import bisect_left
from collections.abc import Container, Iterator
from dataclasses import dataclass
from enum import StrEnum

# Steps with prompts in them have many tokens; smaller shapes of them would hardly be used.
MIXED_MIN_TOKENS = 64
# Below, a step takes as long as reading the weights, however many tokens it has.
FINE_FROM = 128
FINEST_FROM = 512
FINE_TO = 2048
# Ratio of neighbouring token counts among the buckets that are compiled before serving.
FIRST_GROWTH = 4


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
        fine: put counts between those from FINE_FROM on, where padding costs as much as tokens do.

    Attributes:
        first: few that any step can run in: token counts further apart, and of mixed buckets that are apart from those
            that decode, only those of the full sampler, but of the largest both.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        page_size: int,
        growth: int = 2,
        split_decode: bool = False,
        fine: bool = False,
    ) -> None:
        start = min(MIXED_MIN_TOKENS, max_num_batched_tokens) if split_decode else 1
        spans = {False: (start, max_num_batched_tokens)}
        if split_decode:
            spans[True] = (1, max_num_seqs)
        coarse = {decode_only: _geometric(*span, growth) for decode_only, span in spans.items()}
        self._counts = {
            decode_only: _with_steps_between(counts, decode_only=decode_only) if fine else counts
            for decode_only, counts in coarse.items()
        }

        def bucket(tokens: int, kind: SamplerKind, decode_only: bool) -> Bucket:
            return Bucket(
                num_tokens=tokens,
                num_seqs=min(tokens, max_num_seqs),
                # Each sequence fills whole pages with its tokens and may open one more at either end.
                num_page_updates=tokens // page_size + 2 * min(tokens, max_num_seqs),
                sampler=kind,
                decode_only=decode_only,
            )

        self._buckets = {
            (tokens, kind, decode_only): bucket(tokens, kind, decode_only)
            for decode_only, counts in self._counts.items()
            for tokens in counts
            for kind in SamplerKind
        }
        first_counts = {d: _geometric(*span, max(growth, FIRST_GROWTH)) for d, span in spans.items()}
        *below, last = first_counts[False]
        if split_decode:
            first_counts[False] = [count for count in below if count * FIRST_GROWTH <= last] + [last]
        self.first = tuple(
            b
            for b in self._buckets.values()
            if b.num_tokens in first_counts[b.decode_only]
            and (b.decode_only or b.sampler is SamplerKind.FULL or b.num_tokens == last or not split_decode)
        )

    def __iter__(self) -> Iterator[Bucket]:
        return iter(self._buckets.values())

    def __len__(self) -> int:
        return len(self._buckets)

    @property
    def largest(self) -> Bucket:
        """The bucket that needs the most memory."""
        return self._buckets[self._counts[False][-1], SamplerKind.FULL, False]

    def pick(
        self,
        num_tokens: int,
        sampler: SamplerKind,
        *,
        decode_only: bool = False,
        ready: Container[Bucket] | None = None,
    ) -> Bucket:
        """The smallest bucket for a step, of equally small ones that with the sampler that is needed.

        Args:
            num_tokens: of the step.
            sampler: what its sequences need.
            decode_only: whether every sequence computes exactly one token.
            ready: choose among these, if any of them will do; None among all. The full sampler does for all.
        """
        decode_only = decode_only and True in self._counts
        counts = self._counts[decode_only]
        first = bisect_left(counts, num_tokens)
        smallest = self._buckets[counts[first], sampler, decode_only]
        if ready is None:
            return smallest
        samplers = dict.fromkeys((sampler, SamplerKind.FULL))
        fitting = (self._buckets[count, kind, decode_only] for count in counts[first:] for kind in samplers)
        return next((bucket for bucket in fitting if bucket in ready), smallest)


def _geometric(first: int, last: int, growth: int) -> list[int]:
    """first, first * growth, first * growth², … up to and including last."""
    counts, count = [], first
    while count < last:
        counts.append(count)
        count *= growth
    return [*counts, last]


def _with_steps_between(counts: list[int], *, decode_only: bool) -> list[int]:
    """Three more counts in each gap from FINE_FROM on, one from FINE_TO on, and seven from FINEST_FROM on where all
    decode: batches of that size go on for long."""
    between: list[int] = []
    for low, high in zip(counts, counts[1:], strict=False):
        if low >= FINE_FROM:
            parts = 2 if low >= FINE_TO else 8 if decode_only and low >= FINEST_FROM else 4
            between += [low + (high - low) * i // parts for i in range(1, parts)]
    return sorted({*counts, *between})
