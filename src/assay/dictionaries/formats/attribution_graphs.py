"""Attribution graphs in the two formats of circuit-tracer: `Graph.to_pt`, and the JSON files of its front end.

After the code of circuit-tracer 0.5.0 and its issue 78; none of it is used here. A .pt file holds tensors, plain values
and objects of two of its classes; these are read as values by name. In JSON, nodes have ids and links name them:

| node | id | `feature` | `layer` |
|---|---|---|---|
| feature f of layer l at position p | l_f_p | (l + f)(l + f + 1) / 2 + f | l |
| error of layer l at p | 0_l_p up to version 0.5, l_-1_p since | -1 | l |
| embedding of token t at p | E_t_p | p | E |
| logit of token t | (layers + 1)_t_p | t | layers + 1 |

So the error of layer l has the id of feature l of layer 0, where that is on.
"""

import io
import itertools
import json
import math
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from assay._errors import AssayError
from assay._files import check_growth
from assay.dictionaries._attribution_graph import AttributionGraph, Node
from assay.dictionaries.formats._shared import refusal, short

FORMAT = "circuit-tracer"

SCHEMA = 1
"""The version of the JSON files that is read; none said is this one."""

LARGEST = 2**53
"""Numbers of tokens and features are below."""

MOST_NODES = 20_000
"""Of a JSON file: weights are a matrix of all nodes."""

_CHANNELS = {
    "cross layer transcoder": "feature",
    "mlp reconstruction error": "error",
    "embedding": "embedding",
    "logit": "target",
}
"""What nodes are called in JSON."""


class _Target(NamedTuple):
    token: str
    number: int


class _Config:
    """The sizes of a model, as attributes."""


_STANDING_IN = {
    "circuit_tracer.attribution.targets.LogitTarget": _Target,
    "circuit_tracer.utils.tl_nnsight_mapping.UnifiedConfig": _Config,
}
"""What takes the places of circuit-tracer's own classes in a .pt file: names for values, and no code."""

_NEEDED = {
    "input_string", "adjacency_matrix", "cfg", "active_features", "logit_targets", "logit_probabilities",
    "input_tokens", "selected_features", "activation_values",
}  # fmt: skip


