"""Shapes of real models with experts, named once for tests, benchmarks and tuning."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ExpertSpec:
    """The experts of one model's layers.

    Attributes:
        num_experts: E.
        num_experts_per_token: k.
        hidden_size: D.
        intermediate_size: F of each expert.
    """

    num_experts: int
    num_experts_per_token: int
    hidden_size: int
    intermediate_size: int


EXPERTS: dict[str, ExpertSpec] = {
    "mixtral-8x7b": ExpertSpec(8, 2, 4096, 14336),
    "mixtral-8x22b": ExpertSpec(8, 2, 6144, 16384),
    "qwen3-30b-a3b": ExpertSpec(128, 8, 2048, 768),
    "qwen3-235b-a22b": ExpertSpec(128, 8, 4096, 1536),
    # A device's part of a model over 8 devices: no usual tile width divides its F of 96.
    "qwen3-30b-a3b/8": ExpertSpec(128, 8, 2048, 96),
}

# Tokens of a step that benchmarks time.
BENCHMARK_TOKENS = (1, 32, 256, 8192)
