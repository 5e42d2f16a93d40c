"""What files say of circuits, whatever their format, and how one is refused."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from assay._errors import AssayError
from assay._errors import shown as brief
from assay._files import write_atomically
from assay.circuits._graph import Edge, Graph
from assay.circuits._parameters import is_whole, shown
from assay.circuits._problem import Ablation, Measure
from assay.simplify import Origin

Rank = Literal["absolute", "helpful"]
LARGEST = 10**9
"""Pairs of a sender and a receiver beyond which a graph is that of no model: a short file could ask for any memory."""


@dataclass(frozen=True)
class Found:
    """Where a circuit is from: what is known of it beside its edges.

    `graph` is the one that its edges are of, and `width` that of its residual stream; `scores` are those of its edges,
    in their order (None: nobody gave any). `subject` is what it was found on, by `method` on the pairs of a hash;
    `baseline` is the mean of m there for the subject and with all edges ablated. With `at_least`, `graph` has the heads
    that the edges name, and nobody says whether there are more.
    """

    graph: Graph
    width: int | None = None
    scores: tuple[float | None, ...] | None = None
    subject: Origin | None = None
    method: str | None = None
    pairs_sha256: str | None = None
    baseline: tuple[float, float] | None = None
    at_least: bool = False


class Given(NamedTuple):
    """A circuit as it is read: edges by name, the best first."""

    edges: tuple[str, ...]
    found: Found
    name: str = ""
    ablation: Ablation = "counterfactual"
    measure: Measure = "logit_difference"
    rank: Rank = "absolute"


class Stated(NamedTuple):
    """A circuit as it is written: `given`, and as matrices, with the scores of all edges that have one (else NaN)."""

    given: Given
    kept: Bool[np.ndarray, "sender receiver"]
    scores: Float[np.ndarray, "sender receiver"] | None


class Scored(NamedTuple):
    """What another tool's file holds: scores of the edges of a graph (else NaN), or which are in the circuit."""

    graph: Graph
    kept: Bool[np.ndarray, "sender receiver"] | None
    scores: Float[np.ndarray, "sender receiver"] | None
    width: int | None = None
    at_least: bool = False


OF_NEURONS = (
    "holds a circuit of neurons; Assay's circuits are of edges between heads and MLPs, all of a vector at once."
)

OF_FEATURES = (
    "holds an attribution graph, over features of dictionaries, and no circuit; read it with "
    "assay.AttributionGraph.read, and judge it with assay.KeptFeatures (kept-features:graph=PATH on the command line)."
)


def finite_score(path: Path, name: str, value: Any) -> float:
    """A score of a file. Raises AssayError for what is no number, or not finite."""
    if type(value) not in (int, float):
        raise refusal(path, f"has the score {short(value)} for {short(name)}, which is no number.")
    try:
        score = float(value)
    except OverflowError:
        score = math.inf
    if not math.isfinite(score):
        raise refusal(path, f"has the score {short(value)} for {short(name)}, which is not finite.")
    return score


def refusal(path: Path, why: str) -> AssayError:
    """An error about a file, in one line."""
    return AssayError(f"{str(path)!r} {' '.join(why.split())}")


def short(value: object) -> str:
    """Something of a file as it can stand in a message."""
    return brief(value, 60)


