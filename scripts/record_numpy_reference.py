"""Record reference outputs of the families that transformers does not have, from the NumPy references in tests.

    uv run scripts/record_numpy_reference.py tests/data

The files are those that scripts/record_reference.py writes, which describes them.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from recorded_case import MIN_MARGIN, NUM_GREEDY, record, record_case

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.references.blocks import Array  # noqa: E402
from tests.references.cases import NUMPY_CASES, NumpyCase  # noqa: E402
from tests.references.checkpoint import read_checkpoint, write_checkpoint  # noqa: E402

MAX_DRAWS = 60
MAX_SEEDS = 100


def greedy_continuation(
    case: NumpyCase, config: dict[str, Any], tensors: dict[str, Array], prompt: list[int]
) -> tuple[np.ndarray, list[int], list[float]]:
    """See `recorded_case.Continue`."""
    logits = case.reference.logits(config, tensors, prompt)
    scores = logits[-1]
    chosen: list[int] = []
    margins: list[float] = []
    while True:
        second, best = np.argsort(scores)[-2:]
        chosen.append(int(best))
        margins.append(float(scores[best] - scores[second]))
        if len(chosen) == NUM_GREEDY or margins[-1] < MIN_MARGIN:
            return logits, chosen, margins
        scores = case.reference.logits(config, tensors, prompt + chosen)[-1]


def attempt(case: NumpyCase, directory: Path, seed: int) -> dict[str, np.ndarray] | None:
    """Write a checkpoint of random weights, and record it."""
    write_checkpoint(case, directory, seed)
    config, tensors = read_checkpoint(directory)
    return record(
        case.prompt_lens,
        config["vocab_size"],
        seed,
        MAX_DRAWS,
        lambda prompt: greedy_continuation(case, config, tensors, prompt),
    )


def main() -> None:
    """Record every case, or those named."""
    parser = argparse.ArgumentParser(description="Record reference outputs for tests/data.")
    parser.add_argument("out", type=Path)
    parser.add_argument("cases", nargs="*", help=f"some of {', '.join(NUMPY_CASES)}; all if left out")
    arguments = parser.parse_args()
    for name in arguments.cases or NUMPY_CASES:
        case, directory = NUMPY_CASES[name], arguments.out / name
        record_case(name, directory, lambda seed, c=case, d=directory: attempt(c, d, seed), MAX_SEEDS)  # type: ignore[misc]


if __name__ == "__main__":
    main()
