"""Shapes of real models and batches, named once for tests, benchmarks and tuning."""

from dataclasses import dataclass


@dataclass(frozen=True)
class HeadSpec:
    """Head counts of one model: K kv heads of G query heads each, of head_dim H."""

    num_kv_heads: int
    group: int
    head_dim: int


@dataclass(frozen=True)
class BatchSpec:
    """A ragged batch: (number of queries, tokens in all) of each sequence."""

    sequences: tuple[tuple[int, int], ...]


HEADS: dict[str, HeadSpec] = {
    "demo": HeadSpec(2, 2, 64),
    "llama-2-7b": HeadSpec(32, 1, 128),
    "llama-3-8b": HeadSpec(8, 4, 128),
    "llama-3-70b": HeadSpec(8, 8, 128),
    "smollm-135m": HeadSpec(3, 3, 64),
    "multi-query": HeadSpec(1, 16, 64),
}

BATCHES: dict[str, BatchSpec] = {
    "one-prompt": BatchSpec(((37, 37),)),
    "decode": BatchSpec(((1, 1), (1, 17), (1, 130), (1, 64))),
    "chunk-after-context": BatchSpec(((20, 150),)),
    "mixed": BatchSpec(((1, 33), (24, 24), (9, 140), (1, 128))),
}
