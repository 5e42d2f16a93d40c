"""Attribution graphs: what the features of dictionaries, their errors and the tokens add to one another on a prompt."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay._errors import AssayError

NODES, EDGES = 0.8, 0.98
"""The shares of influence that circuit-tracer keeps when it prunes a graph."""

_LEAST = 1e-10
"""What a node hears in all is not taken to be less, as in circuit-tracer."""


class Node(NamedTuple):
    """A node of an attribution graph: its kind (feature, error, embedding or target), layer, position and number.

    Embeddings have the layer -1, targets that after the last. The number is that of a feature in its dictionary, of an
    embedding its token, of a target the token whose logit it is; of errors -1.
    """

    kind: str
    layer: int
    position: int
    number: int

    def __str__(self) -> str:
        match self.kind:
            case "embedding":
                return f"token {self.number} at {self.position}"
            case "target":
                return f"logit of {self.number}"
            case "error":
                return f"layer{self.layer} error at {self.position}"
        return f"layer{self.layer} feature {self.number} at {self.position}"


class Link(NamedTuple):
    """What a source adds to a target, and the share of the influence on the targets that goes along there.

    The latter is the share of what the target hears, times the target's own influence.
    """

    source: Node
    target: Node
    weight: float
    share: float


@dataclass(frozen=True)
class GraphScores:
    """How much of an attribution graph's influence comes from features and tokens, and how much from errors.

    `replacement` and `completeness` are circuit-tracer's two scores, in [0, 1], higher is better: the share of tokens
    in what reaches the targets from tokens and errors, and the share of what nodes hear that comes from no error, each
    node weighted by its influence. The latter counts nodes that hear nothing (tokens and the errors themselves) as
    complete; `heard` is the same over nodes that hear something. `errors` are the shares of each layer's errors in what
    reaches the targets from tokens and errors; with `replacement` they sum to 1. `features` are in the graph, of
    `active` (None: not known) that were on: edges of the others are missing, and are no error in any score. `pruned`
    says that weak nodes and edges had been taken out before.
    """

    replacement: float
    completeness: float
    heard: float
    errors: tuple[float, ...]
    features: int
    active: int | None
    pruned: bool

    def __str__(self) -> str:
        of = "" if self.active is None else f" of the {self.active:,} that were on"
        cut = "; pruned before it was read" if self.pruned else ""
        return (
            f"replacement score {self.replacement:.3f}, completeness {self.completeness:.3f} ({self.heard:.3f} over "
            f"nodes that hear something); {self.features:,} features{of}{cut}"
        )


@dataclass(frozen=True, eq=False)
class AttributionGraph:
    """What circuit-tracer draws of a prompt: nodes, and what each adds to another while attention and norms are held.

    Nodes are, in this order, `features` (layer, position, number), each with its activation; `errors` (layer,
    position), what the dictionaries get wrong there; the embeddings of all `tokens`; and `targets`, token ids whose
    logits at the last position are explained, with `probabilities` that the subject is said to give them (of
    directions that are no token, weights). `weights[t, s]` is what source s adds to target t: to the pre-activation of
    a feature, to a logit less the mean of all. `words` and `said` are the texts of tokens and targets, where known.

    `origin` says where it comes from: `format`, `model`, `scan` (which dictionaries), `prompt`, `active` (how many
    features were on in all) and `pruned` (whether weak nodes and edges are missing).

    Raises AssayError for shapes that do not fit, numbers that are not finite or out of range, a node that is there
    twice, negative probabilities, and weights that go backwards: into a layer from itself or a later one, into a
    position from a later one, or into an error or an embedding.
    """

    # Plain, for what does not fit is refused in words below, where it comes from a file.
    layers: int
    tokens: Tensor
    features: Tensor
    activations: Tensor
    errors: Tensor
    targets: Tensor
    probabilities: Tensor
    weights: Tensor
    words: Sequence[str] | None = None
    said: Sequence[str] | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self)

    def __deepcopy__(self, _: dict[int, Any]) -> "AttributionGraph":
        # It never changes, and recipes that hold one are copied for every fit.
        return self

    @classmethod
    def read(cls, path: str | Path) -> "AttributionGraph":
        """One of a file of circuit-tracer: `Graph.to_pt`, or the JSON of its front end, told by their content.

        No code is run: a .pt file is read as tensors and plain values, its two own classes as values by name. JSON is
        pruned already. Files up to version 0.5 give the error of layer L the id of feature L of layer 0; which of the
        two a link starts at is told by what may hear what, and by the order that links are written in. Raises
        AssayError where that does not tell, and for all else that is damaged, unknown, or does not fit.
        """
        from assay.dictionaries.formats.attribution_graphs import read  # noqa: PLC0415  (which makes graphs itself)

        return read(Path(path))

    @property
    def positions(self) -> int:
        """Tokens of the prompt."""
        return len(self.tokens)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, in the order of `weights`."""
        last = self.positions - 1
        return (
            *(Node("feature", *one) for one in self.features.tolist()),
            *(Node("error", layer, place, -1) for layer, place in self.errors.tolist()),
            *(Node("embedding", -1, place, token) for place, token in enumerate(self.tokens.tolist())),
            *(Node("target", self.layers, last, token) for token in self.targets.tolist()),
        )

    @property
    def kept(self) -> dict[int, tuple[int, ...]]:
        """The numbers of the features of each layer, at whatever position, in order."""
        found: dict[int, set[int]] = {layer: set() for layer in range(self.layers)}
        for layer, _, number in self.features.tolist():
            found[layer].add(number)
        return {layer: tuple(sorted(numbers)) for layer, numbers in found.items()}

    def influence(self) -> Float[np.ndarray, " node"]:
        """How much of the targets' probability reaches them from each node, by all paths.

        With A the absolute weights, each row divided by its sum, and p the probabilities at the targets: Σ_{k ≥ 1} p
        A^k. The targets' own is 0.
        """
        return _influence(self._layout, _Heard.of(self.weights), self._weighted)

    def scores(self) -> GraphScores:
        """circuit-tracer's replacement and completeness score, and what they leave out.

        Raises AssayError where nothing reaches the targets.
        """
        heard, own = _Heard.of(self.weights), self._layout
        reach = _influence(own, heard, self._weighted)
        tokens, layer = float(reach[own.embeddings].sum()), own.layer[own.errors]
        wrong = np.array([reach[own.errors][layer == number].sum() for number in range(self.layers)])
        total = tokens + float(wrong.sum())
        if not total > 0:
            raise AssayError("nothing reaches the targets of this graph, from tokens or errors; there is no score.")
        from_errors = heard.share(own.errors)
        weight = reach + self._weighted
        hears = heard.total > 0
        return GraphScores(
            replacement=tokens / total,
            completeness=float(1 - (from_errors * weight).sum() / weight.sum()),
            heard=float(1 - (from_errors * weight)[hears].sum() / weight[hears].sum()),
            errors=tuple((wrong / total).tolist()),
            features=len(self.features),
            active=self.origin.get("active"),
            pruned=bool(self.origin.get("pruned", False)),
        )

    def pruned(self, nodes: float = NODES, edges: float = EDGES) -> "AttributionGraph":
        """The nodes and edges that hold these shares of all influence, as circuit-tracer prunes.

        Tokens and targets stay. Features that no longer hear or are heard go, and errors that are not heard, until none
        is left. Raises AssayError for shares outside (0, 1].
        """
        for name, share in (("nodes", nodes), ("edges", edges)):
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
                raise AssayError(f"{name}={share!r}: say the share of all influence that is to be kept, in (0, 1].")
        own, weighted = self._layout, self._weighted
        inner = np.arange(len(weighted)) < own.embeddings.start
        reach = _influence(own, _Heard.of(self.weights), weighted)
        kept = reach >= _least(reach, nodes)
        kept[~inner] = True
        matrix = self.weights.double().numpy() * np.outer(kept, kept)
        heard = _Heard.of(torch.from_numpy(matrix))
        scores = heard.shares() * (_influence(own, heard, weighted) + weighted)[:, None]
        linked = (scores >= _least(scores[scores > 0], edges)) & (scores > 0)
        while True:
            before = int(kept.sum())
            kept[inner] &= linked[:, inner].any(axis=0)
            kept[own.features] &= linked[own.features].any(axis=1)
            if int(kept.sum()) == before:
                break
            linked &= np.outer(kept, kept)
        return self._part(kept, np.where(linked, matrix, 0.0))

    def _part(self, kept: Bool[np.ndarray, " node"], matrix: Float[np.ndarray, "node node"]) -> "AttributionGraph":
        own = self._layout
        features, errors = (torch.from_numpy(kept[part].copy()) for part in (own.features, own.errors))
        active = self.origin.get("active", None if self.origin.get("pruned") else len(self.features))
        return AttributionGraph(
            self.layers,
            self.tokens,
            self.features[features],
            self.activations[features],
            self.errors[errors],
            self.targets,
            self.probabilities,
            torch.from_numpy(matrix[np.ix_(kept, kept)]).to(self.weights.dtype),
            self.words,
            self.said,
            {**self.origin, "active": active, "pruned": True},
        )

    def strongest(self, count: int) -> list[Link]:
        """The edges that most of the influence goes along, strongest first; only those along which any goes."""
        heard = _Heard.of(self.weights)
        shares = heard.shares() * (_influence(self._layout, heard, self._weighted) + self._weighted)[:, None]
        order = np.argsort(-shares, axis=None, kind="stable")[: max(0, count)]
        found = []
        for place in order.tolist():
            target, source = divmod(place, len(shares))
            if shares[target, source] > 0:
                share, weight = float(shares[target, source]), float(self.weights[target, source])
                found.append(Link(self.nodes[source], self.nodes[target], weight, share))
        return found

    @cached_property
    def _layout(self) -> "_Layout":
        return _Layout.of(self)

    @property
    def _weighted(self) -> Float[np.ndarray, " node"]:
        """The probabilities, at the nodes of targets."""
        found = np.zeros(len(self.weights))
        found[self._layout.targets] = self.probabilities.double().numpy()
        return found

    def __repr__(self) -> str:
        edges = int((self.weights != 0).sum())
        return (
            f"AttributionGraph({self.origin.get('model') or 'a model'}, {self.positions} tokens, "
            f"{len(self.features):,} features, {len(self.errors):,} errors, {len(self.targets)} targets, {edges:,} "
            "edges)"
        )


