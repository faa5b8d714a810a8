"""What build_core makes of the settings, and which it refuses before anything is loaded."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxserve.config import EngineConfig
from jaxserve.engine import build
from jaxserve.engine.build import build_core
from jaxserve.errors import CheckpointError, ConfigError
from jaxserve.request import Request, SamplingParams
from jaxserve.runner import step_compiler, step_function
from jaxserve.runner.kv_pool import KVPoolSpec, most_pages
from tests.support.recorded_models import DATA


def config(**changes: Any) -> EngineConfig:
    settings: dict[str, Any] = {
        "model": str(DATA / "gqa"),
        "page_size": 4,
        "max_model_len": 64,
        "skip_tokenizer_init": True,
        "compile_ahead": False,
        "compilation_cache_dir": "",
    }
    return EngineConfig(**settings | changes)


@pytest.fixture
def loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(*args: object, **options: object) -> None:
        raise AssertionError("weights were loaded for settings that cannot work")

    monkeypatch.setattr(build, "load_model", load_model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_model_len": 129}, r"max_model_len is 129.* end at 128; lower it"),
        ({"num_pages": 16}, r"KV pool of 15 pages of 4 tokens cannot hold one sequence of max_model_len=64"),
        ({"num_pages": 1}, "KV pool of 0 pages"),
        ({"max_num_seqs": 8, "max_num_batched_tokens": 4}, r"max_num_batched_tokens \(4\) must be at least"),
        ({"tensor_parallel_size": 8}, r"tensor_parallel_size is 8, but there are 4 devices of kind cpu"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.usefixtures("loads_nothing")
def test_settings_that_contradict_model_or_devices_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_core(config(**changes))


def test_a_pool_of_more_slots_than_can_be_counted_is_refused_with_what_to_change() -> None:
    with pytest.raises(ConfigError, match=rf"32 bits; lower num_pages to at most {most_pages(2, 4)}"):
        build_core(config(num_pages=2**30))


def test_a_pool_larger_than_the_memory_is_refused_with_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*args: object) -> jax.Array:
        return jnp.zeros((2**46,), jnp.int8).block_until_ready()

    monkeypatch.setattr(KVPoolSpec, "allocate", allocate)
    with pytest.raises(
        ConfigError, match=r"memory ran out while .* KV pool; lower num_pages, .*gpu_memory_utilization"
    ):
        build_core(config())


def test_weights_larger_than_the_memory_are_refused_with_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(*args: object, **options: object) -> None:
        jnp.zeros((2**46,), jnp.int8).block_until_ready()

    monkeypatch.setattr(build, "load_model", load_model)
    with pytest.raises(ConfigError, match="memory ran out while loading the weights; take a smaller dtype"):
        build_core(config())


def test_other_errors_of_the_device_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(*args: object, **options: object) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(build, "load_model", load_model)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        build_core(config())


@pytest.mark.parametrize(
    ("changes", "devices", "message"),
    [
        ({}, 3, r"tensor_parallel_size 3 and the model's 2 kv heads do not divide each other; take one that does"),
        (
            {"intermediate_size": 66},
            4,
            "tensor_parallel_size 4 does not divide the model's 66 feed-forward columns; take",
        ),
        ({"num_attention_heads": 2}, 4, "tensor_parallel_size 4 is more than the model's 2 query heads; lower it"),
    ],
    ids=["kv-heads", "feed-forward", "query-heads"],
)
@pytest.mark.usefixtures("loads_nothing")
def test_devices_over_which_the_model_cannot_be_divided_are_refused_before_loading(
    changes: dict[str, int], devices: int, message: str, tmp_path: Path
) -> None:
    content = json.loads((DATA / "gqa" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | changes))
    with pytest.raises(ConfigError, match=message):
        build_core(config(model=str(tmp_path), tensor_parallel_size=devices))


@pytest.mark.usefixtures("loads_nothing")
def test_a_missing_directory_is_named() -> None:
    with pytest.raises(CheckpointError, match="no/such/model: no such directory"):
        build_core(config(model="no/such/model"))


@pytest.mark.usefixtures("loads_nothing")
def test_more_end_tokens_than_can_be_held_back_are_refused(tmp_path: Path) -> None:
    shutil.copytree(DATA / "gqa", tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(33))}))
    with pytest.raises(CheckpointError, match="eos_token_id lists 33 ids"):
        build_core(config(model=str(tmp_path / "model")))


@pytest.mark.usefixtures("loads_nothing")
def test_an_unknown_chat_template_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match="'no_such_template' is neither a file nor one of the built-in"):
        build_core(config(chat_template="no_such_template"))


def test_the_engine_tells_front_ends_the_chat_template_chosen() -> None:
    _, info = build_core(config(chat_template="vicuna"))
    assert info.chat_template == "vicuna"


def test_the_engine_describes_what_it_loaded() -> None:
    core, info = build_core(config(num_pages=40, max_num_seqs=3, max_num_batched_tokens=9, served_model_name="mine"))
    assert (info.model_name, info.architecture, info.dtype) == ("mine", "LlamaForCausalLM", "float32")
    assert (info.limits.vocab_size, info.limits.max_model_len, info.limits.eos_token_ids) == (131, 64, (2,))
    assert (info.num_pages, info.page_size, info.max_num_seqs, info.max_num_batched_tokens) == (39, 4, 3, 9)
    assert core.stats().num_pages == 39
    assert info.tokenizer_dir is None
    assert info.num_parameters == 131 * 32 * 2 + 32 + 2 * (32 * (64 + 32 + 32) + 64 * 32 + 3 * 32 * 64 + 2 * 32)


def test_the_context_is_the_model_s_own_unless_set() -> None:
    _, info = build_core(config(max_model_len=None))
    assert info.limits.max_model_len == 128
    _, info = build_core(config(model=str(DATA / "rope_dynamic"), max_model_len=None))
    assert info.limits.max_model_len == 72


def test_a_pool_of_no_set_size_holds_every_slot_s_whole_context_on_a_small_model() -> None:
    _, info = build_core(config(max_num_seqs=5))
    assert info.num_pages == 5 * 64 // 4


def test_random_weights_need_no_weight_files_and_follow_the_seed(tmp_path: Path) -> None:
    shutil.copy(DATA / "gqa" / "config.json", tmp_path)

    def weights(seed: int) -> list[Any]:
        core, _ = build_core(config(model=str(tmp_path), load_format="dummy", seed=seed))
        return [w.tolist() for w in core.runner._weights]  # type: ignore[attr-defined]

    first = weights(0)
    assert weights(0) == first and weights(1) != first


def test_the_queue_is_limited_unless_all_work_is_handed_over_at_once() -> None:
    settings = config(max_num_queued_requests=7)
    assert build_core(settings)[0].scheduler.config.max_num_queued_requests == 7
    assert build_core(settings, unlimited_queue=True)[0].scheduler.config.max_num_queued_requests is None


@pytest.mark.parametrize("own", [None, "/elsewhere"])
def test_what_a_gpu_driver_assembles_is_kept_with_the_compiled_steps(
    own: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own is None:
        # Set first, so that it is gone again afterwards.
        monkeypatch.setenv("CUDA_CACHE_PATH", "")
        monkeypatch.delenv("CUDA_CACHE_PATH")
    else:
        monkeypatch.setenv("CUDA_CACHE_PATH", own)
    before = jax.config.jax_compilation_cache_dir
    try:
        build_core(config(compilation_cache_dir=str(tmp_path)))
        assert os.environ["CUDA_CACHE_PATH"] == (own or str(tmp_path / "cuda"))
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.usefixtures("no_jax_cache")
@pytest.mark.parametrize(("backend", "are_kept"), [("gpu", True), ("cpu", False)])
def test_a_gpu_s_compiled_steps_are_kept_and_traced_no_more(
    backend: str, are_kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On what is a CPU, taken for a GPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setenv("CUDA_CACHE_PATH", str(tmp_path))
    traced: list[object] = []

    def run_step(*args: Any) -> Any:
        traced.append(args[1])
        return step_function.run_step(*args)

    monkeypatch.setattr(step_compiler, "run_step", run_step)
    params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True, detokenize=False)
    for _ in range(2):
        core, _ = build_core(
            config(compilation_cache_dir=str(tmp_path), num_pages=40, max_num_seqs=2, max_num_batched_tokens=64)
        )
        core.add_request(Request(request_id="one", prompt_token_ids=[5, 6, 7], params=params))
        while core.has_work:
            core.step()
    num_kept = len(list((tmp_path / "steps").glob("*.step")))
    assert num_kept == (len(set(traced)) if are_kept else 0) and len(set(traced)) > 1
    assert len(traced) == len(set(traced)) * (1 if are_kept else 2)
    assert (jax.config.jax_compilation_cache_dir is None) == are_kept
