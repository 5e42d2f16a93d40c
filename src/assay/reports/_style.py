"""How figures look: one palette, quiet axes, and colours that a page can adapt to dark mode."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator

from assay._terminal import visible

INK = "#3c4043"
"""The colour of text and axes; in a page it becomes the page's own text colour."""

PALETTE = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999933", "#ee8866", "#332288", "#44aa99",
    "#661100", "#aaaaaa",
)  # fmt: skip
"""Distinguishable for colour-blind readers (Paul Tol's bright, light and muted schemes)."""

_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "assay",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "axes.grid": True,
    "grid.color": "#80868b",
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@contextmanager
def style() -> Iterator[None]:
    """Within the block, figures are drawn in Assay's style."""
    with mpl.rc_context(_RC):
        yield


def _make_visible(figure: Figure) -> None:
    """Show names of others as they are: no formula between dollars, no character that an SVG cannot hold."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_locator(), FixedLocator):
            labels = axis.get_ticklabels()
            shown = [_plain(label) for label in labels]
            if shown != [label.get_text() for label in labels]:
                axis.set_ticks(axis.get_ticklocs(), labels=shown)
    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_text(_plain(text))


def _plain(text: Text) -> str:
    shown = visible(text.get_text(), keep="\n")
    return re.sub(r"(?<!\\)\$", r"\\$", shown) if text.get_parse_math() else shown


_MARK = re.compile(r"<(?:path|use)\b[^<>]*>")
_COORDINATES = re.compile(r'(?<=\s)(?:d|x|y)="[^"]*"')
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}(?:e[-+]?\d+)?")


def _rounded(svg: str) -> str:
    """An SVG with the coordinates of its marks to a hundredth of a point; all else, such as labels, as it is."""

    def short(number: re.Match[str]) -> str:
        return f"{round(float(number[0]), 2):g}"

    def of_mark(mark: re.Match[str]) -> str:
        return _COORDINATES.sub(lambda found: _LONG_NUMBER.sub(short, found[0]), mark[0])

    return _MARK.sub(of_mark, svg)


def to_svg(figure: Figure) -> str:
    """A figure as SVG text, the same bytes for the same figure; coordinates to a hundredth of a point."""
    buffer = StringIO()
    _make_visible(figure)
    with style():
        figure.savefig(buffer, format="svg", dpi=110, metadata={"Date": None, "Creator": None})
    return _rounded(buffer.getvalue())


def to_png(figure: Figure, *, dpi: int = 160) -> bytes:
    """A figure as PNG bytes on white."""
    buffer = BytesIO()
    _make_visible(figure)
    with style():
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