def read(path: Path) -> AttributionGraph:
    """The graph of a file. Raises AssayError for anything else."""
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise refusal(path, f"cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    parts = _of_torch(path, data) if data.startswith(b"PK\x03\x04") else _of_json(path, data)
    try:
        return AttributionGraph(**parts)
    except AssayError as error:
        raise refusal(path, f"is damaged or was changed: {error}") from None


# -- .pt ------------------------------------------------------------------------------------------------------------


def _of_torch(path: Path, data: bytes) -> dict[str, Any]:
    found = _loaded(path, data)
    missing = sorted(_NEEDED - set(found))
    extra = sorted(map(str, set(found) - _NEEDED - {"vocab_size", "scan", "scan_name"}))
    if missing or extra:
        what = f"has no {missing[0]}" if missing else f"has {short(extra[0])}, which is not known"
        raise refusal(path, f"is no graph of circuit-tracer: it {what}; write it again by Graph.to_pt of version 0.5.")
    config = vars(found["cfg"]) if isinstance(found["cfg"], _Config) else {}
    layers = config.get("n_layers")
    if type(layers) is not int or not 1 <= layers < 10_000:
        raise refusal(path, f"has cfg.n_layers: {short(layers)}, which is no number of layers.")
    tokens = _tensor(path, found, "input_tokens", len(data), 1)
    active = _tensor(path, found, "active_features", len(data), 2)
    chosen = _tensor(path, found, "selected_features", len(data), 1)
    values = _tensor(path, found, "activation_values", len(data), 1)
    for name, own in (("input_tokens", tokens), ("active_features", active), ("selected_features", chosen)):
        if own.dtype not in (torch.int64, torch.int32):
            raise refusal(path, f"has {name} of {own.dtype}; they are whole numbers.")
    if active.shape[1] != 3 or len(values) != len(active):
        raise refusal(
            path,
            f"has active_features of shape {list(active.shape)} and {len(values)} activation_values; each feature has "
            "a layer, a position, a number and one value.",
        )
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(active):
        raise refusal(path, f"has selected_features that are not all among its {len(active)} active ones.")
    targets = _targets(path, found["logit_targets"], len(data))
    known = [config.get(key) for key in ("model_name", "original_architecture")]
    scan = found.get("scan", found.get("scan_name"))
    count = len(tokens)
    errors = torch.stack([torch.arange(layers).repeat_interleave(count), torch.arange(count).repeat(layers)], dim=1)
    return {
        "layers": layers,
        "tokens": tokens,
        "features": active[chosen.long()],
        "activations": values[chosen.long()].float(),
        "errors": errors,
        "targets": torch.tensor([one.number for one in targets], dtype=torch.long),
        "probabilities": _tensor(path, found, "logit_probabilities", len(data), 1).float(),
        "weights": _tensor(path, found, "adjacency_matrix", len(data), 2).float(),
        "said": [one.token for one in targets] if any(one.token for one in targets) else None,
        "origin": {
            "format": FORMAT,
            "model": next((name for name in known if isinstance(name, str)), None),
            "scan": scan if isinstance(scan, str) else None,
            "prompt": found["input_string"] if isinstance(found["input_string"], str) else None,
            "active": len(active),
            "pruned": False,
        },
    }


def _loaded(path: Path, data: bytes) -> dict[str, Any]:
    """What `Graph.to_pt` wrote. Raises AssayError for anything else, all that would run code included."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_growth(path)
            others = set(get_unsafe_globals_in_checkpoint(io.BytesIO(data))) - set(_STANDING_IN)
            if not others:
                with safe_globals([(stand_in, name) for name, stand_in in _STANDING_IN.items()]):
                    found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (AssayError, MemoryError):
        raise
    except Exception as error:  # a damaged or hostile archive may raise anything
        raise refusal(path, f"is no graph of circuit-tracer, or a damaged one ({type(error).__name__}).") from None
    if others:
        raise refusal(
            path,
            f"holds objects of {short(min(others))}, which would run code of its own; a graph that an early version of "
            "circuit-tracer wrote is read and written again by version 0.5 (Graph.from_pt(path).to_pt(path)).",
        )
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise refusal(path, f"holds a {type(found).__name__}, not a graph of circuit-tracer.")
    return found


def _tensor(path: Path, found: Mapping[str, Any], name: str, size: int, axes: int) -> Tensor:
    """A plain tensor. Raises AssayError for anything else."""
    value = found[name]
    plain = type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided and value.device.type == "cpu"
    # A tensor may be declared larger than what it lies in, by repeating it: none of a graph is.
    odd = plain and (value.is_complex() or value.is_quantized or value.dtype is torch.bool)
    if not plain or odd or value.dim() != axes or value.numel() * value.element_size() > size:
        what = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise refusal(path, f"has {name} ({what}) that is no plain tensor of {axes} axes.")
    return value.detach().resolve_neg()


def _targets(path: Path, given: object, size: int) -> list[_Target]:
    """What is explained. Raises AssayError for anything else."""
    if isinstance(given, Tensor):
        numbers = _tensor(path, {"logit_targets": given}, "logit_targets", size, 1)
        given = [_Target("", number) for number in numbers.tolist()]
    if not isinstance(given, list) or not all(
        isinstance(one, _Target) and type(one.number) is int and one.number < LARGEST and isinstance(one.token, str)
        for one in given
    ):
        raise refusal(path, "has logit_targets that are no list of tokens with their numbers.")
    return given


# -- JSON -----------------------------------------------------------------------------------------------------------


def _of_json(path: Path, data: bytes) -> dict[str, Any]:
    found = _parsed(path, data)
    meta = found["metadata"]
    version = meta.get("schema_version")
    if version not in (None, SCHEMA) or isinstance(version, bool):
        raise refusal(path, f"has schema_version {short(version)}, and {SCHEMA} is read; draw the graph again.")
    if len(found["nodes"]) > MOST_NODES:
        raise refusal(path, f"has {len(found['nodes']):,} nodes, and up to {MOST_NODES:,} are read; prune it more.")
    read_nodes = [_node(path, node) for node in found["nodes"]]
    order = sorted(range(len(read_nodes)), key=lambda place: _rank(read_nodes[place].node))
    nodes = _Nodes([read_nodes[place] for place in order])
    layers, count = nodes.check(path)
    weights = torch.zeros(len(order), len(order))
    for source, target, weight in nodes.links(path, found["links"]):
        weights[target, source] = weight
    own = {kind: [one for one in nodes.all if one.node.kind == kind] for kind in _CHANNELS.values()}
    words, prompt = meta.get("prompt_tokens"), meta.get("prompt")
    if not isinstance(words, list) or len(words) != count or not all(isinstance(word, str) for word in words):
        raise refusal(path, f"has prompt_tokens that are not the texts of its {count} tokens.")
    features = [(one.node.layer, one.node.position, one.node.number) for one in own["feature"]]
    return {
        "layers": layers,
        "tokens": torch.tensor([one.node.number for one in own["embedding"]], dtype=torch.long),
        "features": torch.tensor(features, dtype=torch.long).reshape(-1, 3),
        "activations": torch.tensor([one.value for one in own["feature"]], dtype=torch.float32),
        "errors": torch.tensor([one.node[1:3] for one in own["error"]], dtype=torch.long).reshape(-1, 2),
        "targets": torch.tensor([one.node.number for one in own["target"]], dtype=torch.long),
        "probabilities": torch.tensor([one.value for one in own["target"]], dtype=torch.float32),
        "weights": weights,
        "words": words,
        "said": _said(found["nodes"]),
        "origin": {
            "format": FORMAT,
            "scan": meta.get("scan") if isinstance(meta.get("scan"), str) else None,
            "prompt": prompt if isinstance(prompt, str) else None,
            "pruned": True,
        },
    }


def is_graph(found: object) -> bool:
    """Whether a parsed JSON file is laid out as a graph of circuit-tracer's front end."""
    return isinstance(found, dict) and isinstance(found.get("nodes"), list) and isinstance(found.get("links"), list)


def _parsed(path: Path, data: bytes) -> dict[str, Any]:
    """JSON of a graph. Raises AssayError for anything else, numbers that are none among it."""

    def no_number(name: str) -> None:
        raise refusal(path, f"holds {name}, which is no number.")

    try:
        found = json.loads(data, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise refusal(path, f"is no graph of circuit-tracer ({type(error).__name__}: neither .pt nor JSON).") from None
    if not is_graph(found) or not isinstance(found.get("metadata"), dict):
        raise refusal(path, "is no graph of circuit-tracer: it needs metadata, nodes and links.")
    return dict(found)


class _Read(NamedTuple):
    """A node of a file: its id there, what it is, and its activation or probability."""

    name: str
    node: Node
    value: float


_ORDER = {"feature": 0, "error": 1, "embedding": 2, "target": 3}


def _rank(node: Node) -> tuple[int, ...]:
    """Where a node stands in a graph; targets stay as they are listed."""
    return (_ORDER[node.kind], *((0, 0, 0) if node.kind == "target" else node[1:]))


def _node(path: Path, given: object) -> _Read:
    """A node of a file. Raises AssayError for one that does not fit its id."""
    if not isinstance(given, dict):
        raise refusal(path, f"has a node that is {short(given)}, no object.")
    name, kind = given.get("node_id"), _CHANNELS.get(str(given.get("feature_type")))
    if not isinstance(name, str) or kind is None:
        raise refusal(
            path, f"has the node {short(name)} of the type {short(given.get('feature_type'))}, which is none that is "
            f"known: {', '.join(_CHANNELS)}."
        )  # fmt: skip
    position, feature, layer = given.get("ctx_idx"), given.get("feature"), given.get("layer")
    parts = name.split("_")
    try:
        first, second, third = (-1 if part == "E" else int(part) for part in parts)
        depth = -1 if layer == "E" else int(str(layer))
    except ValueError:
        raise refusal(path, f"has the node {short(name)}, whose id is not of three numbers.") from None
    fits = type(position) is int and type(feature) is int and third == position
    fits = fits and max(map(abs, (first, second, third, depth))) < LARGEST
    match kind:
        case "feature":
            fits = fits and first == depth and feature == (depth + second) * (depth + second + 1) // 2 + second
            number = second
        case "error":
            fits = fits and feature == -1 and (first, second) in ((0, depth), (depth, -1))
            number = -1
        case "embedding":
            fits = fits and parts[0] == "E" and layer == "E" and feature == position
            number = second
        case _:
            fits = fits and first == depth and feature == second
            number, depth = second, depth - 1
    if not fits:
        where = {key: given.get(key) for key in ("layer", "ctx_idx", "feature")}
        raise refusal(path, f"has the node {short(name)} ({kind}) with {short(where)}, which do not fit its id.")
    value = 0.0
    if kind in ("feature", "target"):
        value = _number(path, name, given.get("activation" if kind == "feature" else "token_prob"))
    assert isinstance(position, int)
    return _Read(name, Node(kind, depth, position, number), value)


_OUTPUT = re.compile(r'Output "(.*)" \(p=[\d.]+\)', re.DOTALL)
"""What circuit-tracer writes of a logit, its text among it."""


def _said(given: Sequence[dict[str, Any]]) -> list[str] | None:
    """The texts of the logits, in order; None unless each has one."""
    found = [_OUTPUT.fullmatch(str(node.get("clerp"))) for node in given if node.get("feature_type") == "logit"]
    return [match[1] for match in found if match] if all(found) else None


def _number(path: Path, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 3e38:
        raise refusal(path, f"has {short(value)} at {short(name)}, which is no finite number.")
    return float(value)


@dataclass(frozen=True)
class _Nodes:
    """The nodes of a file, in the order of a graph."""

    all: Sequence[_Read]

    def check(self, path: Path) -> tuple[int, int]:
        """The numbers of layers and of tokens. Raises AssayError unless the nodes are those of a graph."""
        twice = [one for one, count in Counter(one.node for one in self.all).items() if count > 1]
        if twice:
            raise refusal(path, f"has the node of {twice[0]} twice.")
        layers = {one.node.layer for one in self.all if one.node.kind == "target"}
        positions = [one.node.position for one in self.all if one.node.kind == "embedding"]
        if len(layers) != 1 or not positions or positions != list(range(len(positions))):
            raise refusal(
                path, "has no logits, logits of several layers, or embeddings that are not those of all its positions."
            )
        return layers.pop(), len(positions)

    def links(self, path: Path, given: Sequence[object]) -> list[tuple[int, int, float]]:
        """Source, target and weight of every link. Raises AssayError where one does not fit, or may be one of two."""
        by_name: dict[str, list[int]] = defaultdict(list)
        for place, one in enumerate(self.all):
            by_name[one.name].append(place)
        into: dict[int, list[tuple[str, tuple[int, ...], float]]] = defaultdict(list)
        for link in given:
            if not isinstance(link, dict) or not {"source", "target", "weight"} <= set(link):
                raise refusal(path, f"has the link {short(link)}; each has a source, a target and a weight.")
            source, target = str(link["source"]), str(link["target"])
            heard = [place for place in by_name.get(target, ()) if self.all[place].node.kind in ("feature", "target")]
            said = tuple(
                place for place in by_name.get(source, ()) if heard and self._before(place, heard[0])
            )  # fmt: skip
            if not said:
                raise refusal(
                    path, f"has a link from {short(source)} to {short(target)}, between which there is none: a node "
                    "is missing, or hears what comes after it."
                )  # fmt: skip
            into[heard[0]].append((source, said, _number(path, f"the link into {target}", link["weight"])))
        found = []
        runs = {place: [said for _, said, _ in links] for place, links in into.items()}
        # Order tells something only of a file that keeps it everywhere.
        orderly = all(_ascends(run) for run in runs.values() if all(len(own) == 1 for own in run))
        for place, links in into.items():
            sources = _told_apart(runs[place])
            if sources is None or not (orderly or all(len(own) == 1 for own in runs[place])):
                self._refuse(path, self.all[place].name, links)
            found += [(start, place, link[2]) for start, link in zip(sources or (), links, strict=True)]
        return found

    def _before(self, source: int, target: int) -> bool:
        """Whether a node may be heard by another."""
        one, other = self.all[source].node, self.all[target].node
        return one.kind != "target" and one.layer < other.layer and one.position <= other.position

    def _refuse(self, path: Path, target: str, links: Sequence[tuple[str, tuple[int, ...], float]]) -> None:
        twice = [name for name, count in Counter(name for name, _, _ in links).items() if count > 1]
        shared = [(name, said) for name, said, _ in links if len(said) > 1]
        if not shared:
            raise refusal(path, f"has the link from {short(twice[0])} to {short(target)} twice.")
        name, said = shared[0]
        first, second = (self.all[place].node for place in said[:2])
        raise refusal(
            path,
            f"has a link from {short(name)} to {short(target)} that may start at {first} or at {second}, which share "
            "this id; read the .pt file of the graph, or write the JSON by a later version of circuit-tracer.",
        )


def _ascends(candidates: Sequence[tuple[int, ...]]) -> bool:
    """Whether the first of all candidates stand in order."""
    return all(one[0] < other[0] for one, other in itertools.pairwise(candidates))


def _told_apart(candidates: Sequence[tuple[int, ...]]) -> list[int] | None:
    """The sources of the links into one node, each among its candidates; None if that is not certain.

    Where each has one, they are as they stand, none twice. Else only one choice may be in the order in which
    circuit-tracer writes links, that of the nodes.
    """
    if all(len(own) == 1 for own in candidates):
        found = [own[0] for own in candidates]
        return found if len(set(found)) == len(found) else None
    # How many choices of all sources up to here end at each candidate; two are as bad as many.
    ways: list[dict[int, int]] = []
    for own in candidates:
        before = ways[-1] if ways else {-1: 1}
        ways.append({place: min(2, sum(count for last, count in before.items() if last < place)) for place in own})
    if sum(ways[-1].values()) != 1:
        return None
    found, behind = [], math.inf
    for counts in reversed(ways):
        behind = next(place for place, count in counts.items() if count and place < behind)
        found.append(int(behind))
    return found[::-1]
