"""Vocabularies of real models, and parameters that requests come with, named once for tests and benchmarks."""

from dataclasses import dataclass

VOCABULARIES: dict[str, int] = {
    "llama-2": 32_000,
    "llama-3": 128_256,
    "qwen-2.5": 152_064,
    "gemma-2": 256_000,
}


@dataclass(frozen=True)
class ParamsSpec:
    """One request's parameters. top_k of None keeps all."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0


PARAMS: dict[str, ParamsSpec] = {
    "greedy": ParamsSpec(temperature=0.0),
    "plain": ParamsSpec(),
    "top_p": ParamsSpec(temperature=0.8, top_p=0.95),
    "top_k": ParamsSpec(top_k=50),
    "min_p": ParamsSpec(min_p=0.05),
    "all": ParamsSpec(temperature=0.7, top_k=50, top_p=0.9, min_p=0.01),
}

# Rows of a benchmark.
NUM_ROWS = (1, 32, 256)
