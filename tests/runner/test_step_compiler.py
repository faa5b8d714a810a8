"""StepCompiler: what XLA is told."""

import os
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from jaxserve.runner.buckets import Buckets, SamplerKind
from jaxserve.runner.model_runner import ModelRunner
from jaxserve.runner.step_compiler import StepCompiler

ALONE = {"xla_gpu_enable_triton_gemm": False}
BUCKETS = Buckets(max_num_seqs=1024, max_num_batched_tokens=8192, page_size=16, growth=2, split_decode=True, fine=True)


@pytest.fixture
def compiler(make_runner: Callable[..., ModelRunner], monkeypatch: pytest.MonkeyPatch) -> StepCompiler:
    """One that takes this machine for one with a GPU."""
    compiler = make_runner()._compiler
    compiler._timed = BUCKETS.first
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    return compiler


def test_nothing_is_tried_on_the_device_beside_steps_but_for_few_tokens(compiler: StepCompiler) -> None:
    """It takes memory that the steps may need."""
    later = [bucket for bucket in BUCKETS if bucket not in BUCKETS.first]
    assert max(bucket.num_tokens for bucket in later) == 6144
    for bucket in later:
        assert compiler._compiler_options(bucket) == (ALONE if bucket.num_tokens > 32 else {})


def test_of_what_is_compiled_first_the_largest_products_are_tried(compiler: StepCompiler) -> None:
    options = {bucket.num_tokens: compiler._compiler_options(bucket) for bucket in BUCKETS.first}
    assert options == {1: {}, 4: {}, 16: {}, 64: ALONE, 256: ALONE, 1024: ALONE, 8192: {}}
    assert compiler._compiler_options(BUCKETS.pick(8192, SamplerKind.GREEDY)) == {}


def test_a_cpu_is_told_nothing(make_runner: Callable[..., ModelRunner], tmp_path: Path) -> None:
    compiler = make_runner(cache_dir=tmp_path)._compiler
    assert all(compiler._compiler_options(bucket) == {} for bucket in BUCKETS)


def test_which_kernels_were_the_fastest_is_kept_beside_the_steps(
    make_runner: Callable[..., ModelRunner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = make_runner(cache_dir=tmp_path)._compiler
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for bucket in BUCKETS:
        assert compiler._compiler_options(bucket)["xla_gpu_per_fusion_autotune_cache_dir"] == str(tmp_path / "autotune")


def test_a_cache_that_cannot_be_written_to_is_not_given_to_xla(
    make_runner: Callable[..., ModelRunner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "autotune").write_text("a file")
    compiler = make_runner(cache_dir=tmp_path)._compiler
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert compiler._compiler_options(BUCKETS.pick(1, SamplerKind.GREEDY, decode_only=True)) == {}
