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
    "falcon-7b": HeadSpec(1, 71, 64),
    "phi-2": HeadSpec(32, 1, 80),
    "phi-3-mini": HeadSpec(32, 1, 96),
    "head-dim-112": HeadSpec(2, 3, 112),
    "gemma-2-9b": HeadSpec(8, 2, 256),
}

BATCHES: dict[str, BatchSpec] = {
    "one-prompt": BatchSpec(((37, 37),)),
    "decode": BatchSpec(((1, 1), (1, 17), (1, 130), (1, 64))),
    "chunk-after-context": BatchSpec(((20, 150),)),
    "mixed": BatchSpec(((1, 33), (24, 24), (9, 140), (1, 128))),
}

# What one H200 serves Llama-3-8B with; too large for the interpreter.
BENCHMARK_BATCHES: dict[str, BatchSpec] = {
    **{f"decode-{n}": BatchSpec(((1, 800),) * n) for n in (1, 8, 32, 128, 256)},
    "decode-one-long": BatchSpec(((1, 32768), *((1, 500),) * 31)),
    "prefill-1x4096": BatchSpec(((4096, 4096),)),
    "prefill-8x4096": BatchSpec(((4096, 4096),) * 8),
    "mixed-2048+128": BatchSpec(((2048, 2048), *((1, 800),) * 128)),
}
