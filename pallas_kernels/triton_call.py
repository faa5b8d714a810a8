"""Launching Triton kernels: through jax_triton, or as kernels of XLA's own.

jax_triton hands XLA a call to a function that launches the kernel. XLA asks that function before each run whether it is
ready, which it finds out by hashing the kernel's whole text, and in a CUDA graph the call is a graph within the graph.
In a step of some hundred kernels that is most of the time the host spends. XLA also takes Triton's intermediate code,
to compile it itself (`triton_ir`), and then treats it as it does those that it made: a node of the graph, loaded once,
which may begin early. And it takes the text of a kernel that Triton compiled (`__gpu$xla.gpu.ptx`), which may not.
"""

import ctypes
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import triton
from jax.interpreters import mlir
from jax_triton import triton_call as _jax_triton_call  # type: ignore[import-not-found, import-untyped, unused-ignore]
from jax_triton import triton_lib

from pallas_kernels import platform
from pallas_kernels.triton_ir import as_xla_reads_it, intermediate_code

# Marks the calls of this project among all that jax_triton lowers, and those that XLA is not to compile.
_OURS, _COMPILED_BY_TRITON = b"jaxserve", b"jaxserve, compiled by Triton"
_PTX_TARGET, _IR_TARGET = "__gpu$xla.gpu.ptx", "__gpu$xla.gpu.triton"
# The CUDA version that the PTX version of `platform` came with: 12.8, as drivers tell it.
_CUDA_VERSION = 12080

# Read by Triton whenever it compiles. Line numbers would make up half of the text, and differ with where this lies.
os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")
# What Triton does unasked, too, but 3.9 warns that a later one will not.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")


class _Kernel(NamedTuple):
    """A compiled kernel.

    Attributes:
        name: its entry point.
        ptx: its text, whose parameters are the arrays, then one for each result that takes an argument's place.
        shared_bytes: shared memory a program.
    """

    name: str
    ptx: str
    shared_bytes: int


_kernels: dict[Any, _Kernel] = {}
# The entry point's name and the text, by the same keys.
_intermediate: dict[Any, tuple[str, str]] = {}


def triton_call(*args: Any, by_xla: bool = True, **settings: Any) -> Any:
    """`jax_triton.triton_call`, but launched by XLA where the kernel takes nothing but arrays.

    Args:
        args: arrays and references to arrays. Kernels that take numbers too are launched by jax_triton.
        by_xla: XLA may compile it; if not, Triton does.
        settings: as of `jax_triton.triton_call`.

    Returns:
        What `jax_triton.triton_call` returns.
    """
    return _jax_triton_call(*args, serialized_metadata=_OURS if by_xla else _COMPILED_BY_TRITON, **settings)


@cache
def driver_reads_ptx() -> bool:
    """Whether the GPU's driver can assemble texts of the PTX version of `platform`; also where there is no driver to
    ask, so that steps can be compiled for a GPU without one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    cuda_version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(cuda_version)) != 0:
        return False
    return cuda_version.value >= _CUDA_VERSION


def launched_by(*, by_xla: bool = True) -> Literal["jax_triton", "ptx", "ir"]:
    """How kernels of nothing but arrays reach the GPU, on which it depends what is compiled.

    Args:
        by_xla: as of `triton_call`.

    Returns:
        "ir": by XLA from Triton's intermediate code. "ptx": by XLA from their text. "jax_triton": by jax_triton, if the
        driver is too old to assemble that; jax_triton brings its own assembler.
    """
    if by_xla and platform.TRITON_BY_XLA:
        return "ir"
    return "ptx" if driver_reads_ptx() else "jax_triton"


def _lower(ctx: mlir.LoweringRuleContext, *arrays: Any, **params: Any) -> Sequence[Any]:
    """In place of jax_triton's rule, which gets what is not of this project or takes more than arrays."""
    way = launched_by(by_xla=params["serialized_metadata"] != _COMPILED_BY_TRITON)
    leaves = None if way == "jax_triton" else _leaves(ctx, params)
    aliases = dict(params["input_output_aliases"])
    found = None
    if leaves is not None:
        found = (_as_ir if way == "ir" else _as_ptx)(ctx, leaves, params, num_aliases=len(aliases))
    if found is None:
        lowered: Sequence[Any] = triton_lib.triton_kernel_call_lowering(
            triton_lib.make_cuda_target, ctx, *arrays, **params
        )
        return lowered
    target, attributes = found
    rule = jax.ffi.ffi_lowering(
        target, api_version=4, operand_output_aliases=aliases, has_side_effect=params["has_side_effect"]
    )
    results: Sequence[Any] = rule(ctx, *arrays, **attributes)
    return results


