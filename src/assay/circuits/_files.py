"""Files of circuits: our own, and all that can be read and written."""

import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from assay._errors import AssayError
from assay._files import read_bytes
from assay.circuits._circuit_kit import is_theirs, read_nodes
from assay.circuits._foreign import is_torch, read_json, read_torch, unpickled, write_auto_circuit, write_eap_ig
from assay.circuits._graph import Edge, Graph
from assay.circuits._parameters import is_whole, shown
from assay.circuits._problem import Ablation, Measure
from assay.circuits._stated import (
    OF_FEATURES,
    Found,
    Given,
    Rank,
    Stated,
    check_count,
    check_size,
    chosen,
    clipped,
    known,
    name_of,
    ranks,
    refusal,
    short,
    write,
)
from assay.simplify import Origin

FORMAT: Literal["assay-circuit"] = "assay-circuit"
VERSION: Literal[1] = 1

Format = Literal["assay", "eap-ig", "auto-circuit"]
"""How files of circuits can be written: our own, that of EAP-IG and MIB, and that of auto-circuit."""

_LONGEST = 200
"""Letters of a name."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Subject(_Strict):
    name: str
    seed: int | None
    architecture: str
    weights_sha256: str
    config_sha256: str


class _Graph(_Strict):
    layers: int
    heads: int
    groups: int
    parallel: bool
    width: int | None
    joint: bool = False
    latent: bool = False
    latent_queries: bool = False


class _Record(_Strict):
    """A circuit in our own format, without what its ablated edges carry: `fit` learns that."""

    format: Literal["assay-circuit"]
    version: Literal[1]
    assay: str
    name: Annotated[str, Field(max_length=_LONGEST)]
    subject: _Subject | None
    graph: _Graph
    method: str | None
    measure: Measure
    rank: Rank
    ablation: Ablation
    pairs_sha256: str | None
    baseline: Annotated[tuple[float, float], Strict(False)] | None
    edges_on_paths: int
    edges: list[Annotated[tuple[str, float | None], Strict(False)]]


def to_plain(stated: Stated) -> dict[str, Any]:
    """A circuit as our own format has it."""
    given, found = stated.given, stated.given.found
    if len(given.name) > _LONGEST or not given.name.isprintable():
        raise AssayError(f"name={short(given.name)}: a circuit's name has at most {_LONGEST} letters, all printable.")
    scores = found.scores or (None,) * len(given.edges)
    graph = {**found.graph.describe(), "width": found.width}
    record = _Record(
        format=FORMAT,
        version=VERSION,
        assay=version("assay-interp"),
        name=given.name,
        subject=None if found.subject is None else _Subject(**vars(found.subject)),
        graph=_Graph.model_validate(graph),
        method=found.method,
        measure=given.measure,
        rank=given.rank,
        ablation=given.ablation,
        pairs_sha256=found.pairs_sha256,
        baseline=found.baseline,
        edges_on_paths=int(found.graph.pruned(stated.kept).sum()),
        edges=list(zip(given.edges, scores, strict=True)),
    )
    plain = record.model_dump(mode="json")
    # What most graphs have not is left out, so that earlier versions read them.
    plain["graph"] = graph
    return plain


def of_plain(plain: Any, path: Path, edges: int | None = None) -> Given:
    """The circuit that our own format states, or its first edges. Raises AssayError for what was damaged or changed."""
    if plain.get("version") != VERSION:
        raise refusal(
            path,
            f"has version {short(plain.get('version'))} of the format of circuits, and this Assay "
            f"({version('assay-interp')}) reads version {VERSION}; write it again with this one.",
        )
    try:
        record = _Record.model_validate(plain)
    except (ValidationError, RecursionError) as error:
        first = (
            error.errors(include_url=False, include_input=False)[0]
            if isinstance(error, ValidationError)
            else {"loc": (), "msg": "it is nested too deeply"}
        )
        where = short(".".join(map(str, first["loc"])))
        raise _damaged(path, f"{where}: {first['msg']}") from None
    graph = check_size(path, Graph(**record.graph.model_dump(exclude={"width"})))
    names = tuple(name for name, _ in record.edges)
    try:
        parsed_edges = [str(Edge.parse(name)) for name in names]
        kept = graph.matrix(names)
    except AssayError as error:
        raise _damaged(path, clipped(str(error).removesuffix("."), 200)) from None
    if parsed_edges != list(names) or len(set(names)) < len(names) or not names:
        raise _damaged(path, "no edges, or one that is there twice or not written as Assay writes it")
    if int(graph.pruned(kept).sum()) != record.edges_on_paths:
        raise _damaged(path, "edges_on_paths is not how many of its edges are on paths")
    if not record.name.isprintable():
        raise _damaged(path, "its name holds what cannot be printed")
    scores = np.array([math.nan if score is None else score for _, score in record.edges])
    scored = int(np.isfinite(scores).sum())
    if edges is not None:
        if edges > scored:
            raise refusal(path, f"has {scored:,} edges with scores; edges={edges} is too many.")
        best = np.argsort(-ranks(scores, record.rank, record.measure), kind="stable")[:edges]
        names, scores = tuple(names[place] for place in best), scores[best]
    given = tuple(known(score) for score in scores.tolist()) if scored else None
    origin = None if record.subject is None else Origin(**record.subject.model_dump())
    found = Found(graph, record.graph.width, given, origin, record.method, record.pairs_sha256, record.baseline)
    return Given(names, found, record.name or name_of(path), record.ablation, record.measure, record.rank)


def _damaged(path: Path, why: str) -> AssayError:
    return refusal(path, f"is damaged or was changed ({why}); write the circuit again.")


def write_own(stated: Stated, path: Path) -> None:
    """Write a circuit in our own format, an edge a line."""
    plain = to_plain(stated)
    edges = ",\n".join(f"  {json.dumps(edge)}" for edge in plain.pop("edges"))
    head = json.dumps(plain, indent=1, allow_nan=False).removesuffix("\n}")
    text = f'{head},\n "edges": [\n{edges}\n ]\n}}\n'
    write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_circuit(path: Path, edges: int | None, groups: int | None) -> Given:
    """The circuit of a file of any format, told by its content, or its best edges. Raises AssayError for all else."""
    check_count(edges)
    if groups is not None and (not is_whole(groups) or groups < 1):
        raise AssayError(f"groups={shown(groups)}: say in how many groups the heads of a layer share keys and values.")
    data = _content(path)
    if is_torch(data):
        found = unpickled(path, data)
        if is_theirs(found):
            return read_nodes(path, found, edges, groups)
        scored, own = read_torch(path, found)
    else:
        found = _parsed(path, data)
        if isinstance(found, dict) and found.get("format") == FORMAT:
            given = of_plain(found, path, edges)
            if groups not in (None, given.found.graph.groups):
                raise refusal(path, f"says itself that there are {given.found.graph.groups} groups; leave groups= out.")
            return given
        if isinstance(found, dict) and {"metadata", "nodes", "links"} <= set(found):
            raise refusal(path, OF_FEATURES)
        if isinstance(found, dict) and is_theirs(found):
            return read_nodes(path, found, edges, groups)
        if not isinstance(found, dict) or "cfg" not in found:
            raise refusal(path, f"is no file of a circuit; {_KNOWN}")
        scored, own = read_json(path, found)
    return chosen(path, scored, edges, own if groups is None else groups)


_KNOWN = "Assay reads its own, and those of EAP-IG, MIB, auto-circuit, ACDC and CircuitKIT."


def _content(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except (OSError, ValueError) as error:
        raise refusal(path, f"cannot be read ({getattr(error, 'strerror', None) or error}).") from None


def _parsed(path: Path, data: bytes) -> Any:
    """JSON. Raises AssayError for anything else, numbers that are none among it."""

    def no_number(name: str) -> None:
        raise refusal(path, f"holds {name}, which is no number; a circuit's scores are finite.")

    try:
        return json.loads(data, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else "it is no JSON"
        raise refusal(path, f"is no file of a circuit ({why}); {_KNOWN}") from None


def write_circuit(stated: Stated, path: Path, form: Format) -> Path:
    """Write a circuit in a format. Raises AssayError for an unknown one, and where it cannot be written."""
    if not isinstance(form, str) or form not in get_args(Format):
        raise AssayError(f"format={shown(form)}: circuits are written as {', '.join(get_args(Format))}.")
    {"assay": write_own, "eap-ig": write_eap_ig, "auto-circuit": write_auto_circuit}[form](stated, path)
    return path
