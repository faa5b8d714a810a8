"""Progress where there is no terminal: lines that say how far long work is, and how long it took."""

import pytest

from jaxserve import progress


def test_lines_tell_of_the_beginning_of_now_and_then_and_of_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([100.0, 103.0, 111.0, 112.0, 125.5, 126.0])
    report = progress._as_lines(clock=lambda: next(times))
    for done in (0, 1, 2, 3, 4, 4):
        report("Compiling", done, 4)
    assert capsys.readouterr().err.splitlines() == [
        "Compiling: 0 of 4",
        "Compiling: 2 of 4 after 11.0 s",
        "Compiling: 4 of 4 after 25.5 s",
    ]


def test_kinds_of_work_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress_bars() as report:
        report("Loading", 0, 2)
        report("Compiling", 0, 3)
        report("Loading", 2, 2)
        report("Compiling", 3, 3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["Loading: 0 of 2", "Compiling: 0 of 3"]
    assert [line.split(" after ")[0] for line in lines[2:]] == ["Loading: 2 of 2", "Compiling: 3 of 3"]