def clipped(text: str, most: int) -> str:
    """The start of a text."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def write(path: Path, fill: Callable[[Path], object]) -> None:
    """Write a file as a whole or not at all. Raises AssayError where that cannot be done."""
    try:
        write_atomically(path, fill)
    except OSError as error:
        raise refusal(path, f"cannot be written ({error.strerror}).") from None


def check_size(path: Path, graph: Graph) -> Graph:
    """A graph of a file. Raises AssayError if it is larger than that of any model, or its heads cannot be grouped."""
    numbers = (graph.layers, graph.heads, graph.groups)
    senders, receivers = 1 + graph.layers * (graph.heads + 1), 1 + graph.layers * (graph.heads + 2 * graph.groups + 1)
    odd = min(numbers) < 1 or graph.heads % graph.groups or (graph.latent and graph.groups > 1)
    if odd or senders * receivers > LARGEST:
        layers, heads, groups = map(short, numbers)
        raise refusal(
            path,
            f"is about a model of {layers} layers of {heads} heads, which share keys and values in {groups} groups: "
            "there is no such model.",
        )
    return graph


def ranks(scores: Float[np.ndarray, "*shape"], rank: Rank, measure: Measure) -> Float[np.ndarray, "*shape"]:
    """By what edges are ranked, the largest first. Ablating what helps lowers a logit difference and raises KL."""
    if rank == "absolute":
        return np.abs(scores)
    return scores if measure == "kl" else -scores


# -- which edges ----------------------------------------------------------------------------------------------------


def check_count(edges: int | None) -> None:
    """Raise AssayError unless that is a number of edges, or None."""
    if edges is not None and (not is_whole(edges) or edges < 1):
        raise AssayError(
            f"edges={shown(edges)}: say how many of the edges of a file to take, at least 1, or leave it out for the "
            "circuit that the file states."
        )


def chosen(path: Path, found: Scored, edges: int | None, groups: int | None) -> Given:
    """The circuit of another tool's file, or its `edges` best by absolute score, with keys and values by group.

    Raises AssayError if the file does not say which edges those are.
    """
    graph, kept, scores, width, at_least = found
    if groups is not None and at_least:
        raise refusal(
            path, "does not say how many heads there are; leave groups= out, apply(subject) knows the groups."
        )
    if groups is not None:
        if groups < 1 or graph.heads % groups:
            raise refusal(
                path, f"has {graph.heads} heads a layer, which cannot share keys and values in {groups} groups."
            )
        if edges is None and kept is not None:
            kept = together(graph, groups, kept, str(path))
        scores = None if scores is None else summed(graph, groups, scores)
        graph = replace(graph, groups=groups)
    order = None if scores is None else np.argsort(-np.abs(scores[graph.exists]), kind="stable")
    places = np.argwhere(graph.exists)
    if edges is None:
        if kept is None or not kept.any():
            how = "say how many of the best to take: edges=200." if scores is not None else "and no scores of edges."
            raise refusal(path, f"has no edges in the circuit, {how}")
        places = places if order is None else places[order]
        places = places[kept[tuple(places.T)]]
    else:
        scored = 0 if scores is None else int(np.isfinite(scores[graph.exists]).sum())
        if order is None or edges > scored:
            raise refusal(path, f"has scores of {scored:,} edges; edges={edges} is too many.")
        places = places[order[:edges]]
    names = tuple(f"{graph.senders[sender]} -> {graph.receivers[receiver]}" for sender, receiver in places)
    own = None if scores is None else tuple(known(score) for score in scores[tuple(places.T)].tolist())
    return Given(names, Found(graph, width, own, at_least=at_least), name_of(path))


def known(score: float) -> float | None:
    return score if math.isfinite(score) else None


def name_of(path: Path) -> str:
    """What a circuit of a file is called that has no name of its own."""
    return path.stem if path.stem.isprintable() else ""


def _by_group(graph: Graph, groups: int, matrix: np.ndarray, reduce: Callable[[np.ndarray], Any]) -> Any:
    """A matrix of the edges of a graph whose keys and values are by head, with those of each group reduced to one."""
    columns: list[np.ndarray] = []
    for layer in range(graph.layers):
        own = matrix[:, graph.reading(layer)]
        queries, *rest = np.split(own, 3, axis=1)
        columns.append(queries)
        columns += [reduce(part.reshape(len(part), groups, -1)) for part in rest]
        columns.append(matrix[:, [graph.mlp(layer)]])
    return np.concatenate([*columns, matrix[:, [graph.logits]]], axis=1)


def summed(
    graph: Graph, groups: int, scores: Float[np.ndarray, "sender receiver"]
) -> Float[np.ndarray, "sender grouped"]:
    """Scores by group: what several heads read alike has the sum of their scores."""
    found: np.ndarray = _by_group(graph, groups, scores, lambda parts: parts.sum(axis=2))
    return found


def together(
    graph: Graph, groups: int, kept: Bool[np.ndarray, "sender receiver"], who: str
) -> Bool[np.ndarray, "sender grouped"]:
    """Edges by group. Raises AssayError where some heads of a group are in the circuit and others are not."""
    found: np.ndarray = _by_group(graph, groups, kept, lambda parts: parts.all(axis=2))
    split = _by_group(graph, groups, kept, lambda parts: parts.any(axis=2)) & ~found
    if split.any():
        by_group = replace(graph, groups=groups)
        sender, column = np.argwhere(split)[0]
        layer, place = divmod(int(column), by_group.readers + 1)
        part, group = divmod(place - graph.heads, groups)
        share = graph.heads // groups
        first = graph.reading(layer).start + graph.heads * (1 + part) + group * share
        inside = kept[sender, first : first + share]
        heads = {
            flag: ", ".join(str(group * share + head) for head in np.flatnonzero(inside == flag))
            for flag in (True, False)
        }
        raise AssayError(
            f"{who}: heads {group * share} to {(group + 1) * share - 1} of layer {layer} share their "
            f"{('keys', 'values')[part]} in this model, and in the circuit {graph.senders[sender]} is heard by those "
            f"of head {heads[True]} and not of {heads[False]}; take the best edges by the sum of their heads' scores: "
            f"Circuit.read(path, edges=200, groups={groups})."
        )
    return found


def apart(graph: Graph, matrix: np.ndarray) -> Any:
    """A matrix of edges with keys and values by head, each like its group's."""
    share = graph.heads // graph.groups
    columns: list[np.ndarray] = []
    for layer in range(graph.layers):
        own = matrix[:, graph.reading(layer)]
        columns += [own[:, : graph.heads], np.repeat(own[:, graph.heads :], share, axis=1)]
        columns.append(matrix[:, [graph.mlp(layer)]])
    return np.concatenate([*columns, matrix[:, [graph.logits]]], axis=1)


