"""Settings, as frozen dataclasses: checked once when made, never changed afterwards.

Names are vLLM's wherever the meaning is the same. What depends on the model or the device (the number of pages, the
end tokens) is computed at start and passed on, never written back here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxserve.errors import ConfigError

DType = Literal["auto", "float32", "bfloat16", "float16"]
LoadFormat = Literal["auto", "safetensors", "orbax", "dummy"]
SchedulingPolicy = Literal["fcfs", "priority"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """What the scheduler is given.

    Attributes:
        num_pages: pages of the pool, page 0 (never handed out) included.
        page_size: tokens a page.
        max_num_seqs: most sequences in one step, and the number of slots.
        max_num_batched_tokens: the token budget of one step, prefill chunks and decodes together.
        max_model_len: most tokens of prompt and output together.
        max_num_queued_requests: most waiting requests; one more is refused with QueueFullError. None is no limit.
        enable_prefix_caching: share full pages between requests with the same prefix.
        scheduling_policy: `fcfs` ignores priorities, `priority` runs lower values first.
        batching: `static` starts a batch only when the last one has ended wholly. For measurement only.
        reserve_whole_context: give each request pages for its whole context at once. For measurement only.
        seed: of the seeds drawn for requests that bring none.
    """

    num_pages: int
    page_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 4096
    max_num_queued_requests: int | None = None
    enable_prefix_caching: bool = True
    scheduling_policy: SchedulingPolicy = "fcfs"
    batching: Literal["continuous", "static"] = "continuous"
    reserve_whole_context: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.page_size >= 1, f"page_size must be at least 1, got {self.page_size}")
        _require(self.max_num_seqs >= 1, f"max_num_seqs must be at least 1, got {self.max_num_seqs}")
        _require(
            self.max_num_batched_tokens >= self.max_num_seqs,
            f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
            f"({self.max_num_seqs}), so that every running sequence can take a step",
        )
        pages = -(-self.max_model_len // self.page_size)
        _require(
            self.num_pages - 1 >= pages,
            f"the KV pool of {self.num_pages - 1} pages of {self.page_size} tokens cannot hold one sequence of "
            f"max_model_len={self.max_model_len}; lower max_model_len or give the pool more memory "
            "(gpu_memory_utilization, num_pages)",
        )


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What the engine is started with.

    Attributes:
        model: a local Hugging Face or Orbax directory; `demo` is the bundled model.
        tokenizer: a directory with the tokenizer, if not the model's.
        chat_template: the path of a Jinja template, or `baichuan`, `internlm`, `qwen` or `vicuna` for chat models that
            came without one; the tokenizer's own if None.
        served_model_name: the name clients call the model by; the directory's own name if None.
        dtype: of weights and KV cache. `auto` is the checkpoint's on a GPU and float32 on a CPU.
        max_model_len: most tokens of prompt and output together; the checkpoint's own limit if None.
        tensor_parallel_size: devices that each hold a part of every layer.
        gpu_memory_utilization: fraction of each GPU's memory that weights, step and KV pool may take together.
        num_pages: pages of the KV pool; sized from the free memory if None.
        page_size: tokens a page.
        max_num_seqs: most sequences in one step (1024 on a GPU, 32 on a CPU if None).
        max_num_batched_tokens: token budget of one step (8192 on a GPU, 512 on a CPU if None).
        max_num_queued_requests: admission limit on waiting requests; None is no limit.
        enable_prefix_caching: share the pages of common prefixes.
        scheduling_policy: `fcfs`, or `priority` (lower values first).
        load_format: `auto` takes what the directory holds; `dummy` makes random weights of the config's shapes.
        skip_tokenizer_init: load no tokenizer: prompts must be token ids, answers are token ids.
        seed: of everything drawn at random.
        compile_ahead: compile a few step shapes, in one of which any step can run, before serving, and those that fit
            closer in the background, first those that steps ask for; False compiles each at its first use.
        compile_all: compile all shapes before serving, so that nothing is compiled beside steps: minutes on a GPU when
            nothing is kept from an earlier start.
        step_timeout_s: seconds after which a server takes a step that has not ended for hung, and exits (60 on a GPU,
            never on a CPU if None).
        compilation_cache_dir: where compiled steps are kept between starts; the user's cache directory if None, and
            no cache if empty.
    """

    model: str
    tokenizer: str | None = None
    chat_template: str | None = None
    served_model_name: str | None = None
    dtype: DType = "auto"
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    num_pages: int | None = None
    page_size: int = 16
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_queued_requests: int | None = 1024
    enable_prefix_caching: bool = True
    scheduling_policy: SchedulingPolicy = "fcfs"
    load_format: LoadFormat = "auto"
    skip_tokenizer_init: bool = False
    seed: int = 0
    compile_ahead: bool = True
    compile_all: bool = False
    step_timeout_s: float | None = None
    compilation_cache_dir: str | None = None

    def __post_init__(self) -> None:
        _require(bool(self.model), "model must name a local directory, or `demo` for the bundled model")
        _require(
            self.dtype in ("auto", "float32", "bfloat16", "float16"),
            f"dtype must be auto, float32, bfloat16 or float16, got {self.dtype!r}",
        )
        _require(
            self.load_format in ("auto", "safetensors", "orbax", "dummy"),
            f"load_format must be auto, safetensors, orbax or dummy, got {self.load_format!r}",
        )
        _require(
            self.scheduling_policy in ("fcfs", "priority"),
            f"scheduling_policy must be fcfs or priority, got {self.scheduling_policy!r}",
        )
        _require(
            0.0 < self.gpu_memory_utilization <= 1.0,
            f"gpu_memory_utilization must be above 0 and at most 1, got {self.gpu_memory_utilization}",
        )
        _require(
            self.step_timeout_s is None or self.step_timeout_s > 0,
            f"step_timeout_s must be above 0 seconds, got {self.step_timeout_s}",
        )
        _require(
            self.compile_ahead or not self.compile_all,
            "compile_all wants every shape compiled before serving, and compile_ahead=False none; give one of them",
        )
        for name in ("max_model_len", "tensor_parallel_size", "num_pages", "page_size", "max_num_seqs"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        for name in ("max_num_batched_tokens", "max_num_queued_requests"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} must be at least 1, got {value}")

    @property
    def model_name(self) -> str:
        """The name clients call the model by."""
        return self.served_model_name or Path(self.model).name


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What the gRPC front end is started with.

    Attributes:
        host: address to listen on. The default is reachable from this machine only.
        port: 0 takes a free one.
        num_front_ends: processes that answer calls on the port; more where one cannot pass on all tokens in time.
        max_message_bytes: largest message accepted or sent.
        reflection: answer server reflection.
        drain_timeout: seconds that requests in flight get to finish at shutdown.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    num_front_ends: int = 1
    max_message_bytes: int = 16 * 1024 * 1024
    reflection: bool = True
    drain_timeout: float = 30.0

    def __post_init__(self) -> None:
        _require(0 <= self.port <= 65535, f"port must be from 0 to 65535, got {self.port}")
        _require(self.num_front_ends >= 1, f"num_front_ends must be at least 1, got {self.num_front_ends}")
        _require(
            self.max_message_bytes >= 1024, f"max_message_bytes must be at least 1024, got {self.max_message_bytes}"
        )
        _require(self.drain_timeout >= 0, f"drain_timeout must be at least 0 seconds, got {self.drain_timeout}")
