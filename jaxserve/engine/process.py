"""The engine's process: `python -m jaxserve.engine.process`, started by a front end (`jaxserve.engine.launch`).

Its standard input brings one line of JSON (ProcessSettings) and is then held open by the parent: when it ends, the
parent is gone or wants the engine to stop.
"""

import gc
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable

import msgspec

from jaxserve.config import EngineConfig
from jaxserve.engine.core import EngineCore
from jaxserve.engine.messages import EngineInfo
from jaxserve.engine.transport_loop import EngineLoop, listen
from jaxserve.engine.watchdog import StepWatchdog
from jaxserve.errors import JaxserveError
from jaxserve.progress import progress_bars

logger = logging.getLogger(__name__)

BuildCore = Callable[[EngineConfig], tuple[EngineCore, EngineInfo]]

# How long the loop may take to notice that it should stop, for instance inside a compilation.
STOP_GRACE_S = 5.0
STDIN = 0


class ProcessSettings(msgspec.Struct):
    """What the engine's process is told: what to serve, and the ZeroMQ endpoint to bind."""

    config: EngineConfig
    endpoint: str


def _stop_when_parent_ends(stop: threading.Event) -> None:
    # Not through sys.stdin, whose lock the interpreter wants when it ends.
    while os.read(STDIN, 4096):
        pass
    stop.set()
    threading.Event().wait(STOP_GRACE_S)
    # Still here: the main thread is inside a load or compilation that cannot be interrupted and serves nobody now.
    os._exit(1)


def _build_with_progress(config: EngineConfig) -> tuple[EngineCore, EngineInfo]:
    from jaxserve.engine.build import build_core

    with progress_bars() as report:
        return build_core(config, report)


def main(build: BuildCore | None = None) -> int:
    """Load the model, serve until standard input ends, and return the exit code.

    Args:
        build: makes the core; that of `jaxserve.engine.build`, on the real runner, if None.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s engine: %(message)s")
    # It tells of every kind of accelerator that this machine does not have.
    logging.getLogger("jax").setLevel(logging.WARNING)
    settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=ProcessSettings)
    stop = threading.Event()
    threading.Thread(target=_stop_when_parent_ends, args=(stop,), daemon=True, name="parent-watch").start()

    socket = listen(settings.endpoint)
    try:
        core, info = (build or _build_with_progress)(settings.config)
    except JaxserveError as error:
        print(f"jaxserve: error: {error}", file=sys.stderr, flush=True)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    # What was loaded stays: the garbage collector need not walk through it between steps.
    gc.collect()
    gc.freeze()
    if core.step_timeout_s is not None:
        core.while_waiting = StepWatchdog(core.step_timeout_s)
    try:
        EngineLoop(core, socket, info).run(stop)
    except Exception:
        logger.critical("the engine failed and exits:\n%s", traceback.format_exc())
        return 1
    if not core.close():
        # Inside a compilation that cannot be interrupted. The interpreter must not be taken apart under it.
        logging.shutdown()
        os._exit(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
