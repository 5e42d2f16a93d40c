"""Pictures of attribution graphs, and the page about one."""

from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from assay.reports._illustrations import GraphView, TableView
from assay.reports._page import environment, picture
from assay.reports._style import INK, PALETTE, style
from assay.subjects import write_atomically

_MARKS = {
    "feature": ("o", PALETTE[0], "feature"),
    "error": ("D", PALETTE[1], "error of a dictionary"),
    "embedding": ("s", PALETTE[2], "token"),
    "target": ("^", PALETTE[3], "logit"),
}

_SIGNS = {"adds": INK, "takes away": PALETTE[5]}

_LETTERS = 14
"""Of a token, or of a node's text."""


def _plain(text: str) -> str:
    """A text that can be drawn as it stands: no formula, no line's end, not too long."""
    shown = "".join(letter if letter.isprintable() else "↵" if letter == "\n" else "·" for letter in text)
    cut = shown if len(shown) <= _LETTERS else shown[: _LETTERS - 1] + "…"
    return cut.replace("$", r"\$")


def _places(view: GraphView) -> list[tuple[float, float]]:
    """Where every node stands: layers upwards, positions to the right; nodes of one cell side by side."""
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, node in enumerate(view.nodes):
        cells[node.layer, node.position].append(number)
    found = [(0.0, 0.0)] * len(view.nodes)
    for (layer, position), numbers in cells.items():
        offsets = (np.arange(len(numbers)) + 0.5) / len(numbers) - 0.5
        for order, (number, offset) in enumerate(zip(numbers, offsets.tolist(), strict=True)):
            # Neighbours stand at two heights, so that their texts do not.
            found[number] = (position + 0.86 * offset, layer + 0.16 * (order % 2))
    return found


def graph_figure(view: GraphView) -> Figure:
    """An attribution graph over the tokens of its prompt, from the embeddings at the bottom to the logits at the top.

    Marks tell features, errors, tokens and logits apart; edges have another colour where they take away, and are wider
    where more of the influence goes along them.
    """
    columns = max(1, len(view.tokens))
    crowd = max((len(view.nodes) / columns, 1.0))
    figure = Figure(figsize=(min(16.0, 2.2 + columns * min(2.2, 0.8 + 0.12 * crowd)), min(16.0, 2.2 + view.layers)))
    axes: Axes = figure.add_subplot()
    places = _places(view)
    largest = max((edge.share for edge in view.edges), default=0.0)
    for edge in view.edges:
        share = float(np.sqrt(edge.share / largest)) if largest > 0 else 0.5
        axes.add_patch(
            FancyArrowPatch(
                places[edge.source],
                places[edge.target],
                connectionstyle="arc3,rad=0.05",
                arrowstyle="-",
                shrinkA=2,
                shrinkB=3,
                linewidth=0.3 + 2.0 * share,
                color=_SIGNS["adds" if edge.weight >= 0 else "takes away"],
                alpha=0.2 + 0.5 * share,
                zorder=1,
            )
        )
    for node, (x, y) in zip(view.nodes, places, strict=True):
        mark, colour, _ = _MARKS[node.kind]
        axes.plot([x], [y], marker=mark, color=colour, markersize=6, markeredgewidth=0, linestyle="none", zorder=2)
        if node.kind in ("feature", "target"):
            axes.annotate(
                _plain(node.text), (x, y), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=6, zorder=3
            )
    axes.set_xlim(-0.6, columns - 0.4)
    axes.set_ylim(-1.5, view.layers + 0.6)
    axes.set_xticks(range(columns), [_plain(token) for token in view.tokens], rotation=35 if columns > 8 else 0)
    axes.set_yticks(
        range(-1, view.layers + 1), ["tokens", *(f"layer {layer}" for layer in range(view.layers)), "logits"]
    )
    axes.set_xlabel("position")
    axes.grid(axis="x", visible=False)
    met = {node.kind for node in view.nodes}
    marks = [
        Line2D([], [], marker=mark, color=colour, linestyle="none", label=name)
        for kind, (mark, colour, name) in _MARKS.items()
        if kind in met
    ]
    signs = {"adds" if edge.weight >= 0 else "takes away" for edge in view.edges}
    lines = [Line2D([], [], color=colour, linewidth=2, label=name) for name, colour in _SIGNS.items() if name in signs]
    axes.legend(handles=[*marks, *lines], loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    return figure


def write_graph_page(
    path: Path, title: str, view: GraphView, words: Sequence[str], tables: Sequence[TableView]
) -> Path:
    """Write the page about an attribution graph: its picture, what it says and what is so; returns the path."""
    with style():
        drawn = picture(view.name, view.caption, graph_figure(view))
    text = (
        environment()
        .get_template("graph.html")
        .render(title=title, version=version("assay-interp"), words=words, pictures=[drawn], tables=tables)
    )
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path
