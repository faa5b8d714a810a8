"""Triton kernels reach XLA as kernels of its own, with the parameters that XLA passes, or are left to jax_triton.

They are lowered for a GPU, which needs none; scripts/compile_gate.py lets XLA compile them.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import jax_triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import pytest
import triton
import triton.language as tl

from pallas_kernels import platform
from pallas_kernels.triton_call import launched_by, triton_call

SIZE = 256


@pytest.fixture(autouse=True)
def by_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "TRITON_BY_XLA", True)


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that are left to jax_triton, whose own rule needs JAX's GPU plugin."""
    names: list[str] = []

    def rule(make_target: Any, ctx: Any, *arrays: Any, **params: Any) -> Any:
        names.append(params["fn"].fn.__name__)
        return jax.ffi.ffi_lowering("jax_triton_itself")(ctx, *arrays)

    monkeypatch.setattr("pallas_kernels.triton_call.triton_lib.triton_kernel_call_lowering", rule)
    return names


@triton.jit
def helper(x):  # type: ignore[no-untyped-def]
    return tl.sum(x * x, axis=0)


@triton.jit
def normalize_kernel(x, y, out, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    values = tl.load(x + i, eviction_policy="evict_first") + tl.load(y + i)
    tl.store(x + i, values)
    tl.store(out + i, values / helper(values))


@triton.jit
def shift_kernel(x, shift, out, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out + i, tl.load(x + i) + shift)


@triton.jit
def backwards_kernel(out, x, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out + i, tl.load(x + i))


def call(*args: Any, kernel: Any = normalize_kernel, launch: Any = triton_call, **arrays: Any) -> Any:
    return launch(
        *args,
        **arrays,
        kernel=kernel,
        out_type=jax.ShapeDtypeStruct((4 * SIZE,), jnp.float32),
        grid=(4,),
        num_warps=2,
        compute_capability=90,
        SIZE=SIZE,
    )


def lowered(function: Any) -> str:
    """The StableHLO of a function of two arrays, for a GPU."""
    x = jax.ShapeDtypeStruct((4 * SIZE,), jnp.float32)
    text: str = jax.jit(function).trace(x, x).lower(lowering_platforms=("cuda",)).as_text()
    return text


def test_xla_gets_the_kernel_in_one_function_and_how_to_launch_it(left: list[str]) -> None:
    text = lowered(lambda x, y: call(x, y))
    assert launched_by() == "ir" and not left
    assert "@__gpu$xla.gpu.triton(" in text
    assert "grid_x = 4 : i32" in text and "num_warps = 2 : i32" in text
    # XLA makes each function wait for the kernel before, which one that reduces cannot.
    assert text.count("tt.func") == 1 and "tt.reduce" in text and "helper" not in text
    assert "evictionPolicy = evict_first" in text and "cachePolicy" not in text


def test_the_text_that_xla_keeps_does_not_say_where_the_source_lies() -> None:
    text = lowered(lambda x, y: call(x, y))
    assert "loc(" not in text and ".py" not in text


def test_a_result_in_an_arguments_place_is_an_argument_more() -> None:
    def normalize(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        ref = jax.new_ref(x)
        out = call(ref, y)
        return ref[...], out

    text = lowered(normalize)
    (entry,) = re.findall(r"tt\.func public @normalize_kernel\((.*?)\) attributes", text)
    assert entry.count("!tt.ptr") == 4 and entry.endswith("%result_0: !tt.ptr<i8>")
    assert re.search(r"output_tuple_indices = \[1\],\s+operand_index = 0", text)


def test_results_before_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="results must be the last arguments"):
        lowered(lambda x, y: call(x=x, kernel=backwards_kernel) + y)


def test_a_kernel_that_takes_a_number_is_left_to_jax_triton(left: list[str]) -> None:
    text = lowered(lambda x, y: call(x, 3, kernel=shift_kernel) + y)
    assert left == ["shift_kernel"] and "xla.gpu.triton" not in text


def test_calls_of_others_are_left_to_jax_triton(left: list[str]) -> None:
    text = lowered(lambda x, y: call(x, y, launch=jax_triton.triton_call))
    assert left == ["normalize_kernel"] and "xla.gpu.triton" not in text


def test_where_xla_is_not_to_compile_them_kernels_are_left_to_jax_triton(
    left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "TRITON_BY_XLA", False)
    text = lowered(lambda x, y: call(x, y))
    assert launched_by() == "jax_triton"
    assert left == ["normalize_kernel"] and "xla.gpu.triton" not in text
