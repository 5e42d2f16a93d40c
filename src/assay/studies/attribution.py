"""An attribution graph, drawn and judged on its own prompt, in one page."""

from collections.abc import Sequence
from pathlib import Path

from assay._errors import AssayError
from assay.diagnostics import AttributionClaims, attribution_claims
from assay.dictionaries import AttributionGraph, CrossLayerReplacement, Replacement
from assay.reports import GraphEdge, GraphNode, GraphView, TableView, write_graph_page
from assay.subjects import Subject

EDGES = 80
"""So many of the strongest edges are drawn."""


def graph_view(graph: AttributionGraph, *, edges: int = EDGES, subject: Subject | None = None) -> GraphView:
    """What is drawn of a graph: its strongest edges, and the nodes that they join.

    Tokens have their texts, or those of the subject's tokenizer, or their numbers. Raises AssayError for `edges` below
    1 and a graph without any.
    """
    if isinstance(edges, bool) or not isinstance(edges, int) or edges < 1:
        raise AssayError(f"edges={edges!r}: say how many of the strongest edges are to be drawn, at least 1.")
    found = graph.strongest(edges)
    if not found:
        raise AssayError("the graph has no edge that leads to its targets; there is nothing to draw.")
    tokens = _texts(graph.tokens.tolist(), graph.words, subject)
    said = dict(zip(graph.targets.tolist(), _texts(graph.targets.tolist(), graph.said, subject), strict=True))
    joined = {node for link in found for node in (link.source, link.target)}
    place = {node: number for number, node in enumerate(sorted(joined, key=graph.nodes.index))}
    nodes = [
        GraphNode(
            kind=node.kind,  # type: ignore[arg-type]
            layer=node.layer,
            position=node.position,
            text=said[node.number] if node.kind == "target" else str(node.number),
        )
        for node in place
    ]
    return GraphView(
        name="attribution-graph",
        caption=f"The {len(found)} strongest of {int((graph.weights != 0).sum()):,} edges, and the nodes that they "
        "join: what each adds to the other while attention and norms are held. Numbers are those of features in the "
        "dictionary of their layer.",
        layers=graph.layers,
        tokens=tokens,
        nodes=nodes,
        edges=[
            GraphEdge(source=place[link.source], target=place[link.target], weight=link.weight, share=link.share)
            for link in found
        ],
    )


def _texts(numbers: list[int], known: Sequence[str] | None, subject: Subject | None) -> list[str]:
    if known is not None:
        return list(known)
    tokenizer = None if subject is None else subject.tokenizer
    return [str(number) if tokenizer is None else str(tokenizer.decode([number])) for number in numbers]


def draw(
    graph: AttributionGraph,
    path: Path,
    *,
    subject: Subject | None = None,
    replacement: Replacement | CrossLayerReplacement | None = None,
    edges: int = EDGES,
    untouched: int = 1,
) -> AttributionClaims | None:
    """Write the page about a graph; with the subject and its dictionaries it is judged there, and that is returned.

    Raises AssayError for one of the two without the other, and as `attribution_claims` does.
    """
    if (subject is None) != (replacement is None):
        raise AssayError("a graph is judged with its model and the dictionaries that it was drawn with; give both.")
    view = graph_view(graph, edges=edges, subject=subject)
    words, tables, claims = [f"{graph.scores()}."], [], None
    if subject is not None and replacement is not None:
        claims = attribution_claims(graph, subject, replacement, untouched=untouched)
        words, tables = [str(claims)], [_answers(claims, subject), _runs(claims, subject)]
    prompt = graph.origin.get("prompt")
    write_graph_page(path, "Attribution graph" + (f" of {prompt!r}" if prompt else ""), view, words, tables)
    return claims


def _answers(claims: AttributionClaims, subject: Subject) -> TableView:
    found = claims.answers
    names = [name for name in found.columns if name not in ("token", "text")]
    texts = _texts(found["token"].tolist(), None if found["text"].isna().any() else found["text"].tolist(), subject)
    return TableView(
        title="Probabilities of the graph's targets",
        note="What the graph states, what the model gives, and what is left where features stand in for its MLPs.",
        headings=["token", *names],
        rows=[
            [(text, ""), *((f"{row[name]:.3f}", "") for name in names)]
            for text, (_, row) in zip(texts, found.iterrows(), strict=True)
        ],
    )


def _runs(claims: AttributionClaims, subject: Subject) -> TableView:
    found = claims.runs
    texts = _texts(found["predicted"].tolist(), None, subject)
    return TableView(
        title="On the graph's own prompt",
        note="KL of the model from each run at the last position, in nats, and what each predicts there.",
        headings=["run", "KL", "same prediction", "predicts", "with"],
        rows=[
            [
                (row["run"], ""),
                (f"{row['kl']:.3g}", ""),
                ("yes" if row["same_prediction"] else "no", ""),
                (text, ""),
                (f"{row['probability']:.3f}", ""),
            ]
            for text, (_, row) in zip(texts, found.iterrows(), strict=True)
        ],
    )
