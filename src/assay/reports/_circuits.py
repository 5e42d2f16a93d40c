"""Pictures of circuits: which parts hear which, and how much each head matters."""

import re

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from assay.reports._illustrations import CircuitView, HeatView
from assay.reports._style import WIDE, inches, ink, legend, series, small

_WHERE = ("both", "in distribution", "under the shift")

_LETTERS = 0.42
"""Inches between heads from which on the letters of queries, keys and values stand beside each other."""

_NODE = re.compile(r"layer(\d+)\.(head|group)?(\d+|mlp)")
_PARTS = {"queries": "q", "keys": "k", "values": "v"}


def _places(view: CircuitView) -> dict[str, tuple[float, float]]:
    """Where every part stands: heads of a layer side by side, the MLP above them to the right, layers upwards."""
    middle = view.heads / 2
    found = {"embeddings": (middle, 0.0), "logits": (middle, 2.0 * view.layers + 0.9)}
    for layer in range(view.layers):
        height = 2.0 * layer + 1
        found |= {f"layer{layer}.head{head}": (head, height) for head in range(view.heads)}
        found[f"layer{layer}.mlp"] = (view.heads + 0.4, height + (0 if view.parallel else 0.75))
    return found


def _end(view: CircuitView, receiver: str, places: dict[str, tuple[float, float]]) -> tuple[str, tuple[float, float]]:
    """The part that a receiver belongs to (of a group its first head), and where an edge to it ends."""
    if receiver in places:
        return receiver, places[receiver]
    part, _, stream = receiver.rpartition(".")
    match = _NODE.fullmatch(part)
    if match is None:
        return receiver, places["logits"]
    number = int(match[3]) * (view.heads // view.groups if match[2] == "group" else 1)
    node = f"layer{match[1]}.head{number}"
    x, y = places[node]
    return node, (x + {"queries": -0.24, "keys": 0.0}.get(stream, 0.24), y - 0.16)


def circuit_figure(view: CircuitView, width: float = WIDE) -> Figure:
    """The edges of a circuit between its parts, from the embeddings at the bottom to the logits at the top.

    Edges end at q, k and v of a head. Colours say whether an edge is in the circuit found in distribution, in the one
    found under the shift, or in both; wider edges have larger scores.
    """
    width = min(width, 2.5 + 0.85 * (view.heads + 1))
    figure = Figure(figsize=(width, min(14.0, 1.8 + 1.15 * view.layers)))
    axes: Axes = figure.add_subplot()
    colours = dict(zip(_WHERE, (ink(), *series()), strict=False))
    between = width / (view.heads + 3.4)
    axes.axis("off")
    places = _places(view)
    used = set()
    largest = max((abs(edge.score) for edge in view.edges if edge.score is not None), default=0.0)
    for edge in view.edges:
        node, end = _end(view, edge.receiver, places)
        used |= {edge.sender, node}
        start = places[edge.sender]
        share = 0.5 if edge.score is None or largest == 0 else float(np.sqrt(abs(edge.score) / largest))
        axes.add_patch(
            FancyArrowPatch(
                (start[0], start[1] + 0.16),
                end,
                connectionstyle=f"arc3,rad={0.12 if end[0] >= start[0] else -0.12}",
                arrowstyle="-|>",
                mutation_scale=6,
                linewidth=0.6 + 2.2 * share,
                color=colours[edge.where],
                alpha=0.75,
                zorder=1,
            )
        )
    for name, (x, y) in places.items():
        text = name if name in ("embeddings", "logits") else name.partition(".")[2].replace("head", "")
        shown = name in used
        axes.text(
            x,
            y,
            text,
            ha="center",
            va="center",
            fontsize=small(),
            alpha=1.0 if shown else 0.35,
            zorder=2,
            bbox={
                "boxstyle": "round,pad=0.3",
                "facecolor": "none",
                "edgecolor": ink(),
                "lw": 0.6,
                "alpha": 1 if shown else 0.35,
            },
        )
        if shown and ".head" in name and between > _LETTERS:
            for stream, short in _PARTS.items():
                _, (at, _) = _end(view, f"{name}.{stream}", places)
                axes.text(at, y - 0.3, short, ha="center", va="top", fontsize=small())
    for layer in range(view.layers):
        axes.text(-1.1, 2.0 * layer + 1, f"layer {layer}", ha="right", va="center", fontsize=small())
    axes.set_xlim(-2.2, view.heads + 1.2)
    axes.set_ylim(-0.5, 2.0 * view.layers + 1.4)
    kinds = [where for where in _WHERE if any(edge.where == where for edge in view.edges)]
    if len(kinds) > 1 or kinds not in (["both"], []):
        lines = [Line2D([], [], color=colours[where], linewidth=2, label=where) for where in kinds]
        legend(figure, lines, kinds)
    return figure


def heat_figure(view: HeatView, width: float = WIDE) -> Figure:
    """A number for every head, a row a layer; blue below zero, red above."""
    values = np.array(view.values, dtype=float)
    layers, heads = values.shape
    figure = Figure(figsize=(min(width, 2.4 + 0.5 * heads), min(10.0, 1.5 + 0.42 * layers)))
    axes: Axes = figure.add_subplot()
    limit = float(np.nanmax(np.abs(values))) or 1.0
    image = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axes.grid(visible=False)
    step = max(1, int(-(-heads * max(map(inches, view.columns), default=0.1) * 1.3 // (figure.get_figwidth() - 1.9))))
    axes.set_xticks(range(0, heads, step), view.columns[::step])
    axes.set_yticks(range(layers), [f"layer {layer}" for layer in range(layers)])
    axes.set_xlabel(view.x_label)
    figure.colorbar(image, ax=axes, label=view.unit)
    return figure
