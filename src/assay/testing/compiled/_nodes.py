"""Programs over sequences: what a compiled model computes, said in five words, and an interpreter of them.

After RASP (Weiss et al., Thinking Like Transformers, arXiv 2106.06981): a variable has a value at every position, and
is made of others by selecting positions and reading or counting there, or position by position. Differences: every
variable has a finite domain, a selection is by one key and one query, and of several selected positions the one that
is preferred is read instead of a mean.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal

from assay._errors import AssayError, in_line

Value = Hashable

Predicate = Callable[[Any, Any], bool]
"""Whether a query selects a key: of (key, query)."""


class Node:
    """A variable: a value at every position."""

    inputs: tuple["Node", ...] = ()


@dataclass(frozen=True, eq=False)
class Tokens(Node):
    """The words of the input, which are among `words`."""

    words: tuple[Value, ...]


@dataclass(frozen=True, eq=False)
class Positions(Node):
    """The places of the words, from 0."""


@dataclass(frozen=True, eq=False)
class Aggregate(Node):
    """The value at a selected position, or `default` where none is.

    Of several selected positions the last is read, or with `prefer`, a number for every key, the last of those whose
    key has the largest.
    """

    keys: Node
    queries: Node
    selects: Predicate
    values: Node
    default: Value
    prefer: Callable[[Any], float] | None = None

    @property
    def inputs(self) -> tuple[Node, ...]:  # type: ignore[override]
        """What it is made of."""
        return self.keys, self.queries, self.values


@dataclass(frozen=True, eq=False)
class Count(Node):
    """How many positions are selected, which is never more than `most`."""

    keys: Node
    queries: Node
    selects: Predicate
    most: int

    @property
    def inputs(self) -> tuple[Node, ...]:  # type: ignore[override]
        """What it is made of."""
        return self.keys, self.queries


@dataclass(frozen=True, eq=False)
class Zip(Node):
    """A function of one variable, or of two, position by position."""

    function: Callable[..., Value]
    first: Node
    second: Node | None = None

    @property
    def inputs(self) -> tuple[Node, ...]:  # type: ignore[override]
        """What it is made of."""
        return (self.first,) if self.second is None else (self.first, self.second)


class Nothing:
    """The value of tokens and positions at the start token, which is no word."""


NOTHING = Nothing()

Family = Literal["gpt2", "bert"]
"""The class of a compiled model: "gpt2" selects among this position and those before it, "bert" among all."""


class Program:
    """A variable as a function from inputs to its values, for inputs of at most `length` words.

    `causal`: a position selects only itself and earlier ones. Raises AssayError where there are no words, or those of
    two `Tokens` differ, and for a function, predicate or preference that fails somewhere on its domain, or whose values
    cannot be told apart.
    """

    def __init__(self, output: Node, length: int, *, causal: bool = True) -> None:
        if length < 1:
            raise AssayError(f"length is {length}; a program reads at least 1 word.")
        self.output, self.length, self.causal = output, length, causal
        words = [node.words for node in self.nodes if isinstance(node, Tokens)]
        if not words or not words[0]:
            raise AssayError("the program reads no words; it needs Tokens with at least one.")
        if any(set(one) != set(words[0]) or len(set(one)) < len(one) for one in words):
            raise AssayError("all Tokens of a program must have the same words, each once.")
        self.words = words[0]
        self.domains: dict[Node, tuple[Value, ...]] = {}
        for node in self.nodes:
            self.domains[node] = self._domain(node)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All variables, each after those that it is made of."""
        found: dict[Node, None] = {}

        def add(node: Node) -> None:
            if node not in found:
                for one in node.inputs:
                    add(one)
                found[node] = None

        add(self.output)
        if any(isinstance(node, Aggregate) for node in found) and not any(
            isinstance(node, Positions) for node in found
        ):
            # Which of several selected positions is the last is read off them.
            add(Positions())
        return tuple(found)

    def _domain(self, node: Node) -> tuple[Value, ...]:
        """All values that a variable may have, in a fixed order."""
        if isinstance(node, Tokens):
            return node.words
        if isinstance(node, Positions):
            return tuple(range(self.length))
        if isinstance(node, Aggregate):
            self.selected(node)
            self.preferred(node)
            return tuple(dict.fromkeys((*self.domains[node.values], node.default)))
        if isinstance(node, Count):
            if node.most < 1:
                raise AssayError(f"Count(most={node.most}): must be at least 1.")
            self.selected(node)
            return tuple(range(node.most + 1))
        assert isinstance(node, Zip)
        return tuple(dict.fromkeys(self.cells(node).values()))

    def selected(self, node: Aggregate | Count) -> dict[tuple[Value, Value], bool]:
        """For every (key, query) whether it is selected."""
        keys, queries = self.domains[node.keys], self.domains[node.queries]
        return {pair: bool(_called(node.selects, pair, "predicate")) for pair in product(keys, queries)}

    def preferred(self, node: Aggregate) -> dict[Value, int]:
        """For every key its rank among the preferences, from 0; keys of one preference share it."""
        keys = self.domains[node.keys]
        numbers = [0.0 if node.prefer is None else float(_called(node.prefer, (key,), "preference")) for key in keys]
        order = sorted(set(numbers))
        return {key: order.index(number) for key, number in zip(keys, numbers, strict=True)}

    def cells(self, node: Zip) -> dict[tuple[Value, ...], Value]:
        """The values of a function on all of its domain."""
        found = {}
        for given in product(*(self.domains[one] for one in node.inputs)):
            found[given] = _called(node.function, given, "function")
            try:
                hash(found[given])
            except TypeError:
                raise AssayError(f"a function gives {found[given]!r} of {given!r}; values must be hashable.") from None
        return found

    def check(self, words: Sequence[Value]) -> None:
        """Raise AssayError unless there are 1 to `length` words, all of them known."""
        if not 1 <= len(words) <= self.length:
            raise AssayError(f"{len(words)} words were given; the program reads 1 to {self.length}.")
        unknown = next((word for word in words if word not in self.words), None)
        if unknown is not None:
            raise AssayError(f"{unknown!r} is no word of the program; it has {', '.join(map(repr, self.words))}.")

    def __call__(self, words: Sequence[Value]) -> list[Value]:
        """The output at every word."""
        self.check(words)
        return self.variables(words)[self.output]

    def variables(self, words: Sequence[Value]) -> dict[Node, list[Value]]:
        """The values of all variables at every word, by their meaning alone."""
        found: dict[Node, list[Value]] = {}
        places = range(len(words))
        for node in self.nodes:
            if isinstance(node, Tokens):
                found[node] = list(words)
            elif isinstance(node, Positions):
                found[node] = list(places)
            elif isinstance(node, Zip):
                found[node] = [
                    node.function(*given) for given in zip(*(found[one] for one in node.inputs), strict=True)
                ]
            else:
                assert isinstance(node, Aggregate | Count)
                keys, queries = found[node.keys], found[node.queries]
                chosen = [
                    [here for here in places if (here <= place or not self.causal) and node.selects(keys[here], query)]
                    for place, query in enumerate(queries)
                ]
                if isinstance(node, Count):
                    found[node] = list(map(len, chosen))
                    if max(found[node]) > node.most:  # type: ignore[type-var, operator]
                        raise AssayError(f"a Count(most={node.most}) counts {max(map(len, chosen))} of {words!r}.")
                else:
                    prefer = node.prefer or (lambda key: 0)
                    best = [max(some, key=lambda here: (prefer(keys[here]), here), default=None) for some in chosen]
                    values = found[node.values]
                    found[node] = [node.default if here is None else values[here] for here in best]
        return found

    def at_start(self) -> dict[Node, Value | Nothing]:
        """What every variable is at the start token, which selects nothing but itself: a constant, or nothing."""
        found: dict[Node, Value | Nothing] = {}
        for node in self.nodes:
            if isinstance(node, Tokens | Positions):
                found[node] = NOTHING
            elif isinstance(node, Aggregate):
                found[node] = node.default
            elif isinstance(node, Count):
                found[node] = 0
            else:
                assert isinstance(node, Zip)
                given = [found[one] for one in node.inputs]
                found[node] = NOTHING if NOTHING in given else node.function(*given)
        return found


def _called(function: Callable[..., Any], given: tuple[Value, ...], what: str) -> Any:
    try:
        return function(*given)
    except Exception as error:
        raise AssayError(
            f"a {what} fails on {', '.join(map(repr, given))} ({in_line(error)}); it must be defined on all of its "
            "domain."
        ) from error
