"""How figures look: one palette, quiet axes, and colours that a page can adapt to dark mode."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

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


def to_svg(figure: Figure) -> str:
    """A figure as SVG text, the same bytes for the same figure; coordinates to a hundredth of a point."""
    buffer = StringIO()
    with style():
        figure.savefig(buffer, format="svg", dpi=110, metadata={"Date": None, "Creator": None})
    return re.sub(r"(\d\.\d\d)\d+", r"\1", buffer.getvalue())


def to_png(figure: Figure, *, dpi: int = 160) -> bytes:
    """A figure as PNG bytes on white."""
    buffer = BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
