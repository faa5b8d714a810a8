"""StepCompiler: what XLA is told."""

from collections.abc import Callable

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
        assert compiler._compiler_options(bucket) == (ALONE if bucket.num_tokens > 32 else None)


def test_of_what_is_compiled_first_the_largest_products_are_tried(compiler: StepCompiler) -> None:
    options = {bucket.num_tokens: compiler._compiler_options(bucket) for bucket in BUCKETS.first}
    assert options == {1: None, 4: None, 16: None, 64: ALONE, 256: ALONE, 1024: ALONE, 8192: None}
    assert compiler._compiler_options(BUCKETS.pick(8192, SamplerKind.GREEDY)) is None


def test_a_cpu_is_told_nothing(make_runner: Callable[..., ModelRunner]) -> None:
    assert all(make_runner()._compiler._compiler_options(bucket) is None for bucket in BUCKETS)