@dataclass(frozen=True)
class _Layout:
    """Where the nodes of each kind are, and their layers and positions; embeddings are in layer -1."""

    features: slice
    errors: slice
    embeddings: slice
    targets: slice
    layer: Int[np.ndarray, " node"]
    position: Int[np.ndarray, " node"]

    @classmethod
    def of(cls, graph: AttributionGraph) -> "_Layout":
        """That of a graph."""
        sizes = [len(graph.features), len(graph.errors), graph.positions, len(graph.targets)]
        first, second, third, fourth = (int(end) for end in np.cumsum(sizes))
        features, errors = graph.features.numpy(), graph.errors.numpy()
        aside, last = np.full(graph.positions, -1), np.full(len(graph.targets), graph.layers)
        places = [np.arange(graph.positions), np.full(len(graph.targets), graph.positions - 1)]
        return cls(
            features=slice(0, first),
            errors=slice(first, second),
            embeddings=slice(second, third),
            targets=slice(third, fourth),
            layer=np.concatenate([features[:, 0], errors[:, 0], aside, last]),
            position=np.concatenate([features[:, 1], errors[:, 1], *places]),
        )


@dataclass(frozen=True)
class _Heard:
    """Weights, and how much every node hears in all."""

    weights: Tensor
    total: Float[np.ndarray, " node"]

    @classmethod
    def of(cls, weights: Tensor) -> "_Heard":
        """That of a graph's weights."""
        return cls(weights, weights.double().abs().sum(dim=1).numpy())

    def shares(self, rows: slice | np.ndarray = slice(None)) -> Float[np.ndarray, "row node"]:
        """The absolute weights of some rows, each divided by its sum."""
        found: np.ndarray = self.weights[rows].double().abs().numpy() / np.maximum(self.total[rows], _LEAST)[:, None]
        return found

    def share(self, sources: slice) -> Float[np.ndarray, " node"]:
        """The part of what every node hears that comes from some."""
        part = self.weights[:, sources].double().abs().sum(dim=1).numpy()
        return part / np.maximum(self.total, _LEAST)


