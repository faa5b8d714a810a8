"""Triton's intermediate code is written as the older Triton in XLA reads it."""

import re

import pytest

from pallas_kernels.triton_ir import as_xla_reads_it

TEXT = """module {
tt.func public @add(%x: !tt.ptr<f32> {tt.divisibility = 16 : i32}, %out: !tt.ptr<f32>) attributes {noinline = false} {
  %a = tt.load %x {cachePolicy = #tt.cache_policy<cache_modifier = none, eviction_policy = evict_first>} : !tt.ptr<f32>
  %b = tt.load %x {cachePolicy = #tt.cache_policy<cache_modifier = cg, eviction_policy = evict_normal>} : !tt.ptr<f32>
  %c = tt.load %x {cachePolicy = #tt.cache_policy<cache_modifier = cg, eviction_policy = evict_last>} : !tt.ptr<f32>
  tt.return
}
}
"""


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
