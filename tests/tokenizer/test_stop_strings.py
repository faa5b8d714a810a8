"""Stop strings against a search of the whole text."""

from hypothesis import given
from hypothesis import strategies as st

from jaxserve.tokenizer.stop_strings import StopStringFinder

STOPS = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4)


def first_stop(text: str, stops: list[str]) -> tuple[int, str] | None:
    """End and string of the stop that is complete first, the longest of those; by looking at every end."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return end, max(found, key=len)
    return None


@given(st.lists(st.text("abc", max_size=6), max_size=8), STOPS)
def test_finds_what_a_search_of_the_whole_text_finds(pieces: list[str], stops: list[str]) -> None:
    finder = StopStringFinder(stops)
    text, shown = "".join(pieces), ""
    expected = first_stop(text, stops)
    for piece in pieces:
        part, stop = finder.feed(piece)
        shown += part
        if stop is not None:
            assert expected is not None
            assert (shown, stop) == (text[: expected[0] - len(stop)], expected[1])
            return
    assert expected is None
    assert shown + finder.flush() == text


@given(st.lists(st.text("abc", max_size=6), max_size=8), STOPS)
def test_holds_back_exactly_what_could_begin_a_stop_string(pieces: list[str], stops: list[str]) -> None:
    finder = StopStringFinder(stops)
    text, shown = "", ""
    for piece in pieces:
        text += piece
        part, stop = finder.feed(piece)
        if stop is not None:
            return
        shown += part
        beginnings = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
        assert len(text) - len(shown) == max(beginnings, default=0)


def test_a_stop_string_inside_a_longer_one_wins_since_it_is_complete_first() -> None:
    assert StopStringFinder(["abcd", "bc"]).feed("xabcd") == ("xa", "bc")


def test_of_two_that_end_together_the_longer_one_hides_more_text() -> None:
    assert StopStringFinder(["bc", "abc"]).feed("xabc") == ("x", "abc")


def test_text_resumes_after_a_false_beginning() -> None:
    finder = StopStringFinder(["aab"])
    assert finder.feed("aa") == ("", None)
    assert finder.feed("a") == ("a", None)
    assert finder.feed("c") == ("aac", None)
    assert finder.flush() == ""
