"""StepCompiler: from a bucket to the executable of its step."""

import logging
import os
import time
from collections.abc import Collection
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxserve.runner.buckets import Bucket
from jaxserve.runner.host_memory import host_sharding
from jaxserve.runner.kv_pool import KVPoolSpec
from jaxserve.runner.packing import packed_layout
from jaxserve.runner.step_cache import StepCache, StoredStep, environment
from jaxserve.runner.step_call import StepExecutable
from jaxserve.runner.step_function import (
    DeviceState,
    MergesWeights,
    Weights,
    copy_pages,
    run_step,
    update_page_table,
)

logger = logging.getLogger(__name__)

# From so many tokens on products are left to cuBLAS; from so many, only in what is compiled while other steps run.
CUBLAS_FROM = 48
TIMED_FROM = 1025


class StepCompiler:
    """Compiles the step for a bucket, knowing arrays only by shape and sharding, or finds it where it was kept.

    Args:
        model: merges weights into modules.
        weights: its arrays, or what describes them.
        mesh: the devices.
        pool: shape of the KV pool.
        max_num_seqs: number of slots.
        max_pages: pages of the longest sequence.
        cache_dir: where compiled steps are kept between starts; None if they are not.
        timed: buckets that are compiled before the pool's memory is taken, and before others run: XLA may try kernels
            for them on the device.

    Attributes:
        abstract_state: the state by shape and sharding.
    """

    def __init__(
        self,
        model: MergesWeights,
        weights: Weights,
        mesh: Mesh,
        pool: KVPoolSpec,
        max_num_seqs: int,
        max_pages: int,
        cache_dir: Path | None = None,
        timed: Collection[Bucket] = (),
    ) -> None:
        self._timed = timed
        self._mesh = mesh
        self._model = model
        self._weights = tuple(jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding) for w in weights)
        self._pool = pool
        self._kv_pages = pool.abstract(mesh)
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._on_host = host_sharding(mesh)
        self._tokens = jax.ShapeDtypeStruct((max_num_seqs,), jnp.int32, sharding=self._on_host)
        self.abstract_state = _tree(
            jax.ShapeDtypeStruct((max_num_seqs,), jnp.int32, sharding=self._replicated),
            jax.ShapeDtypeStruct((max_num_seqs, max_pages), jnp.int32, sharding=self._replicated),
        )
        copy = partial(copy_pages, num_layers=pool.num_layers)
        self.copy_pages = jax.jit(copy, donate_argnums=0, out_shardings=self._kv_pages.sharding)
        self.update_page_table = jax.jit(update_page_table, donate_argnums=0, out_shardings=self._replicated)
        self._cache_dir, self._cache = cache_dir, None
        if cache_dir is not None:
            arrays = [(w.shape, str(w.dtype), str(w.sharding.spec)) for w in self._weights]
            sizes = f"{pool} {max_num_seqs} slots of {max_pages} pages, timed {sorted(timed)}"
            self._cache = StepCache(cache_dir / "steps", [*environment(mesh), model.description, str(arrays), sizes])

    @cached_property
    def _autotune_dir(self) -> Path | None:
        """Where XLA keeps which kernels were the fastest; None where it could not write."""
        if self._cache_dir is None:
            return None
        directory = self._cache_dir / "autotune"
        with suppress(OSError):
            directory.mkdir(parents=True, exist_ok=True)
        return directory if directory.is_dir() and os.access(directory, os.W_OK) else None

    @property
    def results(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """What a step returns, flat, by shape and sharding."""
        return (self._kv_pages, *self.abstract_state, self._tokens)  # type: ignore[return-value]

    def load(self, bucket: Bucket) -> StepExecutable:
        """The executable of one bucket, from the cache or compiled and kept there. Thread-safe."""
        started = time.monotonic()
        stored = None if self._cache is None else self._cache.load(bucket)
        step = None if stored is None else self._restored(stored)
        if step is not None:
            logger.debug("%s: loaded in %.1f s", bucket, time.monotonic() - started)
            return step
        step = StepExecutable.of(self.compile(bucket))
        self._keep(bucket, step)
        return step

    def _keep(self, bucket: Bucket, step: StepExecutable) -> None:
        # Callbacks belong to this process. And what JAX's cache gave may not be whole when it is written again: a CPU's
        # functions are missing then. On a GPU it is in use only if the program around has asked for it.
        from_jax_cache = jax.config.jax_compilation_cache_dir is not None
        if self._cache is None or step.compiled is not None or from_jax_cache:
            return
        try:
            data = step.executable.serialize()
        except RuntimeError as error:
            logger.warning("%s cannot be kept for the next start: %s", bucket, error)
            return
        self._cache.store(bucket, StoredStep(data, list(step.kept), step.temporary_bytes))

    def _restored(self, stored: StoredStep) -> StepExecutable | None:
        devices = list(self._mesh.devices.flat)
        try:
            return StepExecutable.restored(stored.executable, stored.kept, stored.temporary_bytes, devices)
        except (RuntimeError, ValueError) as error:
            logger.warning("a compiled step that was kept cannot be loaded, and is compiled again: %s", error)
            return None

    def compile(self, bucket: Bucket) -> jax.stages.Compiled:
        """The executable of one bucket. Thread-safe."""
        step = partial(run_step, self._model, bucket, self._pool.page_size)
        shardings = (self._kv_pages.sharding, _tree(self._replicated, self._replicated), self._on_host)
        packed = jax.ShapeDtypeStruct((packed_layout(bucket).size,), jnp.int32, sharding=self._on_host)
        started = time.monotonic()
        lowered = jax.jit(step, donate_argnums=(1, 2, 4), out_shardings=shardings).lower(
            self._weights, self._kv_pages, self.abstract_state, packed, self._tokens
        )
        traced = time.monotonic()
        compiled = lowered.compile(compiler_options=self._compiler_options(bucket) or None)
        logger.debug("%s: traced in %.1f s, compiled in %.1f s", bucket, traced - started, time.monotonic() - traced)
        return compiled

    def temporary_bytes(self, bucket: Bucket) -> int:
        """Memory a device needs for the step's temporaries, whatever the size of the pool."""
        stored = None if self._cache is None else self._cache.load(bucket)
        return (self.load(bucket) if stored is None else stored).temporary_bytes

    def _compiler_options(self, bucket: Bucket) -> dict[str, bool | int | float | str]:
        """What XLA is told beyond its defaults: where to keep which kernels were the fastest, and when to try none and
        leave products to cuBLAS.

        Up to 1024 tokens: there XLA's own kernels look faster than they are among the others of a step, since they are
        timed alone. With more tokens they are faster, but not tried beside steps: that takes memory which those may
        need, gigabytes for the largest vocabularies, and they would have to wait.
        """
        options: dict[str, bool | int | float | str] = {}
        if jax.default_backend() != "gpu":
            return options
        if self._autotune_dir is not None:
            options["xla_gpu_per_fusion_autotune_cache_dir"] = str(self._autotune_dir)
        tokens = bucket.num_tokens
        if tokens >= CUBLAS_FROM and (tokens < TIMED_FROM or bucket not in self._timed):
            options["xla_gpu_enable_triton_gemm"] = False
        return options


def _tree(*leaves: Any) -> DeviceState:
    """A DeviceState of something other than arrays: their shapes, or their shardings."""
    return DeviceState(*leaves)