def _influence(own: _Layout, heard: _Heard, weighted: Float[np.ndarray, " node"]) -> Float[np.ndarray, " node"]:
    """What reaches the targets from every node; each node's is known once those of all later layers are."""
    found = np.zeros(len(weighted))
    last = int(own.layer.max())
    for layer in range(last, -1, -1):
        rows = np.flatnonzero(own.layer == layer)
        found += (found + weighted)[rows] @ heard.shares(rows)
    return found


def _least(scores: Float[np.ndarray, " score"], share: float) -> float:
    """The smallest score that is kept, so that those kept hold this share of their sum."""
    ordered = np.sort(scores)[::-1]
    if share == 1 or not len(ordered):
        return float(np.nextafter(0, 1))
    place = int(np.searchsorted(np.cumsum(ordered) / ordered.sum(), share))
    return float(ordered[min(place, len(ordered) - 1)])


def _check(given: AttributionGraph) -> None:
    """Raise AssayError unless an attribution graph is one."""
    layers = given.layers
    if isinstance(layers, bool) or not isinstance(layers, int) or layers < 1:
        raise AssayError(f"an attribution graph has layers={layers!r}, which is no whole number of at least 1.")
    counts = {
        "tokens": (None,),
        "features": (None, 3),
        "activations": (len(given.features),),
        "errors": (None, 2),
        "targets": (None,),
        "probabilities": (len(given.targets),),
        "weights": (len(given.features) + len(given.errors) + len(given.tokens) + len(given.targets),) * 2,
    }
    whole = ("tokens", "features", "errors", "targets")
    for name, shape in counts.items():
        tensor = getattr(given, name)
        own = tuple(tensor.shape)
        if len(own) != len(shape) or any(size not in (None, found) for size, found in zip(shape, own, strict=True)):
            wanted = " x ".join("any" if size is None else str(size) for size in shape)
            raise AssayError(f"an attribution graph's {name} have shape {list(own)}, where {wanted} is due.")
        if tensor.is_floating_point() == (name in whole) or tensor.is_complex() or tensor.dtype is torch.bool:
            raise AssayError(f"an attribution graph's {name} are {tensor.dtype}, which is no type of theirs.")
        if not bool(torch.isfinite(tensor).all()):
            raise AssayError(f"an attribution graph's {name} are not all finite.")
    if not len(given.tokens) or not len(given.targets):
        raise AssayError("an attribution graph has at least one token and one target.")
    for name, count in (("words", len(given.tokens)), ("said", len(given.targets))):
        texts = getattr(given, name)
        if texts is not None and len(texts) != count:
            raise AssayError(f"an attribution graph has {len(texts)} {name}, where {count} are due.")
    _check_nodes(given)
    _check_weights(given)


