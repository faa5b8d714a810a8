"""How large the KV pool is: what the settings say, or what the device's memory leaves."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax.numpy as jnp

from jaxserve.config import EngineConfig
from jaxserve.models.checkpoint.loader import LoadedModel
from jaxserve.runner.buckets import Buckets
from jaxserve.runner.kv_pool import CPU_POOL_BYTES, KVPoolSpec, most_pages, pages_in_memory
from jaxserve.runner.step_compiler import StepCompiler

# What XLA needs to try kernels in, for the scores of few sequences above all: the pool is there when most steps are
# compiled. For more tokens it tries none then (`StepCompiler`).
COMPILER_BYTES = 2 << 30


class PoolSizer:
    """Sizes the pool of one engine.

    The temporaries of the largest step must be known, for which it is compiled; `start` does so in a thread, while the
    weights are loaded.

    Args:
        config: the settings.
        buckets: the step shapes.
        max_num_seqs: number of slots.
        on_cpu: whether the devices are CPUs, whose pool is of a fixed size.
        cache_dir: where compiled steps are kept between starts; None if they are not.
    """

    def __init__(
        self, config: EngineConfig, buckets: Buckets, max_num_seqs: int, *, on_cpu: bool, cache_dir: Path | None
    ) -> None:
        self._config = config
        self._buckets = buckets
        self._max_num_seqs = max_num_seqs
        self._on_cpu = on_cpu
        self._cache_dir = cache_dir
        self._step_bytes: Future[int] | None = None

    def start(self, described: LoadedModel) -> None:
        """Begin to find out what the largest step needs, from a model whose weights are only described.

        Raises:
            ConfigError: the pool that the settings ask for has more slots than can be counted.
        """
        if self._config.num_pages is not None:
            # Refused now and not when the weights are there, if there are too many.
            self._spec(described, self._config.num_pages)
            return
        if self._on_cpu:
            return
        thread = ThreadPoolExecutor(1)
        self._step_bytes = thread.submit(self._temporary_bytes, described)
        thread.shutdown(wait=False)

    def _temporary_bytes(self, described: LoadedModel) -> int:
        """Of the largest step. Imports what kernels call, too, which takes seconds."""
        compiler = StepCompiler(
            described,
            described.weights,
            described.mesh,
            self._spec(described, 2),
            self._max_num_seqs,
            self._pages_a_sequence(described),
            self._cache_dir,
            self._buckets.first,
        )
        return compiler.temporary_bytes(self._buckets.largest)

    def size(self, loaded: LoadedModel) -> KVPoolSpec:
        """The pool beside a model that has been loaded.

        Raises:
            ConfigError: nothing is left for the pool.
        """
        if self._config.num_pages is not None:
            return self._spec(loaded, self._config.num_pages)
        page_bytes = self._spec(loaded, 1).page_bytes
        a_sequence = self._pages_a_sequence(loaded)
        if self._step_bytes is None:
            wanted = min(self._max_num_seqs * a_sequence, CPU_POOL_BYTES // page_bytes)
            return self._spec(loaded, 1 + max(a_sequence, wanted))
        step_bytes = self._step_bytes.result()
        devices = list(loaded.mesh.devices.flat)
        stats = [device.memory_stats() for device in devices]
        num_pages = pages_in_memory(
            page_bytes=page_bytes,
            num_devices=len(devices),
            limit_bytes=min(s["bytes_limit"] for s in stats),
            used_bytes=max(s["bytes_in_use"] for s in stats),
            step_bytes=step_bytes + COMPILER_BYTES,
        )
        return self._spec(loaded, min(num_pages, most_pages(loaded.config.num_layers, self._config.page_size)))

    def _pages_a_sequence(self, model: LoadedModel) -> int:
        return -(-model.max_model_len // self._config.page_size)

    def _spec(self, model: LoadedModel, num_pages: int) -> KVPoolSpec:
        return KVPoolSpec(
            num_layers=model.config.num_layers,
            num_pages=num_pages,
            page_size=self._config.page_size,
            num_kv_heads=model.num_kv_heads,
            head_dim=model.config.head_dim,
            dtype=jnp.dtype(model.dtype),
        )
