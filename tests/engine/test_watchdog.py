"""StepWatchdog: waits that last too long are reported once, others never."""

import threading
import time

from jaxserve.engine.watchdog import StepWatchdog
from jaxserve.request import Request, SamplingParams
from tests.support.simulated_engine import simulated_core


def test_a_wait_over_the_limit_is_reported_once_with_the_limit() -> None:
    reported: list[float] = []
    over = threading.Event()

    def report(limit: float) -> None:
        reported.append(limit)
        over.set()

    watchdog = StepWatchdog(0.05, report)
    with watchdog:
        assert over.wait(20)
        time.sleep(0.2)
    assert reported == [0.05]


def test_neither_many_short_waits_nor_idleness_is_reported() -> None:
    """Each alone is far below the limit; together they are above it."""
    reported: list[float] = []
    watchdog = StepWatchdog(1.0, reported.append)
    for _ in range(20):
        with watchdog:
            time.sleep(0.04)
        time.sleep(0.04)
    time.sleep(1.0)
    watchdog.close()
    assert reported == []


def test_the_core_says_when_it_waits_for_a_step() -> None:
    core = simulated_core(hang_at_step=2)
    over = threading.Event()
    core.while_waiting = StepWatchdog(0.05, lambda limit: over.set())
    params = SamplingParams(max_tokens=9, temperature=0, ignore_eos=True)
    core.add_request(Request(request_id="r", prompt_token_ids=[5, 6], params=params))
    threading.Thread(target=lambda: [core.step() for _ in range(6)], daemon=True).start()
    assert over.wait(20)
