"""From settings to a running EngineCore: mesh, weights, pool, compiled steps."""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import jax

import jaxserve
from jaxserve.config import EngineConfig, SchedulerConfig
from jaxserve.engine.core import EngineCore
from jaxserve.engine.device_memory import explained_out_of_memory
from jaxserve.engine.messages import EngineInfo
from jaxserve.engine.pool_size import PoolSizer
from jaxserve.errors import CheckpointError, ConfigError
from jaxserve.model_directory import resolve_model
from jaxserve.models.checkpoint.loader import LoadedModel, load_model
from jaxserve.models.config import ModelConfig
from jaxserve.models.registry import MODEL_FAMILIES, load_config
from jaxserve.progress import ProgressCallback, no_progress
from jaxserve.request import MAX_STOP_TOKEN_IDS, ModelLimits
from jaxserve.runner.buckets import Buckets
from jaxserve.runner.kv_pool import KVPoolSpec
from jaxserve.runner.model_runner import ModelRunner
from jaxserve.scheduler.scheduler import Scheduler
from jaxserve.sharding import make_mesh
from jaxserve.tokenizer import resolve_chat_template


@dataclass(frozen=True)
class PlatformDefaults:
    """What is taken where the settings leave a choice.

    Attributes:
        max_num_seqs: most sequences in a step.
        max_num_batched_tokens: token budget of a step.
        bucket_growth: ratio of neighbouring bucket sizes.
        fine_buckets: whether there are buckets between those.
        split_decode: whether steps that only decode have a kernel, and so buckets, of their own.
        step_timeout_s: after which a step is taken for hung; None if never.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    bucket_growth: int
    fine_buckets: bool
    split_decode: bool
    step_timeout_s: float | None


GPU_DEFAULTS = PlatformDefaults(
    max_num_seqs=1024,
    max_num_batched_tokens=8192,
    bucket_growth=2,
    fine_buckets=True,
    split_decode=True,
    step_timeout_s=60.0,
)
# A CPU is for trying out: fewer shapes to compile, and steps short enough to keep streams moving.
CPU_DEFAULTS = PlatformDefaults(
    max_num_seqs=32,
    max_num_batched_tokens=512,
    bucket_growth=4,
    fine_buckets=False,
    split_decode=False,
    step_timeout_s=None,
)


_SMALLER_STEPS = "lower max_num_batched_tokens or max_num_seqs"


def build_core(
    config: EngineConfig,
    on_progress: ProgressCallback = no_progress,
    *,
    unlimited_queue: bool = False,
) -> tuple[EngineCore, EngineInfo]:
    """Load the model onto the devices and make the engine that serves it.

    Args:
        config: the settings.
        on_progress: told of loading and compiling.
        unlimited_queue: leave out the admission limit, for callers that hand over all their work at once.

    Raises:
        ConfigError: settings that contradict each other, the model or the devices.
        CheckpointError: the model directory cannot be served.
    """
    directory = resolve_model(config.model)
    chat_template = resolve_chat_template(config.chat_template)
    model_config = load_config(directory)
    if len(model_config.eos_token_ids) > MAX_STOP_TOKEN_IDS // 2:
        raise CheckpointError(
            f"{directory}: eos_token_id lists {len(model_config.eos_token_ids)} ids, and at most "
            f"{MAX_STOP_TOKEN_IDS // 2} can be held back by min_tokens; list fewer"
        )
    # Read by XLA when it first touches a GPU: its allocator then takes no more than this.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(config.gpu_memory_utilization))
    cache_dir = _cache_directory(config.compilation_cache_dir)
    on_cpu = jax.default_backend() == "cpu"
    # A CPU's steps are small and traced in no time: for them JAX's cache is enough.
    if on_cpu and cache_dir is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    step_cache_dir = None if on_cpu else cache_dir
    defaults = CPU_DEFAULTS if on_cpu else GPU_DEFAULTS
    max_model_len = _max_model_len(config, model_config)
    scheduler_config = _scheduler_config(config, defaults, max_model_len, unlimited_queue=unlimited_queue)
    mesh = make_mesh(config.tensor_parallel_size)
    # Refuses a mesh over which the model cannot be divided.
    model_config.parallel_heads(config.tensor_parallel_size)

    max_num_seqs = scheduler_config.max_num_seqs
    buckets = Buckets(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=scheduler_config.max_num_batched_tokens,
        page_size=config.page_size,
        growth=defaults.bucket_growth,
        split_decode=defaults.split_decode,
        fine=defaults.fine_buckets,
    )
    sizer = PoolSizer(config, buckets, max_num_seqs, on_cpu=on_cpu, cache_dir=step_cache_dir)
    with explained_out_of_memory(config, "loading the weights", "take a smaller dtype"):
        loaded = load_model(
            directory,
            mesh,
            dtype=config.dtype,
            load_format=config.load_format,
            max_model_len=max_model_len,
            seed=config.seed,
            on_progress=lambda done, total: on_progress("Loading weights (MiB)", done >> 20, total >> 20),
            on_described=sizer.start,
        )
    with explained_out_of_memory(config, "compiling the largest step", _SMALLER_STEPS):
        pool = sizer.size(loaded)
    # A pool that cannot hold one sequence is refused here, before all steps are compiled.
    scheduler_config = replace(scheduler_config, num_pages=pool.num_pages)
    runner = _make_runner(config, loaded, pool, buckets, max_num_seqs, step_cache_dir, on_progress)
    scheduler = Scheduler(scheduler_config, model_config.eos_token_ids)
    timeout = defaults.step_timeout_s if config.step_timeout_s is None else config.step_timeout_s
    return EngineCore(scheduler, runner, timeout), _engine_info(config, loaded, scheduler_config, chat_template)


def _make_runner(
    config: EngineConfig,
    loaded: LoadedModel,
    pool: KVPoolSpec,
    buckets: Buckets,
    max_num_seqs: int,
    cache_dir: Path | None,
    on_progress: ProgressCallback,
) -> ModelRunner:
    """The runner with its pool, and a step shape for everything compiled if they are to be."""
    with explained_out_of_memory(
        config, "compiling steps and taking the KV pool", f"lower num_pages, {_SMALLER_STEPS}"
    ):
        runner = ModelRunner(
            loaded,
            loaded.weights,
            loaded.mesh,
            pool=pool,
            buckets=buckets,
            max_num_seqs=max_num_seqs,
            max_model_len=loaded.max_model_len,
            cache_dir=cache_dir,
        )
        if config.compile_ahead:
            runner.compile_ahead(on_progress, everything=config.compile_all)
        runner.allocate()
    return runner


def _engine_info(
    config: EngineConfig, loaded: LoadedModel, scheduler_config: SchedulerConfig, chat_template: str | None
) -> EngineInfo:
    """What front ends are told."""
    tokenizer_dir = None if config.skip_tokenizer_init else str(resolve_model(config.tokenizer or config.model))
    model_config = loaded.config
    return EngineInfo(
        model_name=config.model_name,
        architecture=model_config.architecture,
        dtype=loaded.dtype,
        limits=ModelLimits(
            vocab_size=model_config.vocab_size,
            max_model_len=scheduler_config.max_model_len,
            eos_token_ids=model_config.eos_token_ids,
        ),
        num_parameters=_num_parameters(model_config),
        num_pages=scheduler_config.num_pages - 1,
        page_size=config.page_size,
        max_num_seqs=scheduler_config.max_num_seqs,
        max_num_batched_tokens=scheduler_config.max_num_batched_tokens,
        max_num_queued_requests=config.max_num_queued_requests,
        scheduling_policy=config.scheduling_policy,
        tensor_parallel_size=config.tensor_parallel_size,
        device_kind=loaded.mesh.devices.flat[0].device_kind,
        tokenizer_dir=tokenizer_dir,
        chat_template=chat_template,
        version=jaxserve.__version__,
    )


def _max_model_len(config: EngineConfig, model_config: ModelConfig) -> int:
    limit = model_config.context_length
    if config.max_model_len is not None and config.max_model_len > limit:
        raise ConfigError(
            f"max_model_len is {config.max_model_len}, but the model's positions end at {limit}; lower it, or extend "
            "the context by rope_scaling in config.json"
        )
    return config.max_model_len or limit


def _scheduler_config(
    config: EngineConfig, defaults: PlatformDefaults, max_model_len: int, *, unlimited_queue: bool
) -> SchedulerConfig:
    """What the scheduler is given, checked before anything is loaded; with the fewest pages if they are not set."""
    max_num_seqs = config.max_num_seqs or defaults.max_num_seqs
    return SchedulerConfig(
        num_pages=config.num_pages or 1 - (-max_model_len // config.page_size),
        page_size=config.page_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens or max(defaults.max_num_batched_tokens, max_num_seqs),
        max_model_len=max_model_len,
        max_num_queued_requests=None if unlimited_queue else config.max_num_queued_requests,
        enable_prefix_caching=config.enable_prefix_caching,
        scheduling_policy=config.scheduling_policy,
        seed=config.seed,
    )


def _num_parameters(config: ModelConfig) -> int:
    """Number of weights in the checkpoint, without the copies and padding that a mesh adds."""
    sources = MODEL_FAMILIES[config.architecture].weights(config, 1)
    return sum(math.prod(tensor.shape) for source in sources.values() for tensor in source.tensors)


def _cache_directory(directory: str | None) -> Path | None:
    """Where what is compiled is kept between starts: the user's cache directory unless told otherwise; None if not."""
    if directory == "":
        return None
    if directory is None:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        directory = str(Path(base) / "jaxserve" / "xla")
    # Kernels that XLA gets as text are assembled by the driver, which reads this when it starts.
    os.environ.setdefault("CUDA_CACHE_PATH", str(Path(directory) / "cuda"))
    return Path(directory)
