"""One request as the scheduler sees it: its tokens, its pages and how far they are computed."""

from array import array
from enum import Enum

from jaxserve.request import Request, SamplingParams
from jaxserve.step import SlotAssignment


class SequenceState(Enum):
    """Where a sequence stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """The scheduling state of a request.

    A sequence first *prefills* the tokens it knows, in chunks; the last chunk samples one more. It then *decodes*: each
    step computes the token sampled last and samples the next, so `num_computed + 1` is its length, tokens still in
    flight on the device included.

    Attributes:
        order: (priority, number of arrival); the smaller goes first and is preempted last.
        seed: of its sampling; the same after a preemption.
        token_ids: prompt and output as far as known here. An array, which packs for hashing and which the garbage
            collector need not walk through.
        max_length: tokens of prompt and output at which it ends.
        stop_token_ids: ids that end it, the model's own included unless ignored.
        suppress_until: position of the token computed, before which stop ids are held back from sampling.
        slot: its row of the device state; set only while it runs.
        pages: its pages, in order; empty unless it runs.
        num_computed: tokens whose keys and values are computed, steps in flight included.
        plain_until: value of `num_computed` from which a step needs more than counting on: a page, an end, a chunk.
        num_awaited: tokens in flight when it was preempted, without which it cannot resume.
        digests: names of its full pages, as far as they were needed (see prefix_cache).
        num_registered: how many of its pages the prefix cache was offered.
        num_cached_tokens: prompt tokens that the prefix cache gave at first admission.
    """

    __slots__ = (
        "admitted",
        "deadline",
        "digests",
        "max_length",
        "num_awaited",
        "num_cached_tokens",
        "num_computed",
        "num_registered",
        "order",
        "pages",
        "params",
        "plain_until",
        "prefilling",
        "prompt_len",
        "request_id",
        "seed",
        "slot",
        "state",
        "stop_token_ids",
        "suppress_until",
        "suppressed_token_ids",
        "token_ids",
    )

    def __init__(
        self, request: Request, *, order: tuple[int, int], seed: int, eos_token_ids: tuple[int, ...], max_model_len: int
    ) -> None:
        params = request.params
        self.request_id: str = request.request_id
        self.params: SamplingParams = params
        self.order = order
        self.seed = seed
        self.token_ids = array("i", request.prompt_token_ids)
        self.prompt_len = len(self.token_ids)
        self.max_length = max_model_len
        if params.max_tokens is not None:
            self.max_length = min(max_model_len, self.prompt_len + params.max_tokens)
        stops = () if params.ignore_eos else eos_token_ids
        self.suppressed_token_ids = tuple(dict.fromkeys((*stops, *(params.stop_token_ids or ()))))
        self.stop_token_ids = frozenset(self.suppressed_token_ids)
        self.suppress_until = self.prompt_len + params.min_tokens - 1 if self.stop_token_ids else 0
        self.state = SequenceState.WAITING
        self.slot: int
        self.pages: list[int] = []
        self.num_computed = 0
        self.plain_until = 0
        self.prefilling = True
        self.num_awaited = 0
        self.admitted = False
        self.digests: list[bytes] = []
        self.num_registered = 0
        self.num_cached_tokens = 0

    def enter_batch(self, slot: int, pages: list[int], num_computed: int, num_shared: int) -> SlotAssignment:
        """Become running with pages of which the first `num_shared` came from the prefix cache."""
        self.state = SequenceState.RUNNING
        self.slot = slot
        self.pages = pages
        self.num_computed = num_computed
        self.plain_until = num_computed
        self.num_registered = num_shared
        if not self.admitted:
            self.admitted = True
            self.num_cached_tokens = num_computed
        return SlotAssignment(slot, self.params, self.seed, self.suppressed_token_ids)

    def leave_batch(self, state: SequenceState) -> None:
        """Give up slot and pages, which the caller has freed, to wait or for good."""
        if not self.prefilling:
            self.num_awaited = self.num_computed + 1 - len(self.token_ids)
        self.state = state
        self.prefilling = True
        self.num_computed = 0
        self.num_registered = 0
        self.pages = []
        del self.slot
