"""How a case of reference outputs is recorded, whatever computes them: prompts that make a fair test, and one file."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

NUM_GREEDY = 24
# A near tie might be decided otherwise by rounding, and tokens that repeat themselves show little.
MIN_MARGIN = 5e-3
MIN_DISTINCT = 14

# A prompt to its scores after each token [T, V], the tokens chosen after it, and by how much each won. Tokens and
# margins may end after a near tie.
Continue = Callable[[list[int]], tuple[np.ndarray, list[int], list[float]]]


def record(
    prompt_lens: Sequence[int], vocab_size: int, seed: int, max_draws: int, continue_greedily: Continue
) -> dict[str, np.ndarray] | None:
    """Reference outputs as scripts/record_reference.py describes them; None if a prompt of some length does not turn up
    whose greedy tokens vary and are no near ties."""
    generator = np.random.default_rng(seed)
    prompts, logits, greedy, margins = [], [], [], []
    for length in prompt_lens:
        for _ in range(max_draws):
            prompt = generator.integers(0, vocab_size, size=length).tolist()
            scores, tokens, beaten = continue_greedily(prompt)
            if min(beaten) >= MIN_MARGIN and len(set(tokens)) >= MIN_DISTINCT:
                break
        else:
            return None
        prompts.append(prompt)
        logits.append(scores)
        greedy.append(tokens)
        margins.append(beaten)
    return {
        "prompt_lens": np.array(prompt_lens, np.int32),
        "prompts": np.concatenate(prompts).astype(np.int32),
        "logits": np.concatenate(logits).astype(np.float32),
        "greedy": np.array(greedy, np.int32),
        "greedy_margins": np.array(margins, np.float32),
    }


def record_case(
    name: str, directory: Path, attempt: Callable[[int], dict[str, np.ndarray] | None], max_seeds: int
) -> None:
    """Write the reference outputs of the first seed whose greedy tokens make a fair test.

    Args:
        name: of the case, to print.
        directory: of its checkpoint.
        attempt: writes the checkpoint of a seed there and records it.
        max_seeds: how many to try.
    """
    for seed in range(max_seeds):
        if (reference := attempt(seed)) is not None:
            np.savez_compressed(directory / "reference.npz", **reference)  # type: ignore[arg-type]
            size = sum(p.stat().st_size for p in directory.iterdir())
            margin = reference["greedy_margins"].min()
            print(f"{name}: seed {seed}, least margin {margin:.4f}, {size} bytes", flush=True)
            return
    raise SystemExit(f"{name}: no seed gives tokens that vary")