def _check_nodes(given: AttributionGraph) -> None:
    """Raise AssayError for nodes that cannot be, or are there twice."""
    for name, limits in (
        ("tokens", (None,)),
        ("targets", (None,)),
        ("features", (given.layers, given.positions, None)),
        ("errors", (given.layers, given.positions)),
    ):
        own = getattr(given, name).reshape(-1, len(limits))
        for column, limit in zip(own.T, limits, strict=True):
            if len(column) and (int(column.min()) < 0 or int(column.max()) >= (math.inf if limit is None else limit)):
                raise AssayError(
                    f"an attribution graph's {name} go from {int(column.min())} to {int(column.max())}, where its "
                    f"{given.layers} layers and {given.positions} tokens allow "
                    f"{'none below 0' if limit is None else f'0 to {limit - 1}'}."
                )
        if name != "tokens" and len(own) and len(own.unique(dim=0)) < len(own):
            raise AssayError(f"an attribution graph has one of its {name} twice.")
    if bool((given.probabilities < 0).any()) or not float(given.probabilities.sum()) > 0:
        raise AssayError("an attribution graph's probabilities are none: they are not negative, and not all 0.")


def _check_weights(given: AttributionGraph) -> None:
    """Raise AssayError for an edge that goes backwards."""
    own, linked = _Layout.of(given), given.weights != 0
    if bool(linked[own.errors].any()) or bool(linked[own.embeddings].any()):
        raise AssayError("an attribution graph has edges into errors or embeddings, which hear nothing.")
    for what, stage, strict in (("layer", own.layer, True), ("position", own.position, False)):
        for number in np.unique(stage):
            rows = torch.from_numpy(np.flatnonzero(stage == number))
            behind = torch.from_numpy(np.flatnonzero(stage >= number if strict else stage > number))
            if number >= 0 and bool(linked[rows][:, behind].any()):
                other = "there or a later one" if strict else "a later one"
                raise AssayError(
                    f"an attribution graph has edges into {what} {number} from {other}; nothing in a model goes "
                    "backwards."
                )
