"""From a program to the weights of a Transformer that computes it.

Notable: every variable is a one-hot code in coordinates of its own, and one more coordinate holds minus the sum of all
others, so that every vector has mean 0; with an epsilon of 1e12 and weights of 1e6 the layer norms are then the
identity to 1e-12. Nobody reads that coordinate.

A head that selects (`Aggregate`): keys are codes, the query of a value has `sure` at every key that it selects, so that
attention is at a selected position; one more dimension makes the start token better than all that is not selected, one
the later positions (and the preferred keys) better than others, by `STEP` each. At the start token keys and values are
emptied by taking off the constant that is there, and its value is the default. A head that counts: the start token
counts as one match, and the share of attention that it gets, 1 / (1 + count), is turned into a code by thresholds in
the MLP behind. A function: one neuron a pair of values, which is on if both are there.

The construction of counts by a start token, and of functions by one neuron a cell, is that of Tracr (Lindner et al.,
arXiv 2301.05062), which compiles to a model of its own; that of preferences, balance and defaults is our own.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from assay._errors import AssayError
from assay.testing.compiled._nodes import (
    NOTHING,
    Aggregate,
    Count,
    Node,
    Positions,
    Program,
    Tokens,
    Value,
    Zip,
)

STEP = 30.0
"""Attention scores that decide differ by this at least: what is not meant gets e^-30 of the attention."""

WIDEST, MOST_NEURONS = 4_096, 100_000
"""Width of a stream, and neurons of a layer, above which a program is refused: domains multiply."""

Matrix = Float[np.ndarray, "_ _"]


@dataclass
class HeadWeights:
    """A head: what its queries, keys and values read of the stream, and what it writes; the query's constant part."""

    queries: Matrix
    keys: Matrix
    values: Matrix
    writes: Matrix
    constant: Float[np.ndarray, " _"]


@dataclass
class MLPWeights:
    """An MLP with ReLU: what it reads, adds within, writes, and adds behind."""

    reads: list[Matrix] = field(default_factory=list)
    inner: list[Float[np.ndarray, " neuron"]] = field(default_factory=list)
    writes: list[Matrix] = field(default_factory=list)
    outer: Float[np.ndarray, " width"] | float = 0.0