def _as_ptx(
    ctx: mlir.LoweringRuleContext, leaves: Sequence[Any], params: Mapping[str, Any], *, num_aliases: int
) -> tuple[str, dict[str, Any]] | None:
    """The custom call's target and attributes for a kernel that Triton compiles; None if it needs scratch memory."""
    kernel = _compiled(ctx, leaves, params, num_aliases=num_aliases)
    if kernel is None:
        return None
    # Results that take an argument's place come after all others, and so does their parameter.
    outputs = [i for i, leaf in enumerate(leaves) if isinstance(leaf, triton_lib._OutputPlaceholder)]
    outputs += range(len(leaves), len(leaves) + num_aliases)
    attributes: dict[str, Any] = {
        "name": kernel.name,
        "kernel_type": "ptx",
        "kernel_data": kernel.ptx,
        "shared_mem_bytes": kernel.shared_bytes,
        "output_indices": outputs,
    }
    grid = triton_lib.normalize_grid(params["grid"], params["metaparams"])
    threads = (32 * params["backend_options"]["num_warps"], 1, 1)
    for axis, programs, size in zip("xyz", grid, threads, strict=True):
        attributes |= {f"grid_{axis}": programs, f"block_{axis}": size}
    return _PTX_TARGET, attributes


def _as_ir(
    ctx: mlir.LoweringRuleContext, leaves: Sequence[Any], params: Mapping[str, Any], *, num_aliases: int
) -> tuple[str, dict[str, Any]] | None:
    """The custom call's target and attributes for a kernel that XLA compiles.

    Raises:
        ValueError: a result is not among the kernel's last arguments: XLA passes results after arguments.
    """
    are_results = [isinstance(leaf, triton_lib._OutputPlaceholder) for leaf in leaves]
    if are_results != sorted(are_results):
        raise ValueError(f"{params['fn']}: results must be the last arguments of a kernel")
    function, spec, target, backend, key = _specialized(ctx, leaves, params)
    options = params["backend_options"]
    if (key, num_aliases) not in _intermediate:
        text = intermediate_code(function.fn, spec, target, backend, options)
        _intermediate[key, num_aliases] = as_xla_reads_it(text, num_aliases)
    name, text = _intermediate[key, num_aliases]
    attributes: dict[str, Any] = {
        "name": name,
        "ir": text,
        "num_warps": np.int32(options["num_warps"]),
        "num_stages": np.int32(options["num_stages"]),
        "debug": False,
    }
    grid = triton_lib.normalize_grid(params["grid"], params["metaparams"])
    return _IR_TARGET, attributes | {f"grid_{axis}": np.int32(n) for axis, n in zip("xyz", grid, strict=True)}


def _leaves(ctx: mlir.LoweringRuleContext, params: Mapping[str, Any]) -> list[Any] | None:
    """The kernel's arguments in order, arrays and placeholders of results; None if XLA cannot launch it by itself."""
    function = triton_lib.TritonFunction(params["fn"])
    plain = function.autotuner is None and function.heuristics is None and not params["zeroed_outputs"]
    ours = params["serialized_metadata"] in (_OURS, _COMPILED_BY_TRITON)
    if not ours or not plain or params["backend_options"]["num_ctas"] != 1:
        return None
    special = (triton_lib._StaticArg, triton_lib._OutputPlaceholder, triton_lib.TensorDescriptor)
    leaves = jax.tree.leaves(params["in_tree"].unflatten(ctx.avals_in), is_leaf=lambda leaf: isinstance(leaf, special))
    if any(isinstance(leaf, (triton_lib._StaticArg, triton_lib.TensorDescriptor)) for leaf in leaves):
        return None
    # In the order of the results.
    placed = [leaf.ordinal for leaf in leaves if isinstance(leaf, triton_lib._OutputPlaceholder)]
    placed += params["input_output_aliases"].values()
    return leaves if placed == list(range(len(ctx.avals_out))) else None


