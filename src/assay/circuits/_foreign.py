"""Files of circuits of other tools: EAP-IG (and the benchmark MIB, which took it over) and auto-circuit.

Formats after the code of hannamw/EAP-IG and of auto-circuit 1.0.1; none of it is used here. Both score an edge by how
much a loss changes when it is ablated, and we by how much m does: signs are turned, both ways. Both have keys and
values for every query head, also where heads share them.
"""

import io
import json
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay._errors import AssayError
from assay._files import check_growth
from assay.circuits._acdc import is_subgraph, read_subgraph
from assay.circuits._graph import Graph
from assay.circuits._stated import (
    OF_FEATURES,
    OF_NEURONS,
    Scored,
    Stated,
    apart,
    check_size,
    finite_score,
    ranks,
    refusal,
    short,
    write,
)

_NEURONS = ("neurons", "neurons_scores", "neurons_in_graph")
_OF_AUTO_CIRCUIT = re.compile(r"blocks\.(\d{1,6})\.hook_(\w+)")

_OTHER_GRAPHS = {
    "attn_in": "one score for queries, keys and values together; patch the model with separate_qkv=True",
    "resid_mid": "scores of a graph that is not factorized; patch the model with factorized=True",
}

MIB_SHARES = (1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Thousandths of all edges that the nine circuits of a submission to MIB have at most."""


def is_torch(data: bytes) -> bool:
    """Whether a file is one of `torch.save`, by how it begins."""
    return data.startswith((b"PK\x03\x04", b"\x80"))


def unpickled(path: Path, data: bytes) -> Any:
    """What `torch.save` wrote, plain values and tensors only. Raises AssayError for anything else."""
    if b"circuit_tracer" in data and b"adjacency_matrix" in data:
        raise refusal(path, OF_FEATURES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_growth(path)
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (AssayError, MemoryError):
        raise
    except Exception as error:  # a damaged archive may raise anything
        raise refusal(
            path,
            f"is no file of a circuit ({type(error).__name__} in torch.load, which reads tensors and plain values "
            "only); write it again by EAP-IG's to_pt, by torch.save(prune_scores, path), or by ACDC's save_subgraph "
            "(save_edges pickles objects).",
        ) from None


def read_torch(path: Path, found: Any) -> tuple[Scored, int | None]:
    """Scores of what `torch.save` wrote, and in how many groups heads share keys and values, if it says so."""
    if isinstance(found, dict) and "cfg" in found:
        return _matrices(path, found)
    if isinstance(found, dict) and is_subgraph(found):
        return read_subgraph(path, found), None
    if isinstance(found, dict) and found and all(isinstance(value, Tensor) for value in found.values()):
        return _prune_scores(path, found), None
    inner = "; give the scores of one task and one method" if isinstance(found, dict) else ""
    raise refusal(
        path, f"holds a {type(found).__name__}, and neither a circuit of EAP-IG or ACDC nor PruneScores{inner}."
    )


# -- EAP-IG and MIB -------------------------------------------------------------------------------------------------


def _names(graph: Graph) -> tuple[list[str], list[str]]:
    """What EAP-IG calls the senders and receivers of a graph whose keys and values are by head."""
    senders, receivers = ["input"], []
    for layer in range(graph.layers):
        heads = [f"a{layer}.h{head}" for head in range(graph.heads)]
        senders += [*heads, f"m{layer}"]
        receivers += [f"{head}<{letter}>" for letter in "qkv" for head in heads]
        receivers.append(f"m{layer}")
    return senders, [*receivers, "logits"]


def _graph(path: Path, config: Any) -> tuple[Graph, int | None, int | None]:
    """The graph of a `cfg`, the width, and the groups of keys and values, if it says so."""
    if not isinstance(config, Mapping):
        raise refusal(path, f"has a cfg that is a {type(config).__name__}, not an object.")
    numbers: list[int | None] = []
    for name in ("n_layers", "n_heads", "d_model", "n_key_value_heads"):
        value = config.get(name)
        optional = name.startswith(("d_", "n_key"))
        if (value is None and not optional) or (value is not None and (type(value) is not int or value < 1)):
            raise refusal(path, f"has cfg.{name}: {short(value)}, which is no whole number of at least 1.")
        numbers.append(value)
    layers, heads, width, groups = numbers
    parallel = config.get("parallel_attn_mlp", False)
    if type(parallel) is not bool:
        raise refusal(path, f"has cfg.parallel_attn_mlp: {short(parallel)}, which is neither true nor false.")
    assert layers is not None
    assert heads is not None
    return check_size(path, Graph(layers, heads, heads, parallel)), width, groups


def read_json(path: Path, found: dict[str, Any]) -> tuple[Scored, int | None]:
    """Scores and circuit of a file of EAP-IG's `to_json`, and the groups of keys and values, if it says so."""
    _check_keys(path, found, ("cfg", "nodes", "edges"))
    graph, width, groups = _graph(path, found["cfg"])
    senders, receivers = ({name: place for place, name in enumerate(names)} for names in _names(graph))
    nodes, edges = found["nodes"], found["edges"]
    if not isinstance(nodes, dict) or not isinstance(edges, dict):
        raise refusal(path, "has nodes or edges that are no objects by name.")
    for name, node in nodes.items():
        if name not in senders and name != "logits":
            raise refusal(path, f"has the node {short(name)}, which a model of its cfg has not.")
        if isinstance(node, dict) and any(key in node for key in _NEURONS):
            raise refusal(path, OF_NEURONS)
    kept = np.zeros(graph.shape, dtype=bool)
    scores = np.full(graph.shape, np.nan)
    for name, edge in edges.items():
        sender, _, receiver = name.partition("->")
        place = senders.get(sender, -1), receivers.get(receiver, -1)
        if min(place) < 0 or not graph.exists[place]:
            raise refusal(path, f"has the edge {short(name)}, which a model of its cfg has not.")
        if (
            not isinstance(edge, dict)
            or type(edge.get("in_graph")) is not bool
            or not set(edge) <= {"in_graph", "score"}
        ):
            raise refusal(
                path, f"has the edge {short(name)}: {short(edge)}; it needs in_graph (true or false) and score."
            )
        kept[place] = edge["in_graph"]
        scores[place] = math.nan if edge.get("score") is None else finite_score(path, name, edge["score"])
    return Scored(graph, kept, _turned(scores), width), groups


def _turned(scores: Float[np.ndarray, "sender receiver"]) -> Float[np.ndarray, "sender receiver"] | None:
    """Scores with our sign; none where all are 0, as EAP-IG writes a circuit that nothing was scored for."""
    return 0.0 - scores if np.nan_to_num(scores).any() else None


def _matrices(path: Path, found: dict[Any, Any]) -> tuple[Scored, int | None]:
    """What EAP-IG's `to_pt` wrote."""
    if any(key in found for key in _NEURONS):
        raise refusal(path, OF_NEURONS)
    needed = ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph")
    _check_keys(path, found, needed, ("nodes_scores",))
    graph, width, groups = _graph(path, found["cfg"])
    for name, own in zip(("src_nodes", "dst_nodes"), _names(graph), strict=True):
        if not isinstance(found[name], list) or found[name] != own:
            raise refusal(path, f"has {name} that are not those of a model of its cfg, or in another order.")
    scores = _array(path, "edges_scores", found["edges_scores"], graph.shape)
    kept = _array(path, "edges_in_graph", found["edges_in_graph"], graph.shape)
    if kept.dtype != bool or scores.dtype == bool:
        raise refusal(path, "has edges_in_graph that are not true or false, or edges_scores that are.")
    # A circuit that was cut by nodes has marks where there is no edge.
    finite = _finite(path, scores, graph.exists)
    return Scored(graph, kept & graph.exists, _turned(finite), width), groups


def _check_keys(path: Path, found: Mapping[Any, Any], needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    missing = [name for name in needed if name not in found]
    extra = [name for name in found if name not in needed and name not in optional]
    if missing or extra:
        what = f"has no {missing[0]}" if missing else f"has {short(extra[0])}, which is not known"
        raise refusal(path, f"is no circuit of EAP-IG: it {what}; it needs {', '.join(needed)}.")


def _array(path: Path, name: str, value: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """A tensor as an array. Raises AssayError for one of another shape, or that is no plain tensor of numbers."""
    plain = type(value) in (Tensor, torch.nn.Parameter) and value.layout is torch.strided and value.device.type == "cpu"
    if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise refusal(path, f"has {short(name)} that is no plain tensor.")
    if shape is not None and tuple(value.shape) != shape:
        raise refusal(path, f"has {short(name)} of shape {short(list(value.shape))}, not {list(shape)}.")
    if value.is_complex() or value.is_quantized:
        raise refusal(path, f"has {short(name)} of {value.dtype}, not of numbers.")
    numbers = value.detach().resolve_neg()
    return numbers.numpy() if value.dtype is torch.bool else numbers.double().numpy()


def _finite(
    path: Path, scores: Float[np.ndarray, "*shape"], exists: Bool[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    if not np.isfinite(scores[exists]).all():
        raise refusal(path, "has scores that are not finite.")
    return np.where(exists, scores, np.nan)


# -- auto-circuit ---------------------------------------------------------------------------------------------------


def _prune_scores(path: Path, found: dict[Any, Tensor]) -> Scored:
    """Scores by module of auto-circuit, `PruneScores`."""
    parts: dict[tuple[int, str], np.ndarray] = {}
    for name, value in found.items():
        match = _OF_AUTO_CIRCUIT.fullmatch(name) if isinstance(name, str) else None
        if match is not None and match[2] in _OTHER_GRAPHS:
            raise refusal(path, f"has {_OTHER_GRAPHS[match[2]]}.")
        if match is None or match[2] not in ("q_input", "k_input", "v_input", "mlp_in", "resid_post"):
            raise refusal(
                path, f"has scores of the module {short(name)}; those of a decoder's heads and MLPs are read."
            )
        parts[int(match[1]), match[2]] = _array(path, str(name), value)
    layers = 1 + max(layer for layer, _ in parts)
    queries = parts.get((0, "q_input"))
    if queries is None or queries.ndim != 2:
        by_position = queries is not None and queries.ndim == 3
        raise refusal(
            path,
            "has scores by position; make them with seq_len=None."
            if by_position
            else "has no scores of the queries of layer 0 by head and sender.",
        )
    heads = len(queries)
    first = parts.get((0, "mlp_in"))
    graph = check_size(path, Graph(layers, heads, heads, parallel=first is not None and first.shape == (1,)))
    scores = np.full(graph.shape, np.nan)
    for (layer, name), columns in _modules(graph).items():
        heard = graph.heard[columns.start]
        shape = (heard,) if name in ("mlp_in", "resid_post") else (heads, heard)
        own = parts.pop((layer, name), None)
        if own is None or own.shape != shape or own.dtype == bool:
            what = "nothing" if own is None else f"scores of shape {list(own.shape)}"
            raise refusal(
                path,
                f"has {what} for blocks.{layer}.hook_{name}, where a model of {layers} layers of {heads} heads "
                f"has scores of shape {list(shape)}.",
            )
        scores[:heard, columns] = own.reshape(-1, heard).T
    if parts:
        layer, name = next(iter(parts))
        raise refusal(path, f"has scores of blocks.{layer}.hook_{name}, which is nothing that is read.")
    return Scored(graph, None, _turned(_finite(path, scores, graph.exists)))


def _modules(graph: Graph) -> dict[tuple[int, str], slice]:
    """The receivers of every module that auto-circuit has scores of, in a graph whose keys and values are by head."""
    found: dict[tuple[int, str], slice] = {}
    for layer in range(graph.layers):
        start = graph.reading(layer).start
        for place, letter in enumerate("qkv"):
            found[layer, f"{letter}_input"] = slice(start + place * graph.heads, start + (place + 1) * graph.heads)
        found[layer, "mlp_in"] = slice(graph.mlp(layer), graph.mlp(layer) + 1)
    found[graph.layers - 1, "resid_post"] = slice(graph.logits, graph.logits + 1)
    return found


# -- writing --------------------------------------------------------------------------------------------------------


class _ByHead:
    """A circuit as other tools have it: keys and values by head, scores that say by how much a loss rises."""

    def __init__(self, stated: Stated) -> None:
        graph, given = stated.given.found.graph.counted, stated.given
        _check_by_head(graph)
        self.graph = Graph(graph.layers, graph.heads, graph.heads, graph.parallel)
        self.width = given.found.width
        self.scores = np.zeros(self.graph.shape)
        if stated.scores is not None:
            share = graph.heads // graph.groups
            shared = np.array([len(fed) if fed else 1 for fed in graph.heads_of])
            assert set(shared) <= {1, share}
            self.scores = np.nan_to_num(apart(graph, ranks(stated.scores, "helpful", given.measure) / shared))
        self.kept: np.ndarray = apart(graph, stated.kept)
        pruned = stated.given.found.graph.pruned(stated.kept)
        self.nodes: list[bool] = [bool(row.any()) for row in pruned]


def _check_by_head(graph: Graph) -> None:
    """Raise AssayError for a graph whose keys, values or queries are not those of heads."""
    if graph.latent or graph.latent_queries:
        raise AssayError(
            "other tools have edges into the queries, keys and values of heads, and this model makes them of a latent "
            "of all heads; write the circuit with format='assay'."
        )


def write_eap_ig(stated: Stated, path: Path) -> None:
    """Write a circuit as EAP-IG does, into JSON or, where the name ends in .pt, with `torch.save`.

    Raises AssayError if the width of the model is not known.
    """
    own = _ByHead(stated)
    if own.width is None:
        raise AssayError(
            "a file of EAP-IG has the width of the model, which is not known of this circuit; call apply(subject)."
        )
    senders, receivers = _names(own.graph)
    config = {
        "n_layers": own.graph.layers,
        "n_heads": own.graph.heads,
        "parallel_attn_mlp": own.graph.parallel,
        "d_model": own.width,
    }
    if path.suffix == ".pt":
        matrices = {
            "edges_scores": torch.from_numpy(own.scores).float(),
            "edges_in_graph": torch.from_numpy(own.kept),
            "nodes_in_graph": torch.tensor(own.nodes),
        }
        plain = {"cfg": config, "src_nodes": senders, "dst_nodes": receivers, **matrices}
        write(path, lambda temporary: torch.save(plain, temporary))
        return
    edges = {
        f"{senders[sender]}->{receivers[receiver]}": {
            "score": float(own.scores[sender, receiver]),
            "in_graph": bool(own.kept[sender, receiver]),
        }
        for sender, receiver in np.argwhere(own.graph.exists)
    }
    nodes = {name: {"in_graph": inside} for name, inside in zip(senders, own.nodes, strict=True)}
    text = json.dumps({"cfg": config, "nodes": {**nodes, "logits": {"in_graph": True}}, "edges": edges})
    write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_auto_circuit(stated: Stated, path: Path) -> None:
    """Write the scores of a circuit's edges as auto-circuit has them; 1 for its edges where they have no scores."""
    own = _ByHead(stated)
    scores = own.kept.astype(np.float64) if stated.scores is None else own.scores
    found: dict[str, Tensor] = {}
    for (layer, name), columns in _modules(own.graph).items():
        values = torch.from_numpy(scores[: own.graph.heard[columns.start], columns].T.copy()).float()
        found[f"blocks.{layer}.hook_{name}"] = values[0] if name in ("mlp_in", "resid_post") else values
    write(path, lambda temporary: torch.save(found, temporary))


def mib_circuits(stated: Stated, form: Literal["json", "pt"]) -> dict[str, Stated]:
    """The nine circuits of a submission to MIB by file name: the best edges, as many as a share of all allows.

    Edges are counted as MIB does, with keys and values by head. Raises AssayError unless enough edges have scores.
    """
    graph, given, scores = stated.given.found.graph.counted, stated.given, stated.scores
    _check_by_head(graph)
    values = np.full(0, np.nan) if scores is None else ranks(scores, given.rank, given.measure)[graph.exists]
    size = int(apart(graph, graph.exists).sum())
    places = np.argwhere(graph.exists)
    shared = np.array([max(1, len(fed)) for fed in graph.heads_of])[places[:, 1]]
    known = int(shared[np.flatnonzero(np.isfinite(values))].sum())
    most = size * MIB_SHARES[-1] // 1000
    if known < most:
        raise AssayError(
            f"a submission to MIB has up to half of all {size:,} edges, the best first, and of this circuit {known:,} "
            "have scores; find it (Circuit(edges=200)), or read a file of scores with edges= all of them."
        )
    order = np.argsort(-values, kind="stable")
    counts = np.cumsum(shared[order])
    found: dict[str, Stated] = {}
    for share in MIB_SHARES:
        kept = np.zeros(graph.shape, dtype=bool)
        kept[tuple(places[order[: int(np.searchsorted(counts, size * share // 1000, side="right"))]].T)] = True
        found[f"{share / 10:g}.{form}"] = stated._replace(kept=kept)
    return found
