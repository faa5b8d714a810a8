"""Runs the Triton kernels of sampling_floor and gumbel_argmax on the CPU, in Triton's interpreter.

    TRITON_INTERPRET=1 python -m tests.pallas_kernels.interpreted_sampling DIRECTORY

A process of its own, as `interpreted_triton` explains. Each NAME.npz of DIRECTORY holds the arguments of both, and
`options`, JSON of the sizes; NAME-out.npz gets the floors, the tokens and, for two rows, the noise.
"""

import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import triton
import triton.language as tl

import pallas_kernels.gumbel_argmax.triton as drawing
import pallas_kernels.sampling_floor.triton as cutting
from pallas_kernels.gumbel_argmax.config import DrawConfig
from pallas_kernels.gumbel_argmax.kernels import _gumbel
from pallas_kernels.sampling_floor.config import FloorConfig
from tests.pallas_kernels.interpreted_triton import _Buffer, interpret


@triton.jit
def noise_kernel(seeds, positions, noise, V: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The noise of each token of one row, as the drawing kernel makes it. Grid (S,)."""
    row = tl.program_id(0)
    tokens = tl.arange(0, BLOCK)
    values = _gumbel(tl.load(seeds + 2 * row), tl.load(seeds + 2 * row + 1), tl.load(positions + row), tokens)
    tl.store(noise + row * V + tokens, values, mask=tokens < V)


def noise_of(seeds: np.ndarray, positions: np.ndarray, vocab_size: int) -> np.ndarray:
    noise = np.zeros((len(positions), vocab_size), np.float32)
    block = 1 << (vocab_size - 1).bit_length()
    arrays = [np.ascontiguousarray(a) for a in (seeds, positions)] + [noise]
    noise_kernel[(len(positions),)](*map(_Buffer, arrays), V=vocab_size, BLOCK=block)
    return noise


def main(directory: Path) -> None:
    cutting.triton_call = drawing.triton_call = interpret
    for path in sorted(directory.glob("*.npz")):
        case = np.load(path)
        options = json.loads(str(case["options"]))
        rows = {name: jnp.asarray(case[name]) for name in case.files if name != "options"}
        logits, best, temperature = rows["logits"], rows["best"], rows["temperature"]
        restrictions = rows["top_k"], rows["top_p"], rows["min_p"]
        cut, draw = FloorConfig(**options["floor"]), DrawConfig(**options["draw"])
        floor = cutting.sampling_floor_triton(logits, best, temperature, *restrictions, config=cut)
        tokens = drawing.gumbel_argmax_triton(
            logits, best, floor, temperature, rows["seeds"], rows["positions"], config=draw
        )
        noise = noise_of(case["seeds"][:2], case["positions"][:2], logits.shape[1])
        np.savez(path.with_name(f"{path.stem}-out.npz"), floor=floor, tokens=tokens, noise=noise)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