def _specialized(
    ctx: mlir.LoweringRuleContext, leaves: Sequence[Any], params: Mapping[str, Any]
) -> tuple[Any, Any, Any, Any, Any]:
    """jax_triton's function and specialization of a kernel for arrays of these dtypes, Triton's target and backend, and
    what tells it from others."""
    function, options = triton_lib.TritonFunction(params["fn"]), params["backend_options"]
    target = triton_lib.make_cuda_target(params["compute_capability"], options["num_ctas"])
    backend = triton.compiler.make_backend(target)
    arrays = [ctx.avals_out[x.ordinal] if isinstance(x, triton_lib._OutputPlaceholder) else x for x in leaves]
    spec = triton_lib.KernelSpecialization.build(
        function.non_constexpr_param_names,
        arrays,
        [triton_lib.get_type_id(array) for array in arrays],
        jax.tree.structure([0] * len(arrays)),
        [(i,) for i in range(len(arrays))],
        params["metaparams"],
        backend,
    )
    return function, spec, target, backend, function._make_cache_key(spec, target, options)


def _compiled(
    ctx: mlir.LoweringRuleContext, leaves: Sequence[Any], params: Mapping[str, Any], *, num_aliases: int
) -> _Kernel | None:
    """The kernel for arrays of these dtypes, compiled once; None if it needs scratch memory: XLA gives none."""
    function, spec, target, backend, key = _specialized(ctx, leaves, params)
    if (key, num_aliases) not in _kernels:
        *_, result = function._compile_kernel(spec, target, backend, params["backend_options"])
        if result.global_scratch_size:
            return None
        ptx = with_parameters(result.binary, result.name, len(leaves), num_aliases)
        _kernels[key, num_aliases] = _Kernel(result.name, ptx, result.shared_mem_bytes)
    return _kernels[key, num_aliases]


def with_parameters(ptx: str, name: str, num_arrays: int, num_more: int) -> str:
    """The kernel's text with a parameter for each array, and more that it does not read.

    Triton's own at the end, pointers to scratch memory, go.

    Args:
        ptx: as Triton made it.
        name: the entry point.
        num_arrays: N, of the kernel's arguments.
        num_more: M, results that XLA passes besides, though they lie where an argument does.

    Returns:
        The text, whose entry point takes N + M pointers.

    Raises:
        ValueError: the entry point is not as expected, or reads what would go.
    """
    entry = re.search(rf"(\.entry {re.escape(name)}\(\n)(.*?)(\n\))", ptx, re.DOTALL)
    if entry is None:
        raise ValueError(f"there is no entry point {name} in this text: {ptx[:200]!r}")
    parameters = [line.rstrip(",") for line in entry[2].splitlines()]
    body = ptx[entry.end() :]
    read = [i for i in range(num_arrays, len(parameters)) if re.search(rf"\b{re.escape(name)}_param_{i}\b", body)]
    if read or len(parameters) < num_arrays:
        raise ValueError(
            f"{name} takes {len(parameters)} parameters, and reads those numbered {read} past {num_arrays}"
        )
    more = [f"\t.param .u64 .ptr .global .align 1 {name}_result_{i}" for i in range(num_more)]
    return ptx[: entry.start()] + entry[1] + ",\n".join([*parameters[:num_arrays], *more]) + entry[3] + body


mlir.register_lowering(triton_lib.triton_kernel_call_p, _lower, platform="cuda")
