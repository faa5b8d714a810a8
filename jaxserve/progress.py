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
        yield _print_ends
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as bars:

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield report


def _print_ends(what: str, done: int, total: int) -> None:
    if done in (0, total):
        state = "done" if done == total else "..."
        print(f"{what}: {total} {state}", file=sys.stderr, flush=True)
