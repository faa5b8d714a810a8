"""Progress of long work: a callback that the worker calls, and a bar for people who watch."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# (what is being done, how much of it is done, how much there is). Called from one thread at a time.
ProgressCallback = Callable[[str, int, int], None]
# How often work is told of where there is no terminal.
SECONDS_A_LINE = 10.0


def no_progress(what: str, done: int, total: int) -> None:
    """Report to nobody."""


@contextmanager
def progress_bars() -> Iterator[ProgressCallback]:
    """Bars on standard error, one for each kind of work; now and then a plain line where it is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield _as_lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as bars:

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield report


def _as_lines(clock: Callable[[], float] = time.monotonic) -> ProgressCallback:
    """A line when work begins, one every SECONDS_A_LINE while it goes on, and one when it is done."""
    begun: dict[str, float] = {}
    told: dict[str, float] = {}

    def report(what: str, done: int, total: int) -> None:
        now = clock()
        if what not in begun:
            begun[what] = told[what] = now
            print(f"{what}: 0 of {total}", file=sys.stderr, flush=True)
        # What was done is told once.
        if done == total and told[what] != float("inf"):
            told[what] = float("inf")
        elif now - told[what] >= SECONDS_A_LINE:
            told[what] = now
        else:
            return
        print(f"{what}: {done} of {total} after {now - begun[what]:.1f} s", file=sys.stderr, flush=True)

    return report
