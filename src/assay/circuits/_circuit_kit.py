"""Files of circuits of CircuitKIT: which heads and MLPs it takes out, and their scores.

Format after `circuitkit/api.py`, `circuit.py` and `artifacts` of Lexsi-Labs/CircuitKIT at `8e019e4`; none of it is
used here. `circuit.pt` lists the heads and MLPs that are taken *out* (by `get_nodes_to_prune`; its documentation calls
them those of the circuit in places), and `circuit_scores.json` beside it has a score of every one there is. A circuit
here has all edges out of what is left. Graphs that its `to_json` and `to_pt` write are read as EAP-IG's. None of its
files of nodes says whether attention and MLP of the model stand side by side: they are read as if not.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from assay._files import read_bytes
from assay.circuits._graph import Graph
from assay.circuits._stated import OF_NEURONS, Found, Given, check_size, finite_score, name_of, refusal, short

_NODE = re.compile(r"A(\d{1,6})\.(\d{1,6})|MLP (\d{1,6})")
_FIRST = "Resid Start"
"""What its ACDC calls the embeddings, which it never takes out."""

_OF_SCORES = ("task", "model", "algorithm", "algo", "level", "node_scores", "timestamp", "version", "discovery_cfg")


def is_theirs(found: Any) -> bool:
    """Whether something of a file is of CircuitKIT, a graph of EAP-IG's form aside."""
    if isinstance(found, list):
        return bool(found) and all(isinstance(name, str) for name in found)
    return isinstance(found, dict) and any(
        set(keys) <= set(found)
        for keys in (("node_scores",), ("mlp", "heads", "_meta"), ("neurons_scores", "algo"), ("metadata", "nodes"))
    )


def read_nodes(path: Path, found: Any, edges: int | None, groups: int | None) -> Given:
    """The circuit that is left of a list of nodes, or the best nodes of a file of scores.

    Raises AssayError for all else that CircuitKIT writes, and where that does not say which edges.
    """
    if isinstance(found, list):
        beside = path.with_name(f"{path.stem}_scores.json")
        if edges is not None:
            raise refusal(path, f"lists nodes, of which none is better; read {beside.name!r} with edges={edges}.")
        graph, _ = _scored(beside, _beside(path, beside))
        kept = np.ones(len(graph.senders), dtype=bool)
        for name in found:
            place = _place(path, graph, name)
            if not kept[place]:
                raise refusal(path, f"lists {short(name)} twice.")
            kept[place] = False
        return _given(path, _grouped(path, graph, groups), kept, np.arange(len(kept)))
    if "mlp" in found or "neurons_scores" in found:
        raise refusal(path, OF_NEURONS)
    if "node_scores" not in found:
        raise refusal(
            path,
            "is a CircuitArtifact, whose scores are cut at 1 and which has no edges of queries, keys and values; give "
            "circuit.pt with circuit_scores.json beside it, or what Graph.to_json wrote.",
        )
    graph, scores = _scored(path, found)
    if edges is None:
        raise refusal(
            path, "has scores of nodes and not which are in the circuit; say how many edges to take: edges=200."
        )
    if np.isnan(scores).any():
        raise refusal(path, "has no scores of MLPs, so that it does not say which are in a circuit of so many edges.")
    return _best(path, _grouped(path, graph, groups), scores, edges)


def _beside(path: Path, beside: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(read_bytes(beside))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or "node_scores" not in found:
        raise refusal(
            path,
            f"lists nodes that CircuitKIT takes out, and not of which model; put its {beside.name!r} beside it.",
        )
    return found


def _scored(path: Path, found: Mapping[str, Any]) -> tuple[Graph, Float[np.ndarray, " sender"]]:
    """The graph of a file of scores, and the score of every sender: infinite for the embeddings, NaN where it has none.

    Raises AssayError where heads are missing: there are as many in every layer.
    """
    extra = [key for key in found if key not in _OF_SCORES]
    scores = found["node_scores"]
    if extra or found.get("level", "node") != "node" or not isinstance(scores, dict) or not scores:
        what = f"{short(extra[0])}, which is not known" if extra else "no scores of nodes by name"
        raise refusal(path, f"has {what}; CircuitKIT writes node_scores of level 'node'.")
    if found.get("version", "1.0") != "1.0":
        raise refusal(path, f"has version {short(found['version'])} of CircuitKIT's scores, and Assay reads '1.0'.")
    parsed = {name: _NODE.fullmatch(name) if isinstance(name, str) else None for name in scores if name != _FIRST}
    for name, match in parsed.items():
        if match is None:
            raise refusal(path, f"has a score of {short(name)}, which is no head ('A0.1') and no MLP ('MLP 0').")
    heads = {(int(match[1]), int(match[2])) for match in parsed.values() if match is not None and match[1]}
    mlps = {int(match[3]) for match in parsed.values() if match is not None and match[3]}
    if not heads:
        raise refusal(path, "has no scores of heads, so that it does not say how many there are.")
    layers, count = (1 + max(place[axis] for place in heads) for axis in (0, 1))
    graph = check_size(path, Graph(layers, count, count))
    if len(heads) < layers * count or mlps not in (set(), set(range(layers))):
        raise refusal(path, f"has scores of {len(heads)} heads and {len(mlps)} MLPs, of {layers} layers not all.")
    values = np.full(len(graph.senders), np.nan)
    values[0] = np.inf
    for name in parsed:
        values[_place(path, graph, name)] = finite_score(path, name, scores[name])
    return graph, values


def _place(path: Path, graph: Graph, name: Any) -> int:
    """The sender that a node is."""
    match = _NODE.fullmatch(name) if isinstance(name, str) else None
    layer, head = (None, None) if match is None else (int(match[1] or match[3]), int(match[2]) if match[2] else None)
    if layer is None or layer >= graph.layers or (head or 0) >= graph.heads:
        raise refusal(
            path, f"lists {short(name)}, which a model of {graph.layers} layers of {graph.heads} heads has not."
        )
    return graph.sender(layer, head)


def _grouped(path: Path, graph: Graph, groups: int | None) -> Graph:
    if groups is None:
        return graph
    if graph.heads % groups:
        raise refusal(path, f"has {graph.heads} heads a layer, which cannot share keys and values in {groups} groups.")
    return replace(graph, groups=groups)


def _best(path: Path, graph: Graph, scores: Float[np.ndarray, " sender"], edges: int) -> Given:
    """The best senders with all edges out of them, as long as they fit; the embeddings first."""
    order = np.argsort(-scores, kind="stable")
    counts = graph.exists.sum(axis=1)
    if edges < counts[0]:
        raise refusal(
            path, f"has scores of nodes, and the embeddings alone have {counts[0]} edges; edges={edges} is too few."
        )
    kept = np.zeros(len(counts), dtype=bool)
    left = edges
    for sender in order:
        kept[sender] = counts[sender] <= left
        left -= int(counts[sender]) if kept[sender] else 0
    return _given(path, graph, kept, order)


def _given(path: Path, graph: Graph, kept: Bool[np.ndarray, " sender"], order: np.ndarray) -> Given:
    names = [
        f"{graph.senders[sender]} -> {graph.receivers[receiver]}"
        for sender in order[kept[order]]
        for receiver in np.flatnonzero(graph.exists[sender])
    ]
    return Given(tuple(names), Found(graph), name_of(path))
