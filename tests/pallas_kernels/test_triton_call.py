"""Triton kernels that Triton compiles reach XLA as kernels of its own, with the parameters that XLA passes.

They are lowered for a GPU, which needs none.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import jax_triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import pytest
import triton
import triton.language as tl

from pallas_kernels.triton_call import driver_reads_ptx, triton_call, with_parameters

HOPPER = 90
SIZE = 256


@pytest.fixture(autouse=True)
def no_gpu_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """jax_triton wraps what it compiles in a class that only comes with JAX's GPU plugin."""
    monkeypatch.setattr("jax_triton.triton_lib.triton_kernel_call_lib.TritonKernel", lambda *args: None, raising=False)


@triton.jit
def add_kernel(x, y, out, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out + i, tl.load(x + i) + tl.load(y + i))


@triton.jit
def add_in_place_kernel(x, y, out, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    total = tl.load(x + i) + tl.load(y + i)
    tl.store(x + i, total)
    tl.store(out + i, total)


@triton.jit
def shift_kernel(x, shift, out, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out + i, tl.load(x + i) + shift)


def call(kernel: Any, *args: Any) -> Any:
    return triton_call(
        *args,
        kernel=kernel,
        out_type=jax.ShapeDtypeStruct((4 * SIZE,), jnp.float32),
        grid=(4,),
        num_warps=2,
        compute_capability=HOPPER,
        by_xla=False,
        SIZE=SIZE,
    )


def lowered(function: Any) -> str:
    """The StableHLO of a function of two arrays, for a GPU."""
    x = jax.ShapeDtypeStruct((4 * SIZE,), jnp.float32)
    text: str = jax.jit(function).trace(x, x).lower(lowering_platforms=("cuda",)).as_text()
    return text


def parameters(text: str) -> list[str]:
    """Of the one entry point in a module's text."""
    (entry,) = re.findall(r"\.entry \w+\((.*?)\\0A\)", text)
    names: list[str] = re.findall(r"\.align \d+ (\w+)", entry)
    return names


def test_a_kernel_of_arrays_is_launched_by_xla() -> None:
    text = lowered(lambda x, y: call(add_kernel, x, y))
    assert "@__gpu$xla.gpu.ptx(" in text
    assert "grid_x = 4" in text and "block_x = 64" in text
    # Two arrays and the result, and nothing of Triton's own.
    assert parameters(text) == [f"add_kernel_param_{i}" for i in range(3)]
    assert re.search(r"output_indices = \[2( : i64)?\]", text)
    # Line numbers of the source would be most of what XLA has to keep.
    assert ".loc" not in text


def test_a_result_in_an_arguments_place_is_a_parameter_more() -> None:
    def add(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        ref = jax.new_ref(x)
        out = call(add_in_place_kernel, ref, y)
        return ref[...], out

    text = lowered(add)
    names = [*(f"add_in_place_kernel_param_{i}" for i in range(3)), "add_in_place_kernel_result_0"]
    assert parameters(text) == names
    assert re.search(r"output_indices = \[2( : i64)?, 3( : i64)?\]", text)
    assert re.search(r"output_tuple_indices = \[1\],\s+operand_index = 0", text)


def test_a_kernel_that_takes_a_number_is_left_to_jax_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[str] = []

    def rule(make_target: Any, ctx: Any, *arrays: Any, **params: Any) -> Any:
        left.append(params["fn"].fn.__name__)
        return jax.ffi.ffi_lowering("somebody_else")(ctx, *arrays)

    monkeypatch.setattr("pallas_kernels.triton_call.triton_lib.triton_kernel_call_lowering", rule)
    assert "xla.gpu.ptx" not in lowered(lambda x, y: call(shift_kernel, x, 3) + y)
    assert left == ["shift_kernel"]


@pytest.mark.parametrize(("cuda_version", "reads"), [(12_060, False), (12_080, True), (13_000, True)])
def test_an_older_driver_gets_kernels_that_are_assembled_for_it(
    cuda_version: int, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Driver:
        @staticmethod
        def cuDriverGetVersion(version: Any) -> int:
            version._obj.value = cuda_version
            return 0

    monkeypatch.setattr("pallas_kernels.triton_call.ctypes.CDLL", lambda name: Driver)
    monkeypatch.setattr(
        "pallas_kernels.triton_call.triton_lib.triton_kernel_call_lowering",
        lambda make_target, ctx, *arrays, **params: jax.ffi.ffi_lowering("jax_triton_itself")(ctx, *arrays),
    )
    driver_reads_ptx.cache_clear()
    try:
        text = lowered(lambda x, y: call(add_kernel, x, y))
    finally:
        driver_reads_ptx.cache_clear()
    assert ("xla.gpu.ptx" in text, "jax_triton_itself" in text) == (reads, not reads)


def test_calls_of_others_are_left_to_jax_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pallas_kernels.triton_call.triton_lib.triton_kernel_call_lowering",
        lambda make_target, ctx, *arrays, **params: jax.ffi.ffi_lowering("somebody_else")(ctx, *arrays),
    )

    def others(x: jax.Array, y: jax.Array) -> Any:
        return jax_triton.triton_call(x, y, kernel=add_kernel, out_type=x, grid=(4,), SIZE=SIZE)

    assert "somebody_else" in lowered(others)


PTX = """.visible .entry f(
\t.param .u64 .ptr .global .align 1 f_param_0,
\t.param .u64 .ptr .global .align 1 f_param_1
)
{
\tld.param.b64 %r, [f_param_0];
}"""


def test_what_a_kernel_reads_is_not_taken_from_it() -> None:
    assert "f_param_1" not in with_parameters(PTX, "f", 1, 0)
    with pytest.raises(ValueError, match="reads those numbered"):
        with_parameters(PTX, "f", 0, 0)
    with pytest.raises(ValueError, match="takes 2 parameters"):
        with_parameters(PTX, "f", 3, 0)
    with pytest.raises(ValueError, match="no entry point g"):
        with_parameters(PTX, "g", 1, 0)
