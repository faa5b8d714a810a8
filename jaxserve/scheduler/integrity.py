"""The invariants that hold between any two calls of the scheduler, for tests and for hunting defects."""

from collections.abc import Iterable, Mapping

from jaxserve.config import SchedulerConfig
from jaxserve.scheduler.batch import Batch
from jaxserve.scheduler.page_allocator import IntegrityError
from jaxserve.scheduler.sequence import Sequence, SequenceState


def check_scheduler(
    config: SchedulerConfig, batch: Batch, waiting: Iterable[Sequence], unfinished: Mapping[str, Sequence]
) -> None:
    """Check slots, pages, queue and prefix table against each other. Costs time linear in all of them.

    Raises:
        IntegrityError: an invariant is violated; the message says which.
    """
    running = batch.running
    queued = list(waiting)
    _require(all(seq.state is SequenceState.RUNNING for seq in running), "a sequence in the batch is not running")
    _require(all(seq.state is SequenceState.WAITING for seq in queued), "a sequence in the queue is not waiting")
    ids = sorted(seq.request_id for seq in (*running, *queued))
    _require(ids == sorted(unfinished), "unfinished requests are not exactly those that run or wait")
    _require(all(a.order < b.order for a, b in zip(running, running[1:], strict=False)), "the batch is out of order")
    slots = sorted([seq.slot for seq in running] + batch.free_slots)
    _require(slots == list(range(config.max_num_seqs)), "the slots are not exactly those free and those taken")
    for seq in running:
        _check_running(config, seq)
    for seq in queued:
        _require(not seq.pages and seq.num_computed == 0, f"request {seq.request_id} waits and holds pages")
    batch.cache.check_integrity([seq.pages for seq in running])


def _check_running(config: SchedulerConfig, seq: Sequence) -> None:
    name = f"request {seq.request_id}"
    known = len(seq.token_ids)
    capacity = len(seq.pages) * config.page_size
    _require(len(set(seq.pages)) == len(seq.pages), f"{name} has a page twice")
    _require(seq.num_computed <= capacity, f"{name} computed {seq.num_computed} tokens in {len(seq.pages)} pages")
    _require(known < seq.max_length, f"{name} reached its length and runs on")
    _require(seq.num_computed < seq.max_length, f"{name} computes more tokens than it may have")
    if not config.reserve_whole_context:
        _require(capacity - seq.num_computed < config.page_size, f"{name} holds a page that it does not use")
    if seq.prefilling:
        _require(seq.num_computed < known, f"{name} has no token left to prefill")
    else:
        _require(seq.num_computed + 1 >= known, f"{name} decodes behind the tokens it knows")
    _require(
        seq.num_registered <= min(seq.num_computed, known) // config.page_size, f"{name} registered a partial page"
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise IntegrityError(message)
