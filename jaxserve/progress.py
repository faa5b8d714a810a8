"""Progress of long work: a callback that the worker calls, and a bar for people who watch."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# (what is being done, how much of it is done, how much there is). Called from one thread at a time.
ProgressCallback = Callable[[str, int, int], None]


def no_progress(what: str, done: int, total: int) -> None:
    """Report to nobody."""


@contextmanager
def progress_bars() -> Iterator[ProgressCallback]:
    """Bars on standard error, one for each kind of work; plain lines at the start and end where it is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield _ends_as_lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as bars:

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield report


def _ends_as_lines() -> ProgressCallback:
    begun: set[str] = set()

    def report(what: str, done: int, total: int) -> None:
        if what not in begun:
            begun.add(what)
            print(f"{what}: 0 of {total}", file=sys.stderr, flush=True)
        if done == total:
            print(f"{what}: {total} of {total}", file=sys.stderr, flush=True)

    return report
