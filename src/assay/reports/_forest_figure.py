"""The main figure for a paper: the rows, order, marks and numbers of the page's, drawn by matplotlib.

All lengths are in inches: one panel as large as the figure, whose units they are.
"""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.patches import Rectangle
from matplotlib.path import Path as Outline

from assay.faithfulness import Comparison
from assay.reports._forest import Forest, Group, Row, forest
from assay.reports._style import COLOURS, inches, ink, shortened, small, wrapped
from assay.reports._tables import agreement_words, on_what

LANE, LEAST = 0.16, 0.075
"""The height of a lane: as it should be, and where there are many rows at least, at which marks do not touch."""

TALLEST = 9.0
"""A page's text is not higher: lanes get closer, then the rows that mislead least are left out."""

HEADING, TEXT, SIDE = 0.22, 0.14, 0.04
"""The height of a group's heading, and of a line of text; the margin at the sides."""

NAME = 0.42
"""The share of the width that the names take at most."""

_LIGHT = COLOURS["light"]
_ARC = 50.0
"""Degrees of each of the five dashes of a circle."""


def _arcs() -> Outline:
    return Outline.make_compound_path(*(Outline.arc(start, start + _ARC) for start in range(0, 360, 72)))


_BAR = Outline([(-1, 0), (1, 0)])
_BARS = Outline([(-1, 0.4), (1, 0.4), (-1, -0.4), (1, -0.4)], [1, 2, 1, 2])
_CHECK = Outline([(-0.8, 0.1), (-0.2, -0.6), (0.9, 0.7)])

_HOLLOW, _FULL, _CUT = "hollow", "full", "cut"

_SHAPES: dict[str, tuple[tuple[str | Outline, float, str], ...]] = {
    "illusion": (("D", 1.0, _FULL),),
    "gap": (("v", 1.3, _FULL),),
    "inconclusive": ((_arcs(), 1.2, _HOLLOW),),
    "unfaithful": (("x", 1.2, _HOLLOW),),
    "vacuous": (("o", 1.3, _HOLLOW), (_BAR, 0.7, _HOLLOW)),
    "faithful": (("o", 1.5, _FULL), (_CHECK, 0.8, _CUT)),
    "identical": ((_BARS, 1.1, _HOLLOW),),
    "familiar": (("o", 1.0, _HOLLOW),),
    "shift": (("o", 0.6, _FULL),),
}
"""The page's shapes: parts, each with its size beside that of marks, and whether it is filled."""


def _mark(axes: Axes, x: float, y: float, shape: str) -> None:
    colour = {"familiar": ink(), "shift": _LIGHT["muted"]}.get(shape) or _LIGHT[shape]
    for part, size, how in _SHAPES[shape]:
        axes.plot(
            [x], [y], linestyle="none", marker=MarkerStyle(part), markersize=3.5 * size, zorder=4,
            color="white" if how == _CUT else colour, markeredgewidth=0.8,
            markerfacecolor={_FULL: colour, _HOLLOW: "white" if part == "o" else "none", _CUT: "none"}[how],
        )  # fmt: skip


def fitting(comparison: Comparison) -> tuple[Forest, tuple[Group, ...], float]:
    """The forest, of its groups what fits on a page, and the height of a lane."""
    found = forest(comparison)
    rows = [row for group in found.groups for row in group.rows]
    sites = _several_sites(rows)
    lanes = len(found.lanes)

    def height(count: int, lane: float) -> float:
        return _height(rows[:count], lane, lanes, sites) + 0.9

    lane = next((step for step in np.linspace(LANE, LEAST, 18) if height(len(rows), step) <= TALLEST), LEAST)
    count = len(rows)
    while count > 1 and height(count, lane) > TALLEST:
        count -= 1
    kept = []
    for group in found.groups:
        if count > 0:
            kept.append(group._replace(rows=group.rows[:count]))
        count -= len(group.rows)
    return found, tuple(kept), float(lane)


def _several_sites(rows: Sequence[Row]) -> bool:
    return len({row.verdict.site for row in rows}) > 1


def _height(rows: Sequence[Row], lane: float, lanes: int, sites: bool) -> float:
    groups = len({row.verdict.judgement for row in rows})
    return groups * HEADING + len(rows) * _row_height(lane, lanes, sites)


def _row_height(lane: float, lanes: int, sites: bool) -> float:
    return max(lanes * lane, (2 if sites else 1) * TEXT) + 0.04