def laid_on(  # noqa: PLR0917
    edges: Sequence[str | Edge], found: Found | None, graph: Graph, width: int | None, who: str, whose: str
) -> tuple[Bool[np.ndarray, "sender receiver"], Float[np.ndarray, "sender receiver"] | None]:
    """Given edges and their scores as matrices of a subject's graph; keys and values by head are put together.

    Raises AssayError if they are of a model of another form.
    """
    if found is None:
        return graph.matrix(edges), None
    own = found.graph
    if found.at_least and own.layers == graph.layers and own.heads <= graph.heads:
        own = replace(graph, groups=graph.heads)
    fits = found.width is None or width is None or found.width == width
    # Other tools' files do not say whether heads are joint; their edges are the same.
    if not fits or own.counted not in (graph.counted, _by_head(graph)):
        raise AssayError(
            f"{who}: its edges are of a model of {described(own, found.width, found.at_least)}, and {whose!r} has "
            f"{described(graph, width)}; give the model that it was found in."
        )
    kept, scores = own.matrix(edges), None
    if found.scores is not None:
        scores = np.full(own.shape, np.nan)
        for edge, score in zip(edges, found.scores, strict=True):
            scores[own.place(edge)] = np.nan if score is None else score
    if own.counted != graph.counted:
        kept = together(own, graph.groups, kept, who)
        scores = None if scores is None else summed(own, graph.groups, scores)
    return kept, scores


def _by_head(graph: Graph) -> Graph:
    """The same with keys and values by head, where a graph can have them so."""
    return graph.counted if graph.latent else replace(graph.counted, groups=graph.heads)


def described(graph: Graph, width: int | None, at_least: bool = False) -> str:
    """The form of a model, as far as a graph has it."""
    shared = "" if graph.groups == graph.heads else f" that share keys and values in {graph.groups} groups"
    wide = "" if width is None else f", of width {width}"
    beside = ", attention and MLP side by side" if graph.parallel else ""
    beside += ", with keys and values made of a latent" if graph.latent else ""
    beside += ", with queries made of a latent" if graph.latent_queries else ""
    most = "at least " if at_least else ""
    return f"{graph.layers} layers of {most}{graph.heads} heads{shared}{wide}{beside}"
