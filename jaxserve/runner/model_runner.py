"""ModelRunner: keeps weights, pool and state on the devices, and starts one compiled step after the other."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxserve.errors import DeviceLostError, DeviceMemoryError
from jaxserve.progress import ProgressCallback, no_progress
from jaxserve.runner.buckets import Bucket, Buckets, SamplerKind
from jaxserve.runner.compile_ahead import BackgroundCompiler, compile_all
from jaxserve.runner.device_memory import out_of_memory_as
from jaxserve.runner.host_memory import HostArray, HostArrays, host_sharding, read
from jaxserve.runner.input_batch import InputBatch
from jaxserve.runner.kv_pool import KVPoolSpec
from jaxserve.runner.step_call import StepCall
from jaxserve.runner.step_compiler import StepCompiler
from jaxserve.runner.step_function import DeviceState, MergesWeights, Weights
from jaxserve.step import StepPlan

# Page-table entries and page copies that one call outside the step carries.
_UPDATES_A_CALL = 1024
_COPIES_A_CALL = 16
# How long the end of a runner waits for a compilation under way.
STOP_COMPILING_S = 3.0
NO_ROOM_FOR_STEP = (
    "a step found no room for its temporaries in a device's memory, and the engine cannot go on; give it less to hold "
    "by num_pages or a lower max_num_batched_tokens, or end other processes that hold its memory"
)


@dataclass(frozen=True)
class DispatchedStep:
    """A step in flight.

    Attributes:
        sampled: [max_num_seqs] int32 in host memory, of which the first num_seqs are real.
        packed: what the step reads.
        num_seqs: sequences in the step.
    """

    sampled: jax.Array
    packed: HostArray
    num_seqs: int


class ModelRunner:
    """Runs StepPlans on the devices of a mesh.

    Args:
        model: the loaded model; merges weights into modules. Kept, and with it what its weights point to.
        weights: its arrays, on the mesh.
        mesh: the devices.
        pool: shape of the KV pool.
        buckets: the shapes to run in.
        max_num_seqs: number of slots.
        max_model_len: most tokens of a sequence.
        cache_dir: where compiled steps are kept between starts; None if they are not.

    Attributes:
        page_bytes: bytes of one page in all layers, over all devices.
    """

    def __init__(
        self,
        model: MergesWeights,
        weights: Weights,
        mesh: Mesh,
        *,
        pool: KVPoolSpec,
        buckets: Buckets,
        max_num_seqs: int,
        max_model_len: int,
        cache_dir: Path | None = None,
    ) -> None:
        self._weights = weights
        self._buckets = buckets
        self._batch = InputBatch(max_num_seqs)
        self._num_slots = max_num_seqs
        self._num_pages = pool.num_pages
        self.page_bytes = pool.page_bytes
        self._replicated = NamedSharding(mesh, PartitionSpec())
        max_pages = -(-max_model_len // pool.page_size)
        self._compiler = StepCompiler(model, weights, mesh, pool, max_num_seqs, max_pages, cache_dir, buckets.first)
        self._steps: dict[Bucket, StepCall] = {}
        self._background: BackgroundCompiler[StepCall] | None = None
        self._last_dispatch = float("-inf")
        self._mesh, self._pool = mesh, pool
        self._kv_pages: jax.Array | None = None
        self._state = DeviceState(
            *(jax.device_put(np.zeros(a.shape, a.dtype), self._replicated) for a in self._compiler.abstract_state)
        )
        self._on_host = host_sharding(mesh)
        self._packed = HostArrays(self._on_host)
        # Steps that were not collected, by their sampled tokens' identity, and tokens that were read: a step writes its
        # own where those of an earlier one lay. New memory each time would be more for the host to do, and each command
        # of a step's CUDA graph is bound to where its arrays are.
        self._in_flight: dict[int, DispatchedStep] = {}
        self._used: list[jax.Array] = []

    @property
    def compiled_steps(self) -> Mapping[Bucket, StepCall]:
        """The executables so far, for those who look at what was compiled."""
        return self._steps

    def allocate(self) -> jax.Array:
        """The pool, whose memory is taken if that was not done yet. What compiles before has that memory to try kernels
        in."""
        if self._kv_pages is None:
            self._kv_pages = self._pool.allocate(self._mesh)
        return self._kv_pages

    def compile_ahead(self, on_progress: ProgressCallback = no_progress, *, everything: bool = False) -> None:
        """Compile a bucket for every step in parallel threads, run each on padding, and return; those that fit closer
        are compiled while steps run.

        Args:
            on_progress: told how many are compiled of those that are waited for.
            everything: wait for those that fit closer, too.
        """
        first = list(self._buckets.first)
        self._steps.update(compile_all(first, self._compile, on_progress))
        self.allocate()
        rest = [bucket for bucket in self._buckets if bucket not in self._steps]
        if everything and rest:
            self._steps.update(compile_all(rest, self._compile, on_progress))
            first, rest = first + rest, []
        self._run_on_padding(first)
        if rest:
            self._background = BackgroundCompiler(sorted(rest), self._compile, lambda: self._last_dispatch)

    def compile_buckets(self, buckets: Collection[Bucket], on_progress: ProgressCallback = no_progress) -> None:
        """Compile these alone in parallel threads, for those who know which steps will run.

        Args:
            buckets: of this runner.
            on_progress: told how many are compiled.
        """
        self._steps.update(compile_all(list(buckets), self._compile, on_progress))
        self._run_on_padding(buckets)

    def finish_compiling(self, *, wanted_only: bool = False) -> bool:
        """Wait for the background, so that a measurement does not meet it.

        Args:
            wanted_only: for the buckets that steps have asked for, and not for all.

        Returns:
            Whether there was anything to wait for.
        """
        if self._background is None:
            return False
        if wanted_only:
            return self._background.wait_for_wanted()
        was_running = self._background.is_running
        self._background.wait(None)
        return was_running

    def close(self) -> bool:
        """Stop compiling in the background; False if the compilation under way takes longer than STOP_COMPILING_S."""
        return self._background is None or self._background.close(STOP_COMPILING_S)

    def dispatch(self, plan: StepPlan) -> DispatchedStep:
        """Start a step; returns without waiting for the device.

        Raises:
            DeviceMemoryError: a device has no room for it.
        """
        self._batch.assign(plan.new_slots)
        self._copy_pages(plan.page_copies)
        num_tokens = plan.num_tokens
        decode_only = num_tokens == len(plan.slots)
        bucket = self._pick_bucket(num_tokens, self._batch.sampler_kind(plan), decode_only=decode_only)
        plan = self._upload_surplus_pages(plan, bucket.num_page_updates)
        with out_of_memory_as(DeviceMemoryError, NO_ROOM_FOR_STEP):
            return self._call(bucket, plan)

    def collect(self, handle: DispatchedStep) -> list[int]:
        """Wait for a step; the sampled token of each of its sequences.

        Raises:
            DeviceLostError: a device waited in vain for another, in this step or before it.
            DeviceMemoryError: a device had no room for it.
        """
        # Where the device's errors show, which come after the call.
        with out_of_memory_as(DeviceMemoryError, NO_ROOM_FOR_STEP):
            tokens: list[int] = read(handle.sampled)[: handle.num_seqs].tolist()
        self._take_back(handle)
        if any(token < 0 for token in tokens):
            raise DeviceLostError("a GPU waited in vain for another; the engine cannot go on")
        return tokens

    def _pick_bucket(self, num_tokens: int, kind: SamplerKind, *, decode_only: bool) -> Bucket:
        """The smallest bucket, or while others are being compiled, the smallest that is ready."""
        self._last_dispatch = time.monotonic()
        if self._background is None:
            return self._buckets.pick(num_tokens, kind, decode_only=decode_only)
        self._steps.update(self._background.take_finished())
        closest = self._buckets.pick(num_tokens, kind, decode_only=decode_only)
        if closest in self._steps:
            return closest
        self._background.want(closest)
        return self._buckets.pick(num_tokens, kind, decode_only=decode_only, ready=self._steps)

    def _run_on_padding(self, buckets: Collection[Bucket]) -> None:
        # A new executable makes XLA forget its CUDA graphs, and a first run is not captured: hence two, after all.
        for bucket in [*buckets, *buckets]:
            self.collect(self._call(bucket, StepPlan(step_id=0)))

    def _compile(self, bucket: Bucket) -> StepCall:
        return StepCall(self._compiler.load(bucket), self._weights, self._compiler.results)

    def _call(self, bucket: Bucket, plan: StepPlan) -> DispatchedStep:
        if bucket not in self._steps:
            self._steps[bucket] = self._compile(bucket)
        packed = self._packed.take(self._batch.pack(plan, bucket))
        used = self._used.pop() if self._used else HostArray.zeros(self._num_slots, self._on_host).array
        result = self._steps[bucket](self.allocate(), self._state, packed.array, used)
        self._kv_pages, self._state, sampled = result
        handle = DispatchedStep(sampled, packed, len(plan.slots))
        self._in_flight[id(sampled)] = handle
        return handle

    def _take_back(self, handle: DispatchedStep) -> None:
        """What a step that has ended read and wrote, for another one; nobody will look at its tokens any more."""
        if self._in_flight.pop(id(handle.sampled), None) is not None:
            self._used.append(handle.sampled)
            self._packed.give_back(handle.packed)

    def _copy_pages(self, copies: list[tuple[int, int]]) -> None:
        for sources, targets in _columns(copies, _COPIES_A_CALL, padding=self._num_pages):
            # Padding copies the last page to nowhere.
            sources = np.minimum(sources, self._num_pages - 1)
            self._kv_pages = self._compiler.copy_pages(self.allocate(), sources, targets)

    def _upload_surplus_pages(self, plan: StepPlan, limit: int) -> StepPlan:
        """Send page-table entries beyond what the bucket carries ahead of the step (a long prompt's cached prefix)."""
        surplus = plan.page_table_updates[limit:]
        for columns in _columns(surplus, _UPDATES_A_CALL, padding=self._num_slots):
            page_table = self._compiler.update_page_table(self._state.page_table, *columns)
            self._state = self._state._replace(page_table=page_table)
        if surplus:
            plan.page_table_updates = plan.page_table_updates[:limit]
        return plan


def _columns(rows: Sequence[tuple[int, ...]], size: int, *, padding: int) -> Iterator[np.ndarray]:
    """Tuples of n numbers as arrays [n, size] int32, the last one padded."""
    for start in range(0, len(rows), size):
        part = np.array(rows[start : start + size], np.int32).T
        yield np.pad(part, ((0, 0), (0, size - part.shape[1])), constant_values=padding)
