"""Files of circuits of ACDC: the subgraphs that its experiment saves.

Format after `TLACDCExperiment.save_subgraph` and `TLACDCCorrespondence` of ArthurConmy/Automatic-Circuit-Discovery at
`bc99ace8`; none of it is used here. A subgraph is a dictionary from (receiver, index, sender, index), by names of
TransformerLens' hooks, to whether the edge is there. Beside edges of the residual stream, which are ours, it has links
within a head and an MLP: where the one from what a head's queries (keys, values) read to what they are is not there,
nothing that they read reaches them. What a run removes is left out of the dictionary, so that it tells how many layers
there are, and not how many heads.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from assay.circuits._graph import Graph
from assay.circuits._stated import Scored, check_size, refusal, short

_HOOK = re.compile(r"blocks\.(\d{1,6})\.(attn\.hook_result|attn\.hook_[qkv]|hook_[qkv]_input|hook_(?:mlp|resid)_\w+)")
_EMBEDDINGS = ("blocks.0.hook_resid_pre", "hook_embed", "hook_pos_embed")
_PARTS = ("queries", "keys", "values")

End = tuple[str, int, int | None]
"""What a hook is in our words, with its layer and its head."""


def is_subgraph(found: Mapping[Any, Any]) -> bool:
    """Whether a dictionary is one of ACDC's, by its keys."""
    return bool(found) and all(isinstance(key, tuple) for key in found)


def read_subgraph(path: Path, found: Mapping[Any, Any]) -> Scored:
    """The circuit of a subgraph. Raises AssayError for anything that ACDC does not write."""
    edges: dict[tuple[End, End], bool] = {}
    linked: dict[End, bool] = {}
    for key, inside in found.items():
        if len(key) != 4 or type(inside) is not bool:
            raise refusal(
                path, f"has {short(key)}: {short(inside)}; ACDC has (receiver, index, sender, index): True or False."
            )
        receiver, sender = _end(path, *key[:2]), _end(path, *key[2:])
        if receiver[0] in _PARTS and sender == (f"{receiver[0]} read", *receiver[1:]):
            linked[sender] = inside
        elif not _is_link(receiver, sender):
            edges[receiver, sender] = inside
    last = {layer for (what, layer, _), _ in edges if what == "logits"}
    if len(last) != 1:
        raise refusal(path, "has no edge into the logits of one layer (blocks.11.hook_resid_post), so no circuit.")
    ends = [end for key in edges for end in key]
    heads = 1 + max((head for *_, head in ends if head is not None), default=0)
    graph = check_size(path, Graph(1 + last.pop(), heads, heads))
    kept = np.zeros(graph.shape, dtype=bool)
    for (receiver, sender), inside in edges.items():
        place = _sender(graph, sender), _receiver(graph, receiver)
        if None in place or not graph.exists[place]:
            raise refusal(path, f"has an edge from {_named(sender)} to {_named(receiver)}, which no decoder has.")
        kept[place] |= inside and linked.get(receiver, receiver[0] in ("mlp in", "logits"))
    _check_embeddings(path, edges)
    places = {(_sender(graph, sender), _receiver(graph, receiver)) for receiver, sender in edges}
    return Scored(graph, kept, None, at_least=len(places) < graph.size)


def _end(path: Path, name: Any, index: Any) -> End:
    """What a hook and an index mean."""
    if name in _EMBEDDINGS and index == (None,):
        return str(name), 0, None
    match = _HOOK.fullmatch(name) if isinstance(name, str) else None
    parts = None if match is None else match[2]
    what = {
        "attn.hook_result": "head",
        "hook_mlp_out": "mlp out",
        "hook_mlp_in": "mlp in",
        "hook_resid_post": "logits",
        **{f"attn.hook_{part[0]}": part for part in _PARTS},
        **{f"hook_{part[0]}_input": f"{part} read" for part in _PARTS},
    }.get(parts or "")
    by_head = what is not None and (what == "head" or what.split()[0] in _PARTS)
    heads = index[2] if isinstance(index, tuple) and len(index) == 3 and index[:2] == (None, None) else None
    fits = type(heads) is int and 0 <= heads <= 10**6 if by_head else index == (None,)
    if match is None or what is None or not fits:
        raise refusal(path, f"has {short(name)} at {short(index)}, which is no part of ACDC's graph of a decoder.")
    return what, int(match[1]), heads


def _is_link(receiver: End, sender: End) -> bool:
    """Whether that is within a head or an MLP."""
    within_head = receiver[0] == "head" and sender[0] in _PARTS
    return (within_head or (receiver[0], sender[0]) == ("mlp out", "mlp in")) and receiver[1:] == sender[1:]


def _sender(graph: Graph, end: End) -> int | None:
    what, layer, head = end
    if what in _EMBEDDINGS:
        return 0
    return graph.sender(layer, head) if what in ("head", "mlp out") and layer < graph.layers else None


def _receiver(graph: Graph, end: End) -> int | None:
    what, layer, head = end
    if what == "logits":
        return graph.logits
    if what == "mlp in" and layer < graph.layers:
        return graph.mlp(layer)
    if what.endswith(" read") and layer < graph.layers:
        return graph.reading(layer).start + graph.heads * _PARTS.index(what.split()[0]) + (head or 0)
    return None


def _check_embeddings(path: Path, edges: Mapping[tuple[End, End], bool]) -> None:
    """Raise AssayError where tokens are in the circuit and positions are not, or the other way round."""
    tokens, positions = (
        {receiver for (receiver, sender), inside in edges.items() if inside and sender[0] == name}
        for name in _EMBEDDINGS[1:]
    )
    different = sorted(tokens ^ positions, key=str)
    if different:
        which = _EMBEDDINGS[1:] if different[0] in tokens else _EMBEDDINGS[:0:-1]
        raise refusal(
            path,
            f"has the edge from {which[0]} to {_named(different[0])} and not that from {which[1]}; Assay's embeddings "
            "are tokens and positions together.",
        )


def _named(end: End) -> str:
    what, layer, head = end
    where = "" if what in _EMBEDDINGS else f" of layer {layer}"
    return f"{what}{where}" + ("" if head is None else f", head {head}")
