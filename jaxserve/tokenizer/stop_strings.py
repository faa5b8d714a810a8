"""StopStringFinder: watches text as it comes for the first stop string."""

from collections.abc import Sequence


class StopStringFinder:
    """Finds stop strings however the text is cut into pieces, with one step of an automaton a character.

    The string that is complete first ends the text; of several that are complete at the same character, the longest.
    Text that could be the beginning of a stop string is held back until it is known not to be.

    This is Aho and Corasick's automaton (1975): a state is the longest beginning of any stop string that the text ends
    with, so its depth is also how much must be held back.

    Args:
        stops: non-empty strings.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._found: list[str | None] = [None]  # the longest stop string that ends in this state
        for stop in stops:
            self._insert(stop)
        self._fallback = [0] * len(self._next)
        self._link()
        self._state = 0
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """Take the next piece of text.

        Returns:
            The text that can be shown now, and the stop string found, if one was. The text then ends before it; what
            follows it is dropped.
        """
        base = len(self._held)
        state = self._state
        for i, char in enumerate(text):
            while state and char not in self._next[state]:
                state = self._fallback[state]
            state = self._next[state].get(char, 0)
            stop = self._found[state]
            if stop is not None:
                shown = (self._held + text)[: base + i + 1 - len(stop)]
                self._state, self._held = 0, ""
                return shown, stop
        self._state = state
        text = self._held + text
        cut = len(text) - self._depth[state]
        self._held = text[cut:]
        return text[:cut], None

    def flush(self) -> str:
        """The text still held back: no more comes, so it is no stop string."""
        held, self._held, self._state = self._held, "", 0
        return held

    def _insert(self, stop: str) -> None:
        state = 0
        for char in stop:
            if char not in self._next[state]:
                self._next[state][char] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[state] + 1)
                self._found.append(None)
            state = self._next[state][char]
        self._found[state] = stop

    def _link(self) -> None:
        # Breadth first, so that a state's fallback, which is shallower, is complete before the state itself.
        order = list(self._next[0].values())
        for state in order:
            for char, child in self._next[state].items():
                order.append(child)
                fallback = self._fallback[state]
                while fallback and char not in self._next[fallback]:
                    fallback = self._fallback[fallback]
                self._fallback[child] = self._next[fallback].get(char, 0)
                if self._found[child] is None:
                    self._found[child] = self._found[self._fallback[child]]
