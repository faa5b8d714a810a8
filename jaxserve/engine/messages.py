"""What front ends and the engine say to each other over ZeroMQ: tagged msgspec structs, in msgpack.

A front end numbers its submissions; the number (`tag`) comes back with every update. Request ids alone would not do:
an id may be used again while updates of its aborted predecessor are still under way.
"""

import msgspec

from jaxserve.request import ModelLimits, Request, RequestUpdate
from jaxserve.scheduler.scheduler import SchedulerStats


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a front end must know of a loaded engine.

    Attributes:
        model_name: the name clients call the model by.
        architecture: as config.json names it.
        dtype: of weights and KV cache.
        limits: what requests are validated against.
        num_parameters: number of weights.
        num_pages: pages that requests can have (the reserved page 0 not counted).
        page_size: tokens a page.
        max_num_seqs: most sequences in one step.
        max_num_batched_tokens: most tokens in one step.
        max_num_queued_requests: admission limit on waiting requests; None is no limit.
        scheduling_policy: `fcfs` or `priority`.
        tensor_parallel_size: devices that each hold a part of every layer.
        device_kind: as JAX names it.
        tokenizer_dir: directory to load the tokenizer from; None serves token ids only.
        chat_template: a built-in format's name or a template's path; the tokenizer's own if None.
        version: of jaxserve.
    """

    model_name: str
    architecture: str
    dtype: str
    limits: ModelLimits
    num_parameters: int
    num_pages: int
    page_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_num_queued_requests: int | None = None
    scheduling_policy: str = "fcfs"
    tensor_parallel_size: int = 1
    device_kind: str = "cpu"
    tokenizer_dir: str | None = None
    chat_template: str | None = None
    version: str = "0"


class Hello(msgspec.Struct, tag=True):
    """A front end presents itself; the engine answers EngineReady."""


class AddRequest(msgspec.Struct, tag=True):
    """Submit a request under a number of the front end's own."""

    tag: int
    request: Request


class AbortRequests(msgspec.Struct, tag=True):
    """End these submissions and free their pages; unknown and ended ones are passed over."""

    tags: list[int]


class GetStats(msgspec.Struct, tag=True):
    """Ask for Stats with the same number."""

    tag: int


ToEngine = Hello | AddRequest | AbortRequests | GetStats


class EngineReady(msgspec.Struct, tag=True):
    """The engine takes requests."""

    info: EngineInfo


class StepUpdates(msgspec.Struct, tag=True):
    """What one step did for this front end's requests; tags[i] is the submission of updates[i]."""

    tags: list[int]
    updates: list[RequestUpdate]


class QueueFull(msgspec.Struct, tag=True):
    """A submission was refused by the admission limit; retry_after is in seconds."""

    tag: int
    limit: int
    retry_after: float


class Duplicate(msgspec.Struct, tag=True):
    """A submission was refused because its request id is in flight already."""

    tag: int
    message: str


class Rejected(msgspec.Struct, tag=True):
    """A submission was refused because one of its fields can never work."""

    tag: int
    field: str
    description: str


class Stats(msgspec.Struct, tag=True):
    """The answer to GetStats."""

    tag: int
    stats: SchedulerStats


class EngineFailed(msgspec.Struct, tag=True):
    """The engine is about to exit; no request will get another update."""

    message: str


FromEngine = EngineReady | StepUpdates | QueueFull | Duplicate | Rejected | Stats | EngineFailed
