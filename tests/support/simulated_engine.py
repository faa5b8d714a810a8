"""An engine on the runner of arithmetic: in a thread of the test, or (`python -m`) as the server's engine process.

As a process, `EngineConfig.model` is the directory of its tokenizer, and `served_model_name` may ask for a fault:
`slow` takes 50 ms a step, `failing` fails at its 5th step, `hanging` never ends its 5th, `broken` does not load.
"""

import contextlib
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxserve.config import EngineConfig, SchedulerConfig
from jaxserve.engine.core import EngineCore
from jaxserve.engine.messages import EngineInfo
from jaxserve.engine.process import main
from jaxserve.engine.transport_loop import EngineLoop, listen
from jaxserve.errors import CheckpointError
from jaxserve.request import ModelLimits, RequestUpdate
from jaxserve.scheduler.scheduler import Scheduler
from jaxserve.step import Runner, StepHandle, StepPlan
from tests.support.ascii_tokenizer import EOS, VOCAB_SIZE
from tests.support.simulated_runner import SimulatedRunner

SCHEDULER_CONFIG = SchedulerConfig(
    num_pages=65, page_size=4, max_num_seqs=4, max_num_batched_tokens=32, max_model_len=128, max_num_queued_requests=16
)


def simulated_core(
    config: SchedulerConfig = SCHEDULER_CONFIG, runner: Runner | None = None, **runner_settings: object
) -> "ObservedCore":
    """A core on the runner given, or on a SimulatedRunner with these settings."""
    if runner is None:
        runner = SimulatedRunner(
            config.num_pages,
            config.page_size,
            config.max_num_seqs,
            VOCAB_SIZE,
            **runner_settings,  # type: ignore[arg-type]
        )
    return ObservedCore(Scheduler(config, (EOS,)), runner)


def engine_info(
    config: SchedulerConfig = SCHEDULER_CONFIG, tokenizer_dir: Path | None = None, chat_template: str | None = None
) -> EngineInfo:
    """What a simulated engine says of itself."""
    return EngineInfo(
        model_name="arithmetic",
        architecture="ArithmeticForCausalLM",
        dtype="int32",
        limits=ModelLimits(vocab_size=VOCAB_SIZE, max_model_len=config.max_model_len, eos_token_ids=(EOS,)),
        num_parameters=31,
        num_pages=config.num_pages - 1,
        page_size=config.page_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_num_queued_requests=config.max_num_queued_requests,
        scheduling_policy=config.scheduling_policy,
        tokenizer_dir=None if tokenizer_dir is None else str(tokenizer_dir),
        chat_template=chat_template,
    )


class ObservedCore(EngineCore):
    """Checks the scheduler's integrity after every step, and keeps the pages in use after each.

    Attributes:
        used_pages: pages in use after each step.
        aborts: for each abort that named a request, the number of steps before it.
    """

    def __init__(self, scheduler: Scheduler, runner: Runner) -> None:
        super().__init__(scheduler, runner)
        self.used_pages: list[int] = []
        self.aborts: list[int] = []

    def abort_requests(self, request_ids: Iterable[str]) -> None:
        """As EngineCore."""
        request_ids = list(request_ids)
        if request_ids:
            self.aborts.append(len(self.used_pages))
        super().abort_requests(request_ids)

    def step(self) -> list[RequestUpdate]:
        """As EngineCore."""
        updates = super().step()
        self.scheduler.check_integrity()
        self.used_pages.append(self.stats().num_used_pages)
        return updates


class GatedRunner:
    """Lets the device finish a step only when the test says so.

    Args:
        inner: computes the tokens.
    """

    def __init__(self, inner: Runner) -> None:
        self._inner = inner
        self._permits = threading.Semaphore(0)
        self._open = threading.Event()
        self.num_collecting = 0

    def allow(self, steps: int) -> None:
        """Let so many more steps finish."""
        for _ in range(steps):
            self._permits.release()

    def open(self) -> None:
        """Let all steps finish from now on."""
        self._open.set()
        self._permits.release()

    def dispatch(self, plan: StepPlan) -> StepHandle:
        """As Runner."""
        return self._inner.dispatch(plan)

    def collect(self, handle: StepHandle) -> list[int]:
        """As Runner, once it is allowed."""
        self.num_collecting += 1
        if not self._open.is_set():
            self._permits.acquire()
        return self._inner.collect(handle)


@contextlib.contextmanager
def engine_thread(core: EngineCore, info: EngineInfo, endpoint: str | None = None) -> Iterator[str]:
    """Run an EngineLoop over a real socket in a thread; gives its endpoint."""
    with tempfile.TemporaryDirectory(prefix="jaxserve-test-") as directory:
        endpoint = endpoint or f"ipc://{directory}/engine"
        loop = EngineLoop(core, listen(endpoint), info)
        stop = threading.Event()

        def run() -> None:
            # The front ends are told of a failure; a traceback on the test's output would add nothing.
            with contextlib.suppress(Exception):
                loop.run(stop)

        thread = threading.Thread(target=run, name="engine")
        thread.start()
        try:
            yield endpoint
        finally:
            stop.set()
            thread.join(20)
            assert not thread.is_alive(), "the engine's loop did not stop"


def build_core(config: EngineConfig) -> tuple[EngineCore, EngineInfo]:
    """In place of `jaxserve.engine.build.build_core`."""
    fault = config.served_model_name
    if fault == "broken":
        raise CheckpointError(f"{config.model}/config.json: no such file")
    core = simulated_core(
        step_delay=0.05 if fault == "slow" else 0.0,
        fail_at_step=4 if fault == "failing" else None,
        hang_at_step=4 if fault == "hanging" else None,
    )
    core.step_timeout_s = config.step_timeout_s
    return core, engine_info(tokenizer_dir=Path(config.model))


if __name__ == "__main__":
    sys.exit(main(build_core))
