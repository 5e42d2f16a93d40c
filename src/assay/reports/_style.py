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
    "#4477aa", "#be525f", "#228833", "#7e742a", "#3f7e94", "#aa3377", "#7a7a29", "#ab6249", "#332288", "#348174",
    "#661100", "#747474",
)  # fmt: skip
"""Distinguishable for colour-blind readers: Paul Tol's bright, light and muted schemes, as dark as white asks for."""

ON_DARK = (
    "#5785b2", "#ee6677", "#349243", "#ccbb44", "#66ccee", "#be6498", "#999933", "#ee8866", "#857ab8", "#44aa99",
    "#a6756b", "#aaaaaa",
)  # fmt: skip
"""The same colours as light as a page in dark mode asks for (a contrast of 4.5, as for text)."""

COLOURS = {
    "light": {
        "bg": "#ffffff", "surface": "#f4f6f8", "band": "#e7ebef", "line": "#d3d9df", "axis": "#77818c",
        "ink": "#1a1f24", "muted": "#525c66", "link": "#0a55a0",
        "illusion": "#b3261e", "gap": "#8f4700", "inconclusive": "#46525f", "unfaithful": "#6941a5",
        "vacuous": "#0f6b4f", "faithful": "#0f6b4f", "identical": "#0f6b4f",
        **{f"series{number}": colour for number, colour in enumerate(PALETTE)},
    },
    "dark": {
        "bg": "#15181b", "surface": "#1d2125", "band": "#2a3036", "line": "#343b42", "axis": "#7f8a95",
        "ink": "#e7eaed", "muted": "#a6afb9", "link": "#8abfff",
        "illusion": "#ff8f86", "gap": "#f3a860", "inconclusive": "#b4bfca", "unfaithful": "#c4aaf2",
        "vacuous": "#5fcaa8", "faithful": "#5fcaa8", "identical": "#5fcaa8",
        **{f"series{number}": colour for number, colour in enumerate(ON_DARK)},
    },
}  # fmt: skip
"""The colours of pages in both modes. Text has a contrast of 4.5 at least on `bg` and `surface`, marks one of 3 on
`bg` and `band`; `line`, `band` and `surface` carry nothing alone. Verdicts differ in shape and word as well."""

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


def to_png(figure: Figure, *, dpi: float = 160.0) -> bytes:
    """A figure as PNG bytes on white."""
    buffer = BytesIO()
    _make_visible(figure)
    with style():
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
