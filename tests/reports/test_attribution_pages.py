"""The page about an attribution graph: its picture, its scores, and what is so on its prompt."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from assay import AssayError, AttributionGraph
from assay.dictionaries import read_replacement
from assay.reports import GraphEdge, GraphNode, GraphView, graph_figure, picture, style
from assay.studies.attribution import draw, graph_view

FILES = Path(__file__).parents[1] / "dictionaries" / "attribution_graphs"


@pytest.fixture(scope="module")
def pruned():
    return AttributionGraph.read(FILES / "transcoders.pt").pruned()


def svg_of(view):
    with style():
        return str(picture(view.name, view.caption, graph_figure(view)).content)


def test_nodes_stand_over_tokens_and_in_layers(pruned):
    view = graph_view(pruned, edges=500)
    assert view.tokens == ["0", "5", "9", "3", "14"], "without a tokenizer, numbers"
    assert len(view.edges) == int((pruned.weights != 0).sum()) == 127
    assert {node.kind for node in view.nodes} == {"feature", "error", "embedding", "target"}
    shares = [edge.share for edge in view.edges]
    assert shares == sorted(shares, reverse=True)
    # All that reaches the targets is heard by them or passed on: shares into a node are its influence.
    into = sum(edge.share for edge in view.edges if view.nodes[edge.target].kind == "target")
    assert into == pytest.approx(float(pruned.probabilities.sum()), rel=1e-5)
    svg = svg_of(view)
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    written = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    for text in ("tokens", "layer 0", "layer 2", "logits", "position", "w8", "error of a dictionary", "takes away"):
        assert text in written
    assert "currentColor" in svg, "text takes the page's colour"
    fewer = graph_view(pruned, edges=10)
    assert (len(fewer.edges), fewer.edges) == (10, [*fewer.edges])
    assert len(fewer.nodes) < len(view.nodes)


def test_any_text_may_be_a_token(pruned):
    odd = ["$x_1$", "a\nb", "<&>", "\x07", "a very long token indeed"]
    nodes = [
        GraphNode(kind="embedding", layer=-1, position=0, text="0"),
        GraphNode(kind="target", layer=1, position=4, text="$"),
    ]
    view = GraphView(
        name="g", caption="c", layers=1, tokens=odd, nodes=nodes,
        edges=[GraphEdge(source=0, target=1, weight=-1.0, share=1.0)],
    )  # fmt: skip
    svg = svg_of(view)
    ElementTree.fromstring(svg)
    for text in ("$x_1$", "a↵b", "&lt;&amp;&gt;", "a very long t…"):
        assert text in svg
    assert svg == svg_of(view)


def test_what_cannot_be_drawn_is_refused(pruned, tmp_path):
    with pytest.raises(AssayError, match="at least 1"):
        graph_view(pruned, edges=0)
    nothing = AttributionGraph(
        1, torch.tensor([3]), torch.zeros(0, 3, dtype=torch.long), torch.zeros(0), torch.zeros(0, 2, dtype=torch.long),
        torch.tensor([5]), torch.ones(1), torch.zeros(2, 2),
    )  # fmt: skip
    with pytest.raises(AssayError, match="nothing to draw"):
        graph_view(nothing)
    replacement = read_replacement(FILES / "transcoders")
    with pytest.raises(AssayError, match="give both"):
        draw(pruned, tmp_path / "page.html", replacement=replacement)


def test_the_command_draws_and_judges(command, tmp_path):
    page = tmp_path / "page.html"
    status, out, _ = command("graph", FILES / "transcoders.json", "--out", page)
    assert status == 0
    assert "replacement score 0.812" in out
    assert "pruned before it was read" in out
    assert "<svg" in page.read_text()
    assert "<table" not in page.read_text()
    status, out, _ = command(
        "graph", FILES / "transcoders.pt", "--model", FILES / "tiny", "--dictionaries", FILES / "transcoders",
        "--prune", "0.8", "--out", page, "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert status == 0
    assert found["scores"]["features"] == 11
    assert found["runs"][0]["run"] == "subject"
    text = page.read_text()
    assert text.count("<table") == 2
    for word in ("kept where the graph has them", "w14", "Attribution graph of", "&lt;s&gt;"):
        assert word in text


def test_wrong_calls_of_the_command(command, tmp_path):
    status, _, err = command("graph", FILES / "transcoders.pt", "--model", "gpt2")
    assert (status, "--dictionaries" in err) == (2, True)
    other = tmp_path / "other.json"
    other.write_text("{}")
    status, _, err = command("graph", other)
    assert status == 2
    assert "no graph of" in err
    status, _, err = command("graph", FILES / "transcoders.pt", "--prune", "2")
    assert status == 2
