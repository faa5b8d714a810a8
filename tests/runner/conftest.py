"""A runner of a recorded checkpoint."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxserve.models.checkpoint import LoadedModel, load_model
from jaxserve.runner.buckets import Buckets
from jaxserve.runner.kv_pool import KVPoolSpec
from jaxserve.runner.model_runner import ModelRunner
from jaxserve.sharding import make_mesh
from tests.support.recorded_models import DATA

PAGE_SIZE = 4
NUM_PAGES = 64
MAX_NUM_SEQS = 4
MAX_MODEL_LEN = 96


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    return load_model(DATA / "gqa", make_mesh(1), max_model_len=MAX_MODEL_LEN)


@pytest.fixture(scope="session")
def make_runner(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModelRunner]:
    """A new runner of the same model with an empty pool; its shapes are compiled when first used, and kept."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

    def make(*, split_decode: bool = False, fine: bool = False, cache_dir: Path | None = None) -> ModelRunner:
        pool = KVPoolSpec(
            num_layers=loaded.config.num_layers,
            num_pages=NUM_PAGES,
            page_size=PAGE_SIZE,
            num_kv_heads=loaded.num_kv_heads,
            head_dim=loaded.config.head_dim,
            dtype=jnp.dtype(loaded.dtype),
        )
        return ModelRunner(
            loaded,
            loaded.weights,
            loaded.mesh,
            pool=pool,
            buckets=Buckets(
                max_num_seqs=MAX_NUM_SEQS,
                max_num_batched_tokens=64,
                page_size=PAGE_SIZE,
                growth=4,
                split_decode=split_decode,
                fine=fine,
            ),
            max_num_seqs=MAX_NUM_SEQS,
            max_model_len=MAX_MODEL_LEN,
            cache_dir=cache_dir,
        )

    return make


@pytest.fixture
def runner(make_runner: Callable[..., ModelRunner]) -> ModelRunner:
    return make_runner()
