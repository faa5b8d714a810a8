"""Runs the Triton kernels of paged attention on the CPU, in Triton's interpreter, over cases in a directory.

    TRITON_INTERPRET=1 python -m tests.pallas_kernels.interpreted_triton DIRECTORY

A process of its own, because Triton decides when it is imported whether its functions are interpreted. Each NAME.npz
holds the arguments and `options`, JSON of what else paged_attention_triton takes; the output is written to NAME.npy.
The interpreter expects torch tensors; `_Buffer` shows it what it asks of them.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels.paged_attention.triton as launching
from pallas_kernels.paged_attention.config import DecodeConfig, PrefillConfig

ARGUMENTS = ("q", "kv_pages", "page_table", "query_start_loc", "seq_lens")


class _Buffer:
    """A NumPy array with the methods of a tensor that lies on the CPU already."""

    def __init__(self, array: np.ndarray) -> None:
        self.dtype = str(array.dtype)
        self._array = array

    def data_ptr(self) -> int:
        return self._array.ctypes.data

    def size(self) -> tuple[int, ...]:
        return self._array.shape

    def stride(self) -> tuple[int, ...]:
        return ()

    def storage_offset(self) -> int:
        return 0

    def untyped_storage(self) -> "_Buffer":
        return self

    def cpu(self) -> "_Buffer":
        return self

    def new_empty(self, size: int, device: str) -> "_Buffer":
        return self

    def set_(self, *args: Any) -> None:
        pass

    def copy_(self, other: "_Buffer") -> None:
        pass


def interpret(*args: Any, kernel: Any, out_type: Any, grid: tuple[int, ...], **options: Any) -> Any:
    """In place of jax_triton.triton_call: one program after the other, on copies; results start as NaN."""
    for compiler_option in ("name", "num_warps", "num_stages", "backend_options"):
        options.pop(compiler_option)
    host = [np.array(a if isinstance(a, jax.Array) else a[...]) for a in args]
    results = [np.full(t.shape, np.nan, t.dtype) for t in jax.tree.leaves(out_type)]
    kernel[grid](*map(_Buffer, host + results), **options)
    for arg, array in zip(args, host, strict=True):
        if not isinstance(arg, jax.Array):
            arg[...] = jnp.asarray(array)
    return jax.tree.unflatten(jax.tree.structure(out_type), map(jnp.asarray, results))


def main(directory: Path) -> None:
    launching.triton_call = interpret
    for path in sorted(directory.glob("*.npz")):
        case = np.load(path)
        options = json.loads(str(case["options"]))
        out = launching.paged_attention_triton(
            *(jnp.asarray(case[name]) for name in ARGUMENTS),
            scale=options["scale"],
            decode_only=options["decode_only"],
            decode=DecodeConfig(**options["decode"]),
            prefill=PrefillConfig(**options["prefill"]),
        )
        np.save(path.with_suffix(".npy"), np.asarray(out))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
