"""What every test shares: four simulated devices, so that tensor parallelism runs on any machine."""

from collections.abc import Iterator

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

jax.config.update("jax_num_cpu_devices", 4)


@pytest.fixture
def no_jax_cache() -> Iterator[None]:
    """Without JAX's own cache, as on a GPU."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    # It is looked at once, and then remembered.
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()
