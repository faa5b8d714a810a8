"""Compiled steps that are kept: found again where nothing changed, and only there."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxserve.layers import norm
from jaxserve.models.checkpoint import LoadedModel
from jaxserve.request import SamplingParams
from jaxserve.runner import step_cache, step_compiler
from jaxserve.runner.buckets import Bucket, SamplerKind
from jaxserve.runner.model_runner import ModelRunner
from jaxserve.runner.step_cache import StepCache, StoredStep, environment
from jaxserve.runner.step_call import StepExecutable
from jaxserve.sharding import make_mesh
from tests.support.recorded_models import Recording
from tests.support.written_plan import Entry, plan

BUCKET = Bucket(4, 2, 2, SamplerKind.GREEDY)
STEP = StoredStep(b"an executable" * 100, [0, 2], 7)
GREEDY = SamplingParams(temperature=0.0)
RECORDING = Recording.of("gqa")


def test_a_step_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    cache = StepCache(tmp_path / "steps", ["a", "b"])
    assert cache.load(BUCKET) is None
    cache.store(BUCKET, STEP)
    assert StepCache(tmp_path / "steps", ["a", "b"]).load(BUCKET) == STEP
    # Smaller than it is, and no half-written file beside it.
    (path,) = (tmp_path / "steps").iterdir()
    assert path.stat().st_size < len(STEP.executable)


def test_another_bucket_or_subject_has_another_step(tmp_path: Path) -> None:
    StepCache(tmp_path, ["a", "b"]).store(BUCKET, STEP)
    assert StepCache(tmp_path, ["a", "c"]).load(BUCKET) is None
    assert StepCache(tmp_path, ["a", "b"]).load(Bucket(4, 2, 2, SamplerKind.FULL)) is None


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:40] + b"!" + data[41:], lambda data: b""]
)
def test_a_damaged_file_is_told_of_and_not_taken(
    damage: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = StepCache(tmp_path, ["a"])
    cache.store(BUCKET, STEP)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert cache.load(BUCKET) is None and "damaged" in caplog.text
    cache.store(BUCKET, STEP)
    assert cache.load(BUCKET) == STEP


def test_a_directory_that_cannot_be_written_to_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "steps").write_text("a file")
    cache = StepCache(tmp_path / "steps", ["a"])
    cache.store(BUCKET, STEP)
    assert "could not be kept" in caplog.text
    assert cache.load(BUCKET) is None and "cannot be read" in caplog.text


def test_a_directory_that_is_only_read_gives_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = StepCache(tmp_path, ["a"])
    cache.store(BUCKET, STEP)

    def refuse(*_: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "touch", refuse)
    assert cache.load(BUCKET) == STEP


def test_a_disk_that_is_full_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def half(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    StepCache(tmp_path, ["a"]).store(BUCKET, STEP)
    assert "no space left" in caplog.text and not list(tmp_path.iterdir())


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buckets = [Bucket(tokens, 1, 1, SamplerKind.GREEDY) for tokens in (1, 2, 3)]
    cache = StepCache(tmp_path, ["a"])
    for age, bucket in enumerate(buckets):
        cache.store(bucket, STEP)
        os.utime(cache._path(bucket), (age, age))
    assert cache.load(buckets[0]) == STEP  # and is the last used now
    size = cache._path(buckets[0]).stat().st_size
    monkeypatch.setattr(step_cache, "LIMIT_BYTES", 3 * size)
    cache.store(BUCKET, STEP)
    assert [cache.load(bucket) is not None for bucket in (*buckets, BUCKET)] == [True, False, True, True]


def environments(change: Callable[[], Any]) -> tuple[list[str], list[str]]:
    mesh = make_mesh(1)
    before = environment(mesh)
    change()
    return before, environment(mesh)


def test_what_has_no_part_in_a_step_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = environments(lambda: monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.123"))
    assert before == after


@pytest.mark.parametrize("name", ["XLA_FLAGS", "TRITON_DEFAULT_FP_FUSION", "JAX_SOMETHING", "MOSAIC_GPU_SOMETHING"])
def test_variables_that_compilers_read_make_other_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = environments(lambda: monkeypatch.setenv(name, "--other"))
    assert before != after


def test_switches_make_other_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = environments(lambda: monkeypatch.setattr(norm, "SPLIT_STREAM_ROWS", 77))
    assert before != after
    precision = jax.config.jax_default_matmul_precision
    try:
        before, after = environments(lambda: jax.config.update("jax_default_matmul_precision", "highest"))
    finally:
        jax.config.update("jax_default_matmul_precision", precision)
    assert before != after


def test_a_change_of_the_sources_makes_other_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "layers").mkdir()
    source = tmp_path / "layers" / "mlp.py"
    source.write_text("x = 1\n")
    monkeypatch.setattr(step_cache, "SOURCES", (tmp_path / "layers",))
    before, after = environments(lambda: source.write_text("x = 2\n"))
    assert before != after
    before, after = environments(lambda: source.rename(source.with_name("moe.py")))
    assert before != after


def test_other_devices_make_other_steps() -> None:
    assert environment(make_mesh(1)) != environment(make_mesh(2))


def tokens(runner: ModelRunner) -> list[int]:
    """The first tokens after a recorded prompt: a step of a prompt, and steps that decode."""
    prompt = RECORDING.prompts[1]
    pages = tuple((i, 5 + i) for i in range(8))
    handles = [runner.dispatch(plan(0, Entry(2, 0, prompt, pages, GREEDY)))]
    handles += [runner.dispatch(plan(1 + i, Entry(2, len(prompt) + i))) for i in range(5)]
    return [runner.collect(handle)[0] for handle in handles]


@pytest.mark.usefixtures("no_jax_cache")
def test_a_runner_takes_the_steps_that_one_before_it_compiled(
    make_runner: Callable[..., ModelRunner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tokens(make_runner(cache_dir=tmp_path)) == RECORDING.greedy[1][:6]

    def trace_again(*_: Any) -> Any:
        raise AssertionError("a step was traced again")

    monkeypatch.setattr(step_compiler, "run_step", trace_again)
    assert tokens(make_runner(cache_dir=tmp_path)) == RECORDING.greedy[1][:6]
    runner = make_runner(cache_dir=tmp_path)
    bucket = runner._buckets.pick(1, SamplerKind.GREEDY, decode_only=True)
    assert runner._compiler.temporary_bytes(bucket) >= 0


@pytest.mark.usefixtures("no_jax_cache")
def test_another_model_has_other_steps(
    loaded: LoadedModel, make_runner: Callable[..., ModelRunner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens(make_runner(cache_dir=tmp_path))
    kept = set((tmp_path / "steps").iterdir())
    monkeypatch.setattr(type(loaded), "description", property(lambda model: "another"))
    tokens(make_runner(cache_dir=tmp_path))
    assert len(set((tmp_path / "steps").iterdir())) == 2 * len(kept) > 0


@pytest.mark.usefixtures("no_jax_cache")
def test_a_step_that_cannot_be_loaded_is_compiled_again(
    make_runner: Callable[..., ModelRunner],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokens(make_runner(cache_dir=tmp_path))

    def refuse(*_: Any) -> Any:
        raise jax.errors.JaxRuntimeError("made for another driver")

    monkeypatch.setattr(StepExecutable, "restored", refuse)
    assert tokens(make_runner(cache_dir=tmp_path)) == RECORDING.greedy[1][:6]
    assert "made for another driver" in caplog.text


def test_what_may_come_from_jax_s_cache_is_not_kept_again(
    make_runner: Callable[..., ModelRunner], tmp_path: Path
) -> None:
    """Which may not be whole when it is written a second time."""
    assert jax.config.jax_compilation_cache_dir is not None
    assert tokens(make_runner(cache_dir=tmp_path)) == RECORDING.greedy[1][:6]
    assert not (tmp_path / "steps").exists()


@pytest.mark.usefixtures("no_jax_cache")
def test_a_step_that_cannot_be_written_is_told_of_and_runs(
    make_runner: Callable[..., ModelRunner],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Unwritable:
        def __init__(self, executable: Any) -> None:
            self.execute_sharded = executable.execute_sharded

        def serialize(self) -> bytes:
            raise jax.errors.JaxRuntimeError("not by this driver")

    of = StepExecutable.of
    monkeypatch.setattr(
        StepExecutable, "of", lambda compiled: replace(of(compiled), executable=Unwritable(of(compiled).executable))
    )
    assert tokens(make_runner(cache_dir=tmp_path)) == RECORDING.greedy[1][:6]
    assert "not by this driver" in caplog.text and not (tmp_path / "steps").exists()
