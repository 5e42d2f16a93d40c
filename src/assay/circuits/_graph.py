"""The computation graph of a decoder: who writes into the residual stream, who reads it, and every edge between."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from assay._errors import AssayError

EMBEDDINGS, LOGITS = "embeddings", "logits"
"""The first sender and the last receiver."""

_EDGE = re.compile(r"\s*(\S+)\s*->\s*(\S+)\s*")


@dataclass(frozen=True, order=True)
class Edge:
    """What one part of a model hears of another: `layer1.head2 -> layer3.head0.queries`."""

    sender: str
    receiver: str

    @classmethod
    def parse(cls, text: str) -> "Edge":
        """Read `sender -> receiver`. Raises AssayError for anything else."""
        match = _EDGE.fullmatch(text)
        if match is None:
            raise AssayError(f"{text!r} is no edge; write it as 'layer1.head2 -> layer3.head0.queries'.")
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"{self.sender} -> {self.receiver}"


@dataclass(frozen=True)
class Graph:
    """Senders, receivers and edges of a decoder of so many layers, query heads a layer and groups of keys and values.

    Senders, in order of execution: `embeddings` (what enters the first block, learned positions included), then layer
    by layer `layer2.head5` (its part of the output projection, without the bias) and `layer2.mlp` (with its bias).
    Receivers: layer by layer `layer3.head0.queries`, `.keys` and `.values` (`layer3.group1.keys` where several heads
    share them), `layer3.mlp`, and `logits`, what the final norm takes in.

    A receiver hears every sender before it; an MLP also the heads of its own block, unless the block is `parallel`
    (attention and MLP read the same stream). Boolean matrices of edges are (sender, receiver).

    With `latent` (then `groups` is 1) keys and values of all heads are made of one short vector: their receivers are
    `layer3.group0.keys` (the part of the keys with positions) and `layer3.group0.latent`. With `latent_queries` so are
    queries: `layer3.group0.queries`. With `joint` what one head hears changes what all heads of its layer write: a norm
    takes in the queries or keys of all heads, or all that they write.
    """

    layers: int
    heads: int
    groups: int
    parallel: bool = False
    joint: bool = False
    latent: bool = False
    latent_queries: bool = False

    @cached_property
    def senders(self) -> tuple[str, ...]:
        """Names of the senders."""
        found = [EMBEDDINGS]
        for layer in range(self.layers):
            found += [f"layer{layer}.head{head}" for head in range(self.heads)]
            found.append(f"layer{layer}.mlp")
        return tuple(found)

    @cached_property
    def receivers(self) -> tuple[str, ...]:
        """Names of the receivers: of a layer all queries, all keys, all values and the MLP."""
        who = "head" if self.groups == self.heads and not self.latent else "group"
        asking = "group" if self.latent_queries else "head"
        found: list[str] = []
        for layer in range(self.layers):
            found += [f"layer{layer}.{asking}{place}.queries" for place in range(self.queries)]
            for part in ("keys", "latent" if self.latent else "values"):
                found += [f"layer{layer}.{who}{group}.{part}" for group in range(self.groups)]
            found.append(f"layer{layer}.mlp")
        return (*found, LOGITS)

    @property
    def shape(self) -> tuple[int, int]:
        """How many senders and receivers there are."""
        return len(self.senders), len(self.receivers)

    @property
    def queries(self) -> int:
        """How many receivers of a layer are queries."""
        return 1 if self.latent_queries else self.heads

    @property
    def readers(self) -> int:
        """How many receivers of a layer belong to its attention."""
        return self.queries + 2 * self.groups

    @property
    def counted(self) -> "Graph":
        """The same graph without what only says which heads hear of each other: it has the same edges."""
        return replace(self, joint=False)

    def sender(self, layer: int, head: int | None = None) -> int:
        """The number of a head among the senders, or of the MLP of a layer."""
        return 1 + layer * (self.heads + 1) + (self.heads if head is None else head)

    def reading(self, layer: int) -> slice:
        """The receivers that belong to a layer's attention: queries, keys, values."""
        start = layer * (self.readers + 1)
        return slice(start, start + self.readers)

    def mlp(self, layer: int) -> int:
        """The receiver that is a layer's MLP."""
        return layer * (self.readers + 1) + self.readers

    @property
    def logits(self) -> int:
        """The last receiver."""
        return len(self.receivers) - 1

    @cached_property
    def heard(self) -> tuple[int, ...]:
        """How many senders every receiver hears: always the first ones."""
        found: list[int] = []
        for layer in range(self.layers):
            before = 1 + layer * (self.heads + 1)
            found += [before] * self.readers
            found.append(before if self.parallel else before + self.heads)
        return (*found, len(self.senders))

    @cached_property
    def exists(self) -> Bool[np.ndarray, "sender receiver"]:
        """Which edges there are."""
        return np.arange(len(self.senders))[:, None] < np.array(self.heard)[None]

    @property
    def size(self) -> int:
        """How many edges there are."""
        return sum(self.heard)

    @cached_property
    def heads_of(self) -> tuple[tuple[int, ...], ...]:
        """The senders that every receiver feeds: its head, all heads of its group, its MLP; of the logits none.

        All heads of its layer where these are `joint`.
        """
        found: list[tuple[int, ...]] = []
        for layer in range(self.layers):
            heads = tuple(self.sender(layer, head) for head in range(self.heads))
            for count in (self.queries, self.groups, self.groups):
                share = self.heads // (1 if self.joint else count)
                for place in range(count):
                    start = 0 if self.joint else place * share
                    found.append(heads[start : start + share])
            found.append((self.sender(layer),))
        return (*found, ())

    def edges(self, kept: Bool[np.ndarray, "sender receiver"]) -> tuple[Edge, ...]:
        """The edges of a matrix, by sender, each sender's in order of execution."""
        return tuple(Edge(self.senders[sender], self.receivers[receiver]) for sender, receiver in np.argwhere(kept))

    def matrix(self, edges: Iterable[Edge | str]) -> Bool[np.ndarray, "sender receiver"]:
        """The matrix of some edges. Raises AssayError for one that this graph does not have."""
        kept = np.zeros(self.shape, dtype=bool)
        for edge in edges:
            kept[self.place(edge)] = True
        return kept

    def place(self, edge: Edge | str) -> tuple[int, int]:
        """Sender and receiver of an edge, as numbers. Raises AssayError for one that this graph does not have."""
        found = Edge.parse(edge) if isinstance(edge, str) else edge
        for name, known, what in (
            (found.sender, self._senders, "sender"),
            (found.receiver, self._receivers, "receiver"),
        ):
            if name not in known:
                names = list(known)
                raise AssayError(f"edge {str(found)!r}: {name!r} is no {what} here; they are {names[0]} … {names[-1]}.")
        place = self._senders[found.sender], self._receivers[found.receiver]
        if not self.exists[place]:
            raise AssayError(f"edge {str(found)!r}: {found.receiver} is computed before {found.sender}, or beside it.")
        return place

    @cached_property
    def _senders(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.senders)}

    @cached_property
    def _receivers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.receivers)}

    def pruned(self, kept: Bool[np.ndarray, "sender receiver"]) -> Bool[np.ndarray, "sender receiver"]:
        """The edges that lie on a path of kept edges from the embeddings to the logits; the others explain nothing."""
        reached = self._reached(kept)
        useful = self._useful(kept)
        return kept & reached[:, None] & useful[None, :]

    def _reached(self, kept: Bool[np.ndarray, "sender receiver"]) -> Bool[np.ndarray, " sender"]:
        """The senders with a path from the embeddings. Receivers are in order of execution, so one sweep is enough."""
        reached = np.zeros(len(self.senders), dtype=bool)
        reached[0] = True
        for receiver, fed in enumerate(self.heads_of):
            if (kept[:, receiver] & reached).any():
                reached[list(fed)] = True
        return reached

    def _useful(self, kept: Bool[np.ndarray, "sender receiver"]) -> Bool[np.ndarray, " receiver"]:
        """The receivers with a path to the logits."""
        useful = np.zeros(len(self.receivers), dtype=bool)
        useful[-1] = True
        for receiver in range(len(self.receivers) - 2, -1, -1):
            useful[receiver] = any((kept[sender] & useful).any() for sender in self.heads_of[receiver])
        return useful

    def describe(self) -> dict[str, int | bool]:
        """What a file keeps of it."""
        plain = {"layers": self.layers, "heads": self.heads, "groups": self.groups, "parallel": self.parallel}
        return plain | {name: True for name in ("joint", "latent", "latent_queries") if getattr(self, name)}