class Weights:
    """All weights of a program, as matrices between coordinates of the stream; and the edges that they read.

    `tokens` (row 0 the start token, then words) and `places` write to the stream, `heads[layer]` and `mlps[layer]` read
    and write, `logits` (coordinate, output token) read. Without `causal`, the start token attends to itself alone.
    Raises AssayError for a program that needs too wide a stream or too many neurons.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.start = program.at_start()
        self.layer = _layers(program)
        size = sum(len(domain) for domain in program.domains.values())
        self.counts = {node: size + 1 + place for place, node in enumerate(self._of(Count))}
        self.flag = size
        # The balance is the last coordinate of the width, which comes with the heads.
        self.coordinates = size + 1 + len(self.counts)
        self.at: dict[Node, dict[Value, int]] = {}
        used = 0
        for node, domain in program.domains.items():
            self.at[node] = {value: used + place for place, value in enumerate(domain)}
            used += len(domain)
        self.layers = max((self.layer[node] for node in self.layer), default=0) + 1
        self.edges: dict[str, None] = {}
        self._set_sizes()
        self.heads: list[list[HeadWeights]] = [[] for _ in range(self.layers)]
        self.mlps = [MLPWeights() for _ in range(self.layers)]
        self.head_of: dict[Node, str] = {}
        for node in program.nodes:
            if isinstance(node, Aggregate):
                self._aggregate(node)
            elif isinstance(node, Count):
                self._count(node)
            elif isinstance(node, Zip):
                self._zip(node)
        self._reads("logits", program.output)
        neurons = max(sum(len(inner) for inner in mlp.inner) for mlp in self.mlps)
        if neurons > MOST_NEURONS:
            raise AssayError(f"the program needs {neurons:,} neurons in a layer, at most {MOST_NEURONS:,} are made; "
                             "give its functions smaller domains.")  # fmt: skip

    def _of(self, kind: type[Node]) -> list[Node]:
        return [node for node in self.program.nodes if isinstance(node, kind)]

    def _set_sizes(self) -> None:
        """Heads a layer, their width, and that of the stream: heads times width, at least what is stored."""
        domains = self.program.domains
        selecting = self._of(Aggregate) + self._of(Count)
        numbers = [sum(self.layer[node] == layer for node in selecting) for layer in range(self.layers)]
        self.heads_each = max(1, *numbers)
        needed = [1]
        for node in selecting:
            assert isinstance(node, Aggregate | Count)
            needed += [len(domains[node.keys]) + 2, len(domains[node])]
        self.head_width = max(*needed, -(-(self.coordinates + 1) // self.heads_each))
        self.width = self.heads_each * self.head_width
        if self.width > WIDEST:
            raise AssayError(
                f"the program needs a stream of {self.width:,}, at most {WIDEST:,} is made; domains multiply: give the "
                "functions of two variables smaller ones."
            )

    def _balanced(self, rows: Matrix) -> Matrix:
        """Rows that are written to the stream, with minus their sum in its last coordinate."""
        rows[:, -1] = -rows[:, :-1].sum(axis=1)
        return rows

    def _codes(self, node: Node, values: Iterable[Value]) -> Matrix:
        """A row a value: its code."""
        chosen = list(values)
        found = np.zeros((len(chosen), self.width))
        found[np.arange(len(chosen)), [self.at[node][value] for value in chosen]] = 1
        return found

    def _emptied(self, node: Node, numbers: Mapping[Value, Float[np.ndarray, " _"]]) -> Matrix:
        """What reads numbers of the values of a variable, and nothing at the start token."""
        found = np.zeros((self.width, len(next(iter(numbers.values())))))
        for value, number in numbers.items():
            found[self.at[node][value]] = number
        at_start = self.start[node]
        if at_start is not NOTHING:
            found[self.flag] -= numbers[at_start]
        return found

    def _reads(self, receiver: str, *nodes: Node) -> None:
        for node in nodes:
            self.edges[f"{self.writer(node)} -> {receiver}"] = None

    def writer(self, node: Node) -> str:
        """Who writes a variable to the stream."""
        if isinstance(node, Tokens | Positions):
            return "embeddings"
        if isinstance(node, Aggregate):
            return self.head_of[node]
        return f"layer{self.layer[node]}.mlp"

    def _selecting(
        self, node: Aggregate | Count, sure: float, at_start: float, ranks: Matrix
    ) -> tuple[str, HeadWeights]:
        """A head that looks where a predicate says; `ranks` (coordinate, 1) is how much a position is preferred."""
        program = self.program
        layer = self.layer[node]
        name = f"layer{layer}.head{len(self.heads[layer])}"
        keys, queries = program.domains[node.keys], program.domains[node.queries]
        chosen = program.selected(node)
        dimensions = len(keys) + 2
        one = np.eye(len(keys))
        found = HeadWeights(
            np.zeros((self.width, dimensions)),
            np.zeros((self.width, dimensions)),
            np.zeros((self.width, 1)),
            np.zeros((1, self.width)),
            np.zeros(dimensions),
        )
        found.keys[:, : len(keys)] = self._emptied(node.keys, {key: one[place] for place, key in enumerate(keys)})
        found.keys[self.flag, len(keys)] = 1
        found.keys[:, len(keys) + 1 :] = ranks
        wanted = {query: sure * np.array([chosen[key, query] for key in keys], dtype=float) for query in queries}
        first = wanted[queries[0]]
        # A query that all values agree on is a constant, and reads nothing.
        if all((row == first).all() for row in wanted.values()):
            found.constant[: len(keys)] = first
        else:
            for query, row in wanted.items():
                found.queries[self.at[node.queries][query], : len(keys)] = row
            self._reads(f"{name}.queries", node.queries)
        found.constant[len(keys)] = at_start
        found.constant[len(keys) + 1] = STEP
        if not program.causal:
            found.queries[self.flag, len(keys)] = 10 * (sure + at_start)
            self.edges[f"embeddings -> {name}.queries"] = None
        self._reads(f"{name}.keys", node.keys)
        self.edges[f"embeddings -> {name}.keys"] = None
        self.edges[f"embeddings -> {name}.values"] = None
        self.heads[layer].append(found)
        return name, found

    def _aggregate(self, node: Aggregate) -> None:
        program = self.program
        preferred = program.preferred(node)
        ranks = np.zeros((self.width, 1))
        # The last of the positions of the best rank: places count less than ranks.
        for key, rank in preferred.items():
            ranks[self.at[node.keys][key], 0] = rank * program.length
        if self.start[node.keys] is not NOTHING:
            ranks[self.flag, 0] -= preferred[self.start[node.keys]] * program.length
        places = self.at[self._of(Positions)[0]]
        ranks[[places[place] for place in range(program.length)], 0] += np.arange(program.length)
        highest = max(preferred.values()) * program.length + program.length - 1
        name, found = self._selecting(node, STEP * (highest + 2), STEP * (highest + 1), ranks)
        self.head_of[node] = name
        values, domain = program.domains[node.values], program.domains[node]
        one = np.eye(len(domain))
        found.values = self._emptied(node.values, {value: one[domain.index(value)] for value in values})
        found.values[self.flag] += one[domain.index(node.default)]
        found.writes = self._balanced(self._codes(node, domain))
        self._reads(f"{name}.values", node.values)

    def _count(self, node: Count) -> None:
        name, found = self._selecting(node, STEP, STEP, np.zeros((self.width, 1)))
        found.values = np.zeros((self.width, 1))
        found.values[self.flag] = 1
        found.writes = np.zeros((1, self.width))
        found.writes[0, self.counts[node]] = 1
        self._balanced(found.writes)
        layer = self.layer[node]
        self.edges[f"{name} -> layer{layer}.mlp"] = None
        # 1 / (1 + c) against thresholds midway: of a pair of neurons the difference is 1 above its threshold, 0 below.
        shares = 1 / (1 + np.arange(node.most + 1))
        thresholds = (shares[:-1] + shares[1:]) / 2
        slope = 4 / (shares[-2] - shares[-1])
        reads = np.zeros((self.width, 2 * node.most))
        reads[self.counts[node]] = slope
        inner = np.concatenate((0.5 - slope * thresholds, -0.5 - slope * thresholds))
        codes = self._codes(node, range(node.most + 1))
        # Above threshold c the count is at most c: its code in the place of that of c + 1.
        steps = codes[:-1] - codes[1:]
        self._add(layer, reads, inner, np.vstack((steps, -steps)), codes[-1])

    def _zip(self, node: Zip) -> None:
        cells = self.program.cells(node)
        layer = self.layer[node]
        reads, writes = np.zeros((self.width, len(cells))), np.zeros((len(cells), self.width))
        for neuron, (given, value) in enumerate(cells.items()):
            for one, of in zip(given, node.inputs, strict=True):
                reads[self.at[of][one], neuron] += 1
            writes[neuron, self.at[node][value]] = 1
        self._add(layer, reads, np.full(len(cells), 1.0 - len(node.inputs)), writes)
        self._reads(f"layer{layer}.mlp", *node.inputs)

    def _add(
        self,
        layer: int,
        reads: Matrix,
        inner: Float[np.ndarray, " neuron"],
        writes: Matrix,
        outer: Float[np.ndarray, " width"] | float = 0.0,
    ) -> None:
        mlp = self.mlps[layer]
        mlp.reads.append(reads)
        mlp.inner.append(inner)
        mlp.writes.append(self._balanced(writes))
        if isinstance(outer, np.ndarray):
            mlp.outer = mlp.outer + self._balanced(outer[None].copy())[0]

    def embeddings(self) -> tuple[Matrix, Matrix]:
        """What the start token and the words write, and what positions write, the start token's first."""
        tokens = np.zeros((1 + len(self.program.words), self.width))
        tokens[0, self.flag] = 1
        for node in self._of(Tokens):
            tokens[1:] += self._codes(node, self.program.words)
        places = np.zeros((1 + self.program.length, self.width))
        for node in self._of(Positions):
            places[1:] += self._codes(node, range(self.program.length))
        return self._balanced(tokens), self._balanced(places)


def _layers(program: Program) -> dict[Node, int]:
    """The layer of every variable that a head or an MLP makes: the first in which what it reads is there."""
    # Slots: 0 the embeddings, 2l + 1 the heads of layer l, 2l + 2 its MLP.
    slot: dict[Node, int] = {}
    found: dict[Node, int] = {}
    for node in program.nodes:
        before = max((slot[one] for one in node.inputs), default=0)
        if isinstance(node, Tokens | Positions):
            slot[node] = 0
            continue
        head = before + 1 if before % 2 == 0 else before + 2
        if isinstance(node, Aggregate):
            slot[node] = head
        else:
            slot[node] = head + 1 if isinstance(node, Count) else 2 * math.ceil((before + 1) / 2)
        found[node] = (slot[node] - 1) // 2
    return found
