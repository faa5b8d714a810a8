"""Runs Triton kernels on the CPU, in Triton's interpreter, over cases in a directory.

    TRITON_INTERPRET=1 python -m tests.pallas_kernels.interpreted_triton DIRECTORY

A process of its own, because Triton decides when it is imported whether its functions are interpreted. Each NAME.npz
holds the arguments and `options`, JSON with the name of the operation and what else it takes; the results go to
NAME.out.npz. The interpreter expects torch tensors; `_Buffer` shows it what it asks of them.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels.all_reduce.triton as all_reduce
import pallas_kernels.cached_attention.triton as cached
import pallas_kernels.grouped_matmul.triton as grouped
import pallas_kernels.paged_attention.triton as paged
import pallas_kernels.residual_norm.triton as norm
import pallas_kernels.skinny_matmul.triton as skinny
import pallas_kernels.swiglu.triton as activation
import pallas_kernels.top_k_experts.triton as top_k
from pallas_kernels.grouped_matmul.config import MatmulConfig, SortConfig
from pallas_kernels.paged_attention.config import DecodeConfig, PrefillConfig
from pallas_kernels.skinny_matmul.config import SkinnyConfig
from tests.pallas_kernels import interpreted_all_reduce

BATCH = ("page_table", "query_start_loc", "seq_lens")
ARGUMENTS = {
    "paged_attention": ("q", "kv_pages", *BATCH),
    "residual_norm": ("x", "delta", "weight"),
    "skinny_matmul": ("x", "weight"),
    "gated_matmul": ("x", "weight"),
    "cached_attention": ("qkv", "cos_sin", "kv_pages", "slot_mapping", *BATCH),
    "grouped_matmul": ("lhs", "rhs", "group_sizes"),
    "expert_mlp": ("x", "expert_ids", "expert_weights", "gate_up", "down"),
    "top_k_experts": ("logits",),
    "swiglu": ("gate_up",),
}


class _Buffer:
    """A NumPy array with the methods of a tensor that lies on the CPU already."""

    def __init__(self, array: np.ndarray) -> None:
        self.dtype = str(array.dtype)
        self.array = array

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def size(self) -> tuple[int, ...]:
        return self.array.shape

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
    """In place of jax_triton.triton_call: one program after the other, on copies.

    Results start as NaN, or as the lowest integer.
    """
    for compiler_option in ("name", "num_warps", "num_stages", "backend_options"):
        options.pop(compiler_option)
    host = [a if isinstance(a, int) else _Buffer(np.array(a if isinstance(a, jax.Array) else a[...])) for a in args]
    results = [
        np.full(t.shape, np.iinfo(t.dtype).min if np.issubdtype(t.dtype, np.integer) else np.nan, t.dtype)
        for t in jax.tree.leaves(out_type)
    ]
    kernel[grid](*host, *map(_Buffer, results), **options)
    for arg, buffer in zip(args, host, strict=True):
        if not isinstance(arg, jax.Array | int):
            arg[...] = jnp.asarray(buffer.array)
    return jax.tree.unflatten(jax.tree.structure(out_type), map(jnp.asarray, results))


def run(case: Any) -> tuple[jax.Array, ...]:
    """The results of one case."""
    options = json.loads(str(case["options"]))
    operation = options.pop("operation")
    if operation == "all_reduce":
        return interpreted_all_reduce.run({name: case[name] for name in case.files if name != "options"}, options)
    arguments = [jnp.asarray(case[name]) if name in case else None for name in ARGUMENTS[operation]]
    if operation == "residual_norm":
        x, delta, weight = arguments
        return norm.residual_norm_triton(x, delta, *interpreted_all_reduce.second_of_three(weight), **options)
    if operation == "skinny_matmul":
        config = SkinnyConfig(**options["config"])
        return (skinny.skinny_matmul_triton(*arguments, config, dtype=options.get("dtype")),)
    if operation == "gated_matmul":
        return (skinny.gated_matmul_triton(*arguments, SkinnyConfig(**options["config"])),)
    if operation == "grouped_matmul":
        return (grouped.grouped_matmul_triton(*arguments, config=MatmulConfig(**options["config"])),)
    if operation == "expert_mlp":
        config = MatmulConfig(**options["config"])
        sort = SortConfig(**options["sort"])
        return (grouped.expert_mlp_triton(*arguments, up_config=config, down_config=config, sort=sort),)
    if operation == "top_k_experts":
        return top_k.top_k_experts_triton(*arguments, **options)
    if operation == "swiglu":
        return (activation.swiglu_triton(*arguments, **options),)
    options["decode"] = DecodeConfig(**options["decode"])
    options["alibi_slopes"] = jnp.asarray(case["alibi_slopes"]) if "alibi_slopes" in case else None
    if operation == "cached_attention":
        options["first_page"] = jnp.asarray(case["first_page"]) if "first_page" in case else None
        return cached.cached_attention_triton(*arguments, **options)
    options["prefill"] = PrefillConfig(**options["prefill"])
    return (paged.paged_attention_triton(*arguments, **options),)


def main(directory: Path) -> None:
    for launching in (paged, cached, norm, skinny, grouped, top_k, all_reduce, activation):
        launching.triton_call = interpret
    for path in sorted(directory.glob("*.npz")):
        results = run(np.load(path))
        np.savez(path.with_suffix(".out.npz"), *map(np.asarray, results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