def forest_figure(comparison: Comparison, width: float) -> Figure:
    """Verdict, name, agreement on every split and numbers of every simplification, those that mislead most first."""
    found, groups, lane = fitting(comparison)
    rows = [row for group in groups for row in group.rows]
    if not rows:
        return Figure(figsize=(width, 0.5))
    sites = _several_sites(rows)
    lanes = len(found.lanes)
    words = wrapped(f"{agreement_words(comparison)}{on_what(comparison)}, %", width - 2 * SIDE, small())
    heads = ["like training →", "worst shift, %"] if any(row.worst for row in rows) else ["like training,", "%"]
    top, bottom = 2 * TEXT + 0.06, 0.06 + TEXT * (1 + words.count("\n"))
    height = top + _height(rows, lane, lanes, sites) + bottom
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    room = NAME * width
    names = 0.2 + min(room - 0.2, max(inches(row.verdict.proxy) for row in rows))
    numbers = max(map(inches, [*heads, *map(_numbers, rows)])) + SIDE
    left, right = SIDE + names + 0.05, width - SIDE - numbers - inches("100") / 2 - 0.04

    def at(x: float) -> float:
        return left + x / 100 * (right - left)

    axes.text(
        SIDE, top - 0.05, "most misleading\nfirst", fontsize=small(), color=_LIGHT["muted"], va="bottom",
        linespacing=1.1,
    )  # fmt: skip
    axes.text(
        width - SIDE, top - 0.05, "\n".join(heads), fontsize=small(), color=_LIGHT["muted"], va="bottom", ha="right",
        linespacing=1.1,
    )  # fmt: skip
    _name_axis(axes, [(at(x), number) for x, number in found.axis], top - 0.05)
    y = top
    for group in groups:
        axes.plot([SIDE, width - SIDE], [y, y], color=_LIGHT["line"], linewidth=0.6)
        _mark(axes, SIDE + 0.06, y + HEADING / 2, group.judgement)
        axes.text(
            SIDE + 0.16, y + HEADING / 2, f"{group.judgement.capitalize()}", color=_LIGHT[group.judgement],
            va="center", weight="bold",
        )  # fmt: skip
        y += HEADING
        for row in group.rows:
            tall = _row_height(lane, lanes, sites)
            _lay_row(axes, row, found, y, tall, lane, at, names, sites)
            axes.text(
                width - SIDE, y + tall / 2, _numbers(row), fontsize=small(), ha="right", va="center",
            )  # fmt: skip
            y += tall
    axes.text(width / 2, y + 0.04, words, fontsize=small(), ha="center", va="top", linespacing=1.1)
    return figure


def _name_axis(axes: Axes, ticks: Sequence[tuple[float, str]], y: float) -> None:
    """The numbers of the scale; where they have no room beside each other, the ends and what is asked for have it."""
    taken: list[tuple[float, float]] = []
    for x, number in sorted(ticks, key=lambda tick: _FIRST.index(tick[1]) if tick[1] in _FIRST else len(_FIRST)):
        half = inches(number) / 2
        if all(x + half + 0.03 < start or end + 0.03 < x - half for start, end in taken):
            axes.text(x, y, number, fontsize=small(), ha="center", va="bottom")
            taken.append((x - half, x + half))


_FIRST = ("0", "100", "80", "95", "40", "90")
"""The numbers of a scale that are needed most first."""


def _numbers(row: Row) -> str:
    return f"{row.familiar} → {row.worst}" if row.worst else row.familiar


def _lay_row(  # noqa: PLR0917
    axes: Axes,
    row: Row,
    found: Forest,
    y: float,
    tall: float,
    lane: float,
    at: Callable[[float], float],
    names: float,
    sites: bool,
) -> None:
    """One row: name, band and ticks of its control, the scale's lines, and a mark with its interval in every lane."""
    name = shortened(row.verdict.proxy, names - 0.2)
    middle = y + tall / 2
    axes.text(SIDE + 0.16, middle - (TEXT / 2 if sites else 0), name, fontsize=small(), va="center")
    if sites:
        site = shortened(f"at {row.verdict.site}", names - 0.2)
        axes.text(SIDE + 0.16, middle + TEXT / 2, site, fontsize=small(), va="center", color=_LIGHT["muted"])
    if row.band is not None:
        start, end = map(at, row.band)
        axes.add_patch(Rectangle((start, y + 0.02), end - start, tall - 0.04, color=_LIGHT["band"], linewidth=0))
    for x, number in found.axis:
        colour = _LIGHT["axis"] if number == "80" and found.stretched else _LIGHT["line"]
        axes.plot([at(x), at(x)], [y, y + tall], color=colour, linewidth=0.6, zorder=1)
    start = y + (tall - len(found.lanes) * lane) / 2
    place = {height: start + (index + 0.5) * lane for index, height in enumerate(found.lanes)}
    needed = at(found.needed_at)
    axes.plot([needed, needed], [start, start + lane], color=_LIGHT["axis"], linewidth=1.2, zorder=2)
    for x, height in row.ticks:
        axes.plot(
            [at(x), at(x)], [place[height] - 0.3 * lane, place[height] + 0.3 * lane], color=_LIGHT["axis"],
            linewidth=0.9, zorder=2,
        )  # fmt: skip
    for mark in row.marks:
        own = mark.shape == row.verdict.judgement
        if mark.low is not None and mark.high is not None:
            colour = {"familiar": ink(), "shift": _LIGHT["muted"]}.get(mark.shape) or _LIGHT[mark.shape]
            axes.plot(
                [at(mark.low), at(mark.high)], [place[mark.y]] * 2, color=colour, linewidth=1.2 if own else 0.8,
                solid_capstyle="butt", zorder=3,
            )  # fmt: skip
        _mark(axes, at(mark.x), place[mark.y], mark.shape)