def shuffled(
    graph: Graph, kept: Bool[np.ndarray, "sender receiver"], rng: np.random.Generator
) -> Bool[np.ndarray, "sender receiver"]:
    """The image of a circuit when the heads of every layer are permuted: groups first, then heads within groups.

    A head's place as a sender and as a receiver moves together, so sizes before and after pruning, the profile over
    layers and the structure of paths stay as they are; only which heads they are is forgotten.
    """
    groups = np.stack([rng.permutation(graph.groups) for _ in range(graph.layers)])
    share = graph.heads // graph.groups
    within = np.stack([[rng.permutation(share) for _ in range(graph.groups)] for _ in range(graph.layers)])
    return _image(graph, kept, groups, within)


def images(graph: Graph, kept: Bool[np.ndarray, "sender receiver"], most: int) -> int:
    """How many different images a circuit has, counted up to `most`: one that heads have no part in has one."""
    share = graph.heads // graph.groups
    groups = np.tile(np.arange(graph.groups), (graph.layers, 1))
    within = np.tile(np.arange(share), (graph.layers, graph.groups, 1))
    swaps = []
    for layer in range(graph.layers):
        for group in range(graph.groups - 1):
            swapped = groups.copy()
            swapped[layer, [group, group + 1]] = swapped[layer, [group + 1, group]]
            swaps.append((swapped, within))
        for group in range(graph.groups):
            for head in range(share - 1):
                moved = within.copy()
                moved[layer, group, [head, head + 1]] = moved[layer, group, [head + 1, head]]
                swaps.append((groups, moved))
    known, left = {kept.tobytes()}, [kept]
    while left:
        circuit = left.pop()
        for swap in swaps:
            image = _image(graph, circuit, *swap)
            if image.tobytes() not in known:
                known.add(image.tobytes())
                left.append(image)
            if len(known) >= most:
                return most
    return len(known)


def _image(
    graph: Graph,
    kept: Bool[np.ndarray, "sender receiver"],
    groups: Int[np.ndarray, "layer group"],
    within: Int[np.ndarray, "layer group head"],
) -> Bool[np.ndarray, "sender receiver"]:
    """The circuit with each group and each head of a group at another's place."""
    senders, receivers = np.arange(len(graph.senders)), np.arange(len(graph.receivers))
    share = graph.heads // graph.groups
    for layer in range(graph.layers):
        heads = (groups[layer][:, None] * share + within[layer]).ravel()
        first, start = graph.sender(layer, 0), graph.reading(layer).start
        senders[first : first + graph.heads] = first + heads
        if not graph.latent_queries:
            receivers[start : start + graph.heads] = start + heads
        for part in range(2):
            begin = start + graph.queries + part * graph.groups
            receivers[begin : begin + graph.groups] = begin + groups[layer]
    image = np.zeros_like(kept)
    image[np.ix_(senders, receivers)] = kept
    return image
