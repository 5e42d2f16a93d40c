"""What a fuzz leaves behind: how many cases of each kind were tried, and which one was the first to go wrong."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tried:
    """Cases of one kind: how many were tried, how many were wrong, and the first of those with the seed to repeat it.

    `first` is one line, empty if nothing was wrong.
    """

    kind: str
    tried: int
    wrong: int
    first: str


class Tally:
    """Counts by kind."""

    def __init__(self) -> None:
        self._tried: dict[str, int] = {}
        self._wrong: dict[str, list[str]] = {}

    def count(self, kind: str, wrong: str = "") -> None:
        """One more case of a kind; `wrong`, if it was, says what and how to repeat it."""
        self._tried[kind] = self._tried.get(kind, 0) + 1
        if wrong:
            self._wrong.setdefault(kind, []).append(wrong)

    def rows(self) -> list[Tried]:
        """What was counted, by the name of the kind."""
        return [
            Tried(kind, tried, len(wrong := self._wrong.get(kind, [])), wrong[0] if wrong else "")
            for kind, tried in sorted(self._tried.items())
        ]

    def __str__(self) -> str:
        wrong = sum(map(len, self._wrong.values()))
        return f"{sum(self._tried.values())} tried, {wrong} wrong"
