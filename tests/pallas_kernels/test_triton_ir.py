"""Triton kernels reach XLA in intermediate code that its own Triton can read.

They are lowered for a GPU, which needs none; scripts/compile_gate.py lets XLA compile them.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import triton
import triton.language as tl

from pallas_kernels import platform
from pallas_kernels.triton_call import launched_by, triton_call
from pallas_kernels.triton_ir import as_xla_reads_it

SIZE = 256
TEXT = """module {
tt.func public @add(%x: !tt.ptr<f32> {tt.divisibility = 16 : i32}, %out: !tt.ptr<f32>) attributes {noinline = false} {
  %a = tt.load %x {cachePolicy = #tt.cache_policy<cache_modifier = none, eviction_policy = evict_first>} : !tt.ptr<f32>
  %b = tt.load %x {cachePolicy = #tt.cache_policy<cache_modifier = cg, eviction_policy = evict_normal>} : !tt.ptr<f32>
  %c = tt.load %x {cachePolicy = #tt.cache_policy<cache_modifier = cg, eviction_policy = evict_last>} : !tt.ptr<f32>
  tt.return
}
}
"""


@pytest.fixture(autouse=True)
def by_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "TRITON_BY_XLA", True)


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
def backwards_kernel(out, x, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out + i, tl.load(x + i))


def call(*args: Any, by_xla: bool = True) -> Any:
    return triton_call(
        *args,
        by_xla=by_xla,
        kernel=normalize_kernel,
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


def test_xla_gets_the_kernel_in_one_function_and_how_to_launch_it() -> None:
    text = lowered(lambda x, y: call(x, y))
    assert launched_by() == "ir"
    assert "@__gpu$xla.gpu.triton(" in text and "xla.gpu.ptx" not in text
    assert "grid_x = 4 : i32" in text and "num_warps = 2 : i32" in text
    # XLA makes each function wait for the kernel before, which one that reduces cannot.
    assert text.count("tt.func") == 1 and "tt.reduce" in text and "helper" not in text
    assert "evictionPolicy = evict_first" in text and "cachePolicy" not in text


def test_xla_compiles_no_kernel_that_it_is_not_to_compile_nor_any_where_that_is_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jax_triton.triton_lib.triton_kernel_call_lib.TritonKernel", lambda *args: None, raising=False)
    monkeypatch.setattr("pallas_kernels.triton_call.driver_reads_ptx", lambda: True)
    assert "@__gpu$xla.gpu.ptx(" in lowered(lambda x, y: call(x, y, by_xla=False))
    assert (launched_by(), launched_by(by_xla=False)) == ("ir", "ptx")
    monkeypatch.setattr(platform, "TRITON_BY_XLA", False)
    assert "@__gpu$xla.gpu.ptx(" in lowered(lambda x, y: call(x, y))
    assert launched_by() == "ptx"


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
    def backwards(x: jax.Array, y: jax.Array) -> Any:
        shape = jax.ShapeDtypeStruct((4 * SIZE,), jnp.float32)
        settings = {"grid": (4,), "num_warps": 2, "compute_capability": 90, "SIZE": SIZE}
        return triton_call(x=x, kernel=backwards_kernel, out_type=shape, **settings) + y

    with pytest.raises(ValueError, match="results must be the last arguments"):
        lowered(backwards)


def test_cache_policies_are_written_as_older_tritons_do() -> None:
    name, text = as_xla_reads_it(TEXT, 2)
    assert name == "add"
    loads = re.findall(r"%x( .*)? : !tt.ptr<f32>\n", text)
    assert loads == [
        " evictionPolicy = evict_first",
        " cacheModifier = cg",
        " cacheModifier = cg evictionPolicy = evict_last",
    ]
    assert "%out: !tt.ptr<f32>, %result_0: !tt.ptr<i8>, %result_1: !tt.ptr<i8>) attributes" in text


def test_a_text_without_one_entry_point_is_refused() -> None:
    with pytest.raises(ValueError, match="0 entry points"):
        as_xla_reads_it("module {}", 0)
    with pytest.raises(ValueError, match="2 entry points"):
        as_xla_reads_it(TEXT + TEXT, 0)
