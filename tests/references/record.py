"""Record reference outputs of the families that transformers does not have, from the NumPy references beside this.

    uv run python -m tests.references.record tests/data

The files are those that scripts/record_reference.py writes, which describes them.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from tests.references.blocks import Array
from tests.references.cases import NUMPY_CASES, NumpyCase
from tests.references.checkpoint import read_checkpoint, write_checkpoint

NUM_GREEDY = 24
MIN_MARGIN = 5e-3
MIN_DISTINCT = 14
MAX_DRAWS = 60


def greedy_continuation(
    case: NumpyCase, config: dict[str, Any], tensors: dict[str, Array], prompt: list[int]
) -> tuple[list[int], list[float]]:
    """The tokens chosen after a prompt, and by how much each won; fewer than asked for after a near tie."""
    chosen: list[int] = []
    margins: list[float] = []
    while len(chosen) < NUM_GREEDY and min(margins, default=MIN_MARGIN) >= MIN_MARGIN:
        scores = case.reference.logits(config, tensors, prompt + chosen)[-1]
        second, best = np.argsort(scores)[-2:]
        chosen.append(int(best))
        margins.append(float(scores[best] - scores[second]))
    return chosen, margins


def record(directory: Path, case: NumpyCase, seed: int) -> dict[str, np.ndarray] | None:
    """Reference outputs of a written checkpoint; None if greedy tokens repeat themselves or are near ties."""
    config, tensors = read_checkpoint(directory)
    generator = np.random.default_rng(seed)
    prompts, greedy, margins = [], [], []
    for length in case.prompt_lens:
        for _ in range(MAX_DRAWS):
            prompt = generator.integers(0, config["vocab_size"], size=length).tolist()
            chosen, beaten = greedy_continuation(case, config, tensors, prompt)
            if min(beaten) >= MIN_MARGIN and len(set(chosen)) >= MIN_DISTINCT:
                break
        else:
            return None
        prompts.append(prompt)
        greedy.append(chosen)
        margins.append(beaten)
    logits = [case.reference.logits(config, tensors, prompt) for prompt in prompts]
    return {
        "prompt_lens": np.array(case.prompt_lens, np.int32),
        "prompts": np.concatenate(prompts).astype(np.int32),
        "logits": np.concatenate(logits).astype(np.float32),
        "greedy": np.array(greedy, np.int32),
        "greedy_margins": np.array(margins, np.float32),
    }


def record_case(name: str, case: NumpyCase, directory: Path) -> None:
    """Write a checkpoint and its reference outputs, with the first seed whose greedy tokens make a fair test."""
    for seed in range(100):
        write_checkpoint(case, directory, seed)
        reference = record(directory, case, seed)
        if reference is not None:
            np.savez_compressed(directory / "reference.npz", **reference)
            size = sum(p.stat().st_size for p in directory.iterdir())
            print(
                f"{name}: seed {seed}, least margin {reference['greedy_margins'].min():.4f}, {size} bytes", flush=True
            )
            return
    raise SystemExit(f"{name}: no seed gives tokens that vary")


def main() -> None:
    """Record every case, or those named."""
    parser = argparse.ArgumentParser(description="Record reference outputs for tests/data.")
    parser.add_argument("out", type=Path)
    parser.add_argument("cases", nargs="*", help=f"some of {', '.join(NUMPY_CASES)}; all if left out")
    arguments = parser.parse_args()
    for name in arguments.cases or NUMPY_CASES:
        record_case(name, NUMPY_CASES[name], arguments.out / name)


if __name__ == "__main__":
    main()
