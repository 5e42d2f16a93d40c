"""How far two circuits are the same one, between what chance gives and what a repeated discovery gives."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from assay._errors import AssayError
from assay._given import checked
from assay.circuits import Circuit, Graph
from assay.engine import Engine, collect
from assay.simplify import label
from assay.subjects import Subject
from assay.tasks import Split


@dataclass(frozen=True)
class Overlap:
    """How many edges two circuits share, and how many they would by chance.

    `first`, `second` and `shared` are numbers of edges on paths, of `size` edges of the graph. `share` is
    shared / min(first, second), `jaccard` shared / (all edges of both), `weighted` the same of |scores| (None where a
    circuit was given); all in [0, 1], 1 for equal circuits. `expected` edges are shared by sets of these sizes drawn
    evenly, and as many as were with probability `p`; `layered_expected` and `layered_p` are for sets that have as many
    edges of each circuit from any layer to any other.
    """

    size: int
    first: int
    second: int
    shared: int
    share: float
    jaccard: float
    weighted: float | None
    expected: float
    p: float
    layered_expected: float
    layered_p: float

    def __str__(self) -> str:
        return (
            f"{self.shared} of {self.first} and {self.second} edges shared (Jaccard {self.jaccard:.2f}; by chance "
            f"{self.expected:.1f}, p = {self.p:.2g}; by chance within layers {self.layered_expected:.1f}, "
            f"p = {self.layered_p:.2g})"
        )


@checked
def overlap(first: Circuit, second: Circuit) -> Overlap:
    """How far two fitted circuits of graphs of one kind are the same, by their edges on paths.

    With a and b of N edges, chance shares a b / N, and at least k with the tail of the hypergeometric distribution.
    Late layers are in most circuits, so the fairer null draws evenly among the edges from one layer to another (the
    embeddings and the logits being layers of their own), as many for each circuit as it has there: a sum of independent
    hypergeometric numbers. Read what is shared by circuits of two tasks, or of iid and a shift, between this and the
    ceiling of `stability`.

    The weighted Jaccard index is sum min(a_e, b_e) / sum max(a_e, b_e), with a_e and b_e what share of all |scores| an
    edge has: where an effect is twice as large with the same edges, it stays 1.

    Source: Merullo, Eickhoff and Pavlick, arXiv 2310.08744 (shares of heads). Differences: nulls, which are not in it;
    the sum of hypergeometric numbers is convolved and not drawn.

    Raises AssayError for circuits of different graphs, and for one without edges on paths.
    """
    graph, one = _pruned(first)
    other_graph, other = _pruned(second)
    if graph != other_graph:
        raise AssayError(
            f"overlap(): {label(first)} is of a graph with {graph.size:,} edges ({graph.describe()}), {label(second)} "
            f"of one with {other_graph.size:,} ({other_graph.describe()}); give circuits of one architecture."
        )
    shared, a, b = int((one & other).sum()), int(one.sum()), int(other.sum())
    cells = list(_cells(graph))
    counts = [(int(cell.sum()), int((one & cell).sum()), int((other & cell).sum())) for cell in cells]
    return Overlap(
        size=graph.size,
        first=a,
        second=b,
        shared=shared,
        share=shared / min(a, b),
        jaccard=shared / int((one | other).sum()),
        weighted=_weighted(first.scores_, second.scores_),
        expected=a * b / graph.size,
        p=float(stats.hypergeom.sf(shared - 1, graph.size, a, b)),
        layered_expected=float(sum(in_first * in_second / size for size, in_first, in_second in counts)),
        layered_p=tail(counts, shared),
    )


def _pruned(circuit: Circuit) -> tuple[Graph, Bool[np.ndarray, "sender receiver"]]:
    if circuit.graph_ is None or circuit.kept_ is None:
        raise AssayError(f"{label(circuit)} has not been fitted; call fit(samples), or apply(subject) if it was given.")
    found = circuit.graph_.pruned(circuit.kept_)
    if not found.any():
        raise AssayError(f"{label(circuit)} has no edges on paths from embeddings to logits; give it more.")
    return circuit.graph_, found


def _weighted(
    first: Float[np.ndarray, "sender receiver"] | None, second: Float[np.ndarray, "sender receiver"] | None
) -> float | None:
    if first is None or second is None:
        return None
    return weighted_jaccard(*(np.abs(np.nan_to_num(scores)) for scores in (first, second)))


def weighted_jaccard(first: Float[np.ndarray, "*shape"], second: Float[np.ndarray, "*shape"]) -> float:
    """sum min / sum max of two sets of sizes, each divided by its sum."""
    a, b = first / first.sum(), second / second.sum()
    return float(np.minimum(a, b).sum() / np.maximum(a, b).sum())


def _cells(graph: Graph) -> Iterator[Bool[np.ndarray, "sender receiver"]]:
    """The edges from each layer to each other, layer by layer."""
    of_senders = np.array([-1, *(layer for layer in range(graph.layers) for _ in range(graph.heads + 1))])
    of_receivers = np.array([*(layer for layer in range(graph.layers) for _ in range(graph.readers + 1)), graph.layers])
    for sender in range(-1, graph.layers):
        for receiver in range(graph.layers + 1):
            cell = graph.exists & (of_senders == sender)[:, None] & (of_receivers == receiver)[None]
            if cell.any():
                yield cell


def tail(counts: list[tuple[int, int, int]], shared: int) -> float:
    """The probability of sharing at least so many, from the size of every cell and what either has in it."""
    whole: Float[np.ndarray, " count"] = np.ones(1)
    for size, first, second in counts:
        whole = np.convolve(whole, stats.hypergeom.pmf(np.arange(min(first, second) + 1), size, first, second))
    return float(min(whole[shared:].sum(), 1.0))


@dataclass(frozen=True)
class Stability:
    """Circuits found again on resamples of the pairs.

    `frequency` (sender, receiver) is in how many of them, as a share, an edge is on a path. `ceiling` is the mean of
    `jaccards`, of every two of them, which have `sizes` edges on paths: two circuits of one mechanism share no more.
    """

    frequency: Float[np.ndarray, "sender receiver"]
    jaccards: Float[np.ndarray, " pair"]
    sizes: Int[np.ndarray, " resample"]

    @property
    def ceiling(self) -> float:
        """The mean Jaccard index of two of the circuits, in [0, 1]."""
        return float(self.jaccards.mean())


@checked
def stability(circuit: Circuit, subject: Subject, split: Split, *, resamples: int = 20, seed: int = 0) -> Stability:
    """Discover a circuit again on `resamples` bootstrap samples of the pairs of a split (the train split's, as a rule).

    Two bootstrap samples differ as two fresh samples of pairs do, so the mean Jaccard index of the circuits is the most
    that circuits found on different pairs can be expected to share. It costs a discovery each. Two empty circuits are
    taken as equal.

    Raises AssayError for a circuit of given edges, and for fewer than two resamples; and as `Circuit.fit`.
    """
    if not isinstance(circuit.edges, int):
        raise AssayError(f"{label(circuit)} is given, so that nothing is found again; give a number of edges.")
    if resamples < 2:
        raise AssayError(f"stability(resamples={resamples}): must be at least 2.")
    rng = np.random.default_rng(seed)
    engine = Engine(subject)
    found = []
    for _ in range(resamples):
        drawn = split.take(rng.integers(len(split), size=len(split)))
        again = replace(circuit).fit(collect(engine, drawn, ()))
        assert again.graph_ is not None
        assert again.kept_ is not None
        found.append(again.graph_.pruned(again.kept_))
    jaccards = []
    for place, one in enumerate(found):
        for other in found[:place]:
            union = int((one | other).sum())
            jaccards.append(int((one & other).sum()) / union if union else 1.0)
    return Stability(np.mean(found, axis=0), np.array(jaccards), np.array([int(one.sum()) for one in found]))
