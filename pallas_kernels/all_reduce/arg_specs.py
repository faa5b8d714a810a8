"""Rows of real models' steps, named once for tests, the gate and benchmarks."""

# Name -> D of the residual stream.
HIDDEN_SIZES: dict[str, int] = {
    "smollm-135m": 576,
    "qwen3-30b-a3b": 2048,
    "qwen-2.5-1.5b": 1536,
    "llama-3-8b": 4096,
    "qwen-2.5-14b": 5120,
    "llama-3-70b": 8192,
    "llama-3-405b": 16384,
}

# Rows of a step that benchmarks time.
BENCHMARK_ROWS = (1, 8, 32, 64, 128, 256, 512)
