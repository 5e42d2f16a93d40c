"""Programs that are known from the literature on what Transformers compute, ready to be compiled."""

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

from assay._errors import unknown_name
from assay.testing.compiled._nodes import Aggregate, Count, Family, Node, Positions, Tokens, Value, Zip

NONE = "none"


class Known(NamedTuple):
    """A program as it is compiled if nothing else is said: its output, the longest input, and the class of model."""

    output: Node
    length: int
    family: Family


def _letters(count: int) -> Tokens:
    return Tokens(tuple("abcdefgh"[:count]))


def _same(key: Value, query: Value) -> bool:
    return key == query


def _any(key: Value, query: Value) -> bool:
    return True


def induction(length: int = 7, words: int = 3) -> Node:
    """What followed the latest earlier occurrence of this word, else "none"."""
    now = _letters(words)
    before = Aggregate(Positions(), Positions(), lambda key, query: key == query - 1, now, NONE)
    return Aggregate(before, now, _same, now, NONE)


def own_count(length: int = 7, words: int = 3) -> Node:
    """How often this word has come so far."""
    now = _letters(words)
    return Count(now, now, _same, length)


def maximum(length: int = 6, words: int = 4) -> Node:
    """The largest word so far."""
    now = _letters(words)
    return Aggregate(now, now, _any, now, NONE, prefer=ord)


def dyck1(length: int = 10, words: int = 2) -> Node:
    """Of brackets so far: "closed" where all are, "open" where they can be closed yet, "wrong" where they cannot."""
    now = Tokens(("(", ")"))
    opened = Count(now, now, lambda key, query: key == "(", length)
    closed = Count(now, now, lambda key, query: key == ")", length)
    sign = Zip(lambda up, down: (up > down) - (up < down), opened, closed)
    worst = Aggregate(sign, sign, lambda key, query: key == -1, sign, 0)
    tags = {1: "open", 0: "closed", -1: "wrong"}
    return Zip(lambda now, worst: "wrong" if worst == -1 else tags[now], sign, worst)


def sort_behind(length: int = 9, words: int = 4) -> Node:
    """Letters, a bar, blanks: at the bar and every blank behind it the next smallest letter, else "none"."""
    letters = "abcdefgh"[:words]
    now = Tokens((*letters, "|", "_"))
    asked = Count(now, now, lambda key, query: key in "|_", length)

    def fewer(top: str) -> Node:
        """1 where the letters up to one are fewer than the places asked for so far, else 0."""
        count = Count(now, now, lambda key, query: key in letters and key <= top, length)
        return Zip(lambda count, place: int(count < place), count, asked)

    rank: Node = reduce(lambda one, two: Zip(lambda a, b: a + b, one, two), map(fewer, letters))
    return Zip(lambda rank, place: letters[rank] if place and rank < len(letters) else NONE, rank, asked)


def reverse(length: int = 6, words: int = 3) -> Node:
    """The word as far from the end as this one is from the start."""
    now, place = _letters(words), Positions()
    number = Count(now, now, _any, length)
    opposite = Zip(lambda number, place: number - 1 - place, number, place)
    return Aggregate(place, opposite, _same, now, NONE)


def histogram(length: int = 6, words: int = 3) -> Node:
    """How often this word is in the whole input."""
    return own_count(length, words)


def sort_by_ranks(length: int = 6, words: int = 3) -> Node:
    """The words in their order: at each place the word whose rank, by word and then by place, it is."""
    now, place = _letters(words), Positions()
    both = Zip(lambda word, place: (word, place), now, place)
    rank = Count(both, both, lambda key, query: key < query, length)
    return Aggregate(rank, place, _same, now, NONE)


_KNOWN: dict[str, tuple[Callable[[int, int], Node], int, int, Family]] = {
    "induction": (induction, 7, 3, "gpt2"),
    "own-count": (own_count, 7, 3, "gpt2"),
    "maximum": (maximum, 6, 4, "gpt2"),
    "dyck1": (dyck1, 10, 2, "gpt2"),
    "sort-behind": (sort_behind, 9, 4, "gpt2"),
    "reverse": (reverse, 6, 3, "bert"),
    "histogram": (histogram, 6, 3, "bert"),
    "sort-by-ranks": (sort_by_ranks, 6, 3, "bert"),
}

KNOWN_PROGRAMS = tuple(_KNOWN)
"""Names of the programs that `known_program` gives."""


def known_program(name: str, *, length: int | None = None, words: int | None = None) -> Known:
    """A program by its name, for inputs of so many words out of so many (default: as in the documentation).

    Raises AssayError for an unknown name.
    """
    if name not in _KNOWN:
        raise unknown_name("program", name, _KNOWN)
    make, longest, several, family = _KNOWN[name]
    longest = longest if length is None else length
    return Known(make(longest, several if words is None else words), longest, family)
