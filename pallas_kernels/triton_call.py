"""Launching Triton kernels: as kernels of XLA's own, or through jax_triton.

jax_triton hands XLA a call to a function that launches the kernel. XLA asks that function before each run whether it is
ready, which it finds out by hashing the kernel's whole text, and in a CUDA graph the call is a graph within the graph.
In a step of some hundred kernels that is most of the time the host spends. XLA also takes Triton's intermediate code,
to compile it itself (`triton_ir`), and then treats it as it does those that it made: a node of the graph, loaded once,
which may begin early. It passes nothing but arrays, so kernels that take numbers too are left to jax_triton.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
import triton
from jax.interpreters import mlir
from jax_triton import triton_call as _jax_triton_call  # type: ignore[import-not-found, import-untyped, unused-ignore]
from jax_triton import triton_lib

from pallas_kernels import platform
from pallas_kernels.triton_ir import as_xla_reads_it, intermediate_code

# Marks the calls of this project among all that jax_triton lowers.
_OURS = b"jaxserve"
_TARGET = "__gpu$xla.gpu.triton"

# Read by Triton when it compiles what jax_triton launches: line numbers would make up half of the text, and differ with
# where this lies.
os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")
# What Triton does unasked, too, but 3.9 warns that a later one will not.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

# The entry point's name and the text of each kernel, by what tells it from others.
_intermediate: dict[Any, tuple[str, str]] = {}


def triton_call(*args: Any, **settings: Any) -> Any:
    """`jax_triton.triton_call`, but compiled and launched by XLA where the kernel takes nothing but arrays.

    Args:
        args: arrays and references to arrays. Kernels that take numbers too are launched by jax_triton.
        settings: as of `jax_triton.triton_call`.

    Returns:
        What `jax_triton.triton_call` returns.
    """
    return _jax_triton_call(*args, serialized_metadata=_OURS, **settings)


def launched_by() -> Literal["jax_triton", "ir"]:
    """How kernels of nothing but arrays reach the GPU, on which it depends what is compiled.

    Returns:
        "ir": by XLA from Triton's intermediate code. "jax_triton": by jax_triton, as Triton compiled them.
    """
    return "ir" if platform.TRITON_BY_XLA else "jax_triton"


def _lower(ctx: mlir.LoweringRuleContext, *arrays: Any, **params: Any) -> Sequence[Any]:
    """In place of jax_triton's rule, which gets what is not of this project or takes more than arrays, and everything
    where XLA is not to compile."""
    leaves = _leaves(ctx, params) if launched_by() == "ir" else None
    if leaves is None:
        lowered: Sequence[Any] = triton_lib.triton_kernel_call_lowering(
            triton_lib.make_cuda_target, ctx, *arrays, **params
        )
        return lowered
    aliases = dict(params["input_output_aliases"])
    rule = jax.ffi.ffi_lowering(
        _TARGET, api_version=4, operand_output_aliases=aliases, has_side_effect=params["has_side_effect"]
    )
    results: Sequence[Any] = rule(ctx, *arrays, **_attributes(ctx, leaves, params, num_aliases=len(aliases)))
    return results


def _attributes(
    ctx: mlir.LoweringRuleContext, leaves: Sequence[Any], params: Mapping[str, Any], *, num_aliases: int
) -> dict[str, Any]:
    """The custom call's attributes: the kernel, and how to launch it.

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
    return attributes | {f"grid_{axis}": np.int32(n) for axis, n in zip("xyz", grid, strict=True)}


def _leaves(ctx: mlir.LoweringRuleContext, params: Mapping[str, Any]) -> list[Any] | None:
    """The kernel's arguments in order, arrays and placeholders of results; None if XLA cannot launch it by itself."""
    function = triton_lib.TritonFunction(params["fn"])
    plain = function.autotuner is None and function.heuristics is None and not params["zeroed_outputs"]
    ours = params["serialized_metadata"] == _OURS
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


mlir.register_lowering(triton_lib.triton_kernel_call_p, _lower, platform="cuda")
