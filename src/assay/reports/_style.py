"""How figures look: one palette, quiet axes, and colours that a page can adapt to dark mode."""

import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO, StringIO
from typing import IO, Any, Literal

import matplotlib as mpl
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
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
        "illusiontint": "#fdeceb", "gaptint": "#fdf1e3",
        "ink": "#1a1f24", "muted": "#525c66", "link": "#0a55a0",
        "illusion": "#b3261e", "gap": "#8f4700", "inconclusive": "#46525f", "unfaithful": "#6941a5",
        "vacuous": "#0f6b4f", "faithful": "#0f6b4f", "identical": "#0f6b4f",
        **{f"series{number}": colour for number, colour in enumerate(PALETTE)},
    },
    "dark": {
        "bg": "#15181b", "surface": "#1d2125", "band": "#2a3036", "line": "#343b42", "axis": "#7f8a95",
        "illusiontint": "#3a2221", "gaptint": "#352818",
        "ink": "#e7eaed", "muted": "#a6afb9", "link": "#8abfff",
        "illusion": "#ff8f86", "gap": "#f3a860", "inconclusive": "#b4bfca", "unfaithful": "#c4aaf2",
        "vacuous": "#5fcaa8", "faithful": "#5fcaa8", "identical": "#5fcaa8",
        **{f"series{number}": colour for number, colour in enumerate(ON_DARK)},
    },
}  # fmt: skip
"""The colours of pages in both modes. Text has a contrast of 4.5 at least on `bg` and `surface`, marks one of 3 on
`bg` and `band`; `line`, `band` and `surface` carry nothing alone. Verdicts differ in shape and word as well."""

WIDE, PHONE = 7.5, 3.7
"""Inches of a figure in a page: between the margins of a window of 768 pixels, and of 390. CSS has 96 to an inch."""

NARROW = 5.0
"""Below this width, panels stand below each other."""

_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "assay",
    "font.family": "sans-serif",
    # 9 points are the 12 pixels that the page's smallest text has.
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "lines.linewidth": 1.5,
    "lines.markersize": 3.5,
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "axes.grid": True,
    "grid.color": "#80868b",
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}

PAPER: Any = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "lines.linewidth": 1.0,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "savefig.facecolor": "white",
}
"""What is different in a paper: text of the size that is usual there, finer lines, white ground."""

_FIXED: Any = {
    # Type 42 is TrueType: journals refuse Type 3, the default, and text in it can be neither found nor edited.
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
}
"""What no style changes."""


@contextmanager
def style(*over: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, figures are drawn in Assay's style, with other settings over it."""
    with mpl.rc_context(_RC):
        for settings in (*over, _FIXED):
            mpl.rcParams.update(settings)
        yield


def ink() -> str:
    """The colour of text in the style that is in use."""
    return str(mpl.rcParams["text.color"])


def series() -> list[str]:
    """The colours of series in the style that is in use."""
    return [str(colour) for colour in mpl.rcParams["axes.prop_cycle"].by_key().get("color", PALETTE)]


def small() -> float:
    """The size of small text in the style that is in use, in points."""
    return FontProperties(size=mpl.rcParams["xtick.labelsize"]).get_size_in_points()


def inches(text: str, size: float | None = None) -> float:
    """How wide a line of text is, of a size in points (default: `small`)."""
    found: float = text_to_path.get_text_width_height_descent(
        visible(text), FontProperties(size=small() if size is None else size), ismath=False
    )[0]
    return found / 72


def shortened(text: str, room: float, size: float | None = None) -> str:
    """A line of text as it is shown, that takes so many inches at most; the middle of a longer one is left out."""
    text = visible(text)
    if inches(text, size) <= room:
        return text
    kept = len(text) - 1
    while kept > 2 and inches(f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}", size) > room:
        kept -= 1
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


def wrapped(text: str, room: float, size: float | None = None) -> str:
    """Text in lines that take so many inches at most (default: of the size of titles and labels)."""
    size = float(mpl.rcParams["font.size"]) if size is None else size
    lines = [text]
    letters = len(text)
    while letters > 8 and any(inches(line, size) > room for line in lines):
        letters = min(letters - 1, max(8, int(1.1 * letters * room / max(inches(line, size) for line in lines))))
        lines = textwrap.wrap(text, letters)
    return "\n".join(lines)


def legend(
    figure: Figure,
    handles: Sequence[Any],
    labels: Sequence[Any],
    *,
    place: Literal["lower", "upper"] = "lower",
    title: str = "",
) -> None:
    """A legend outside of the panels, in as many columns as the figure is wide for."""
    handle, gap = 2.8 * small() / 72, 2.0 * small() / 72
    room = figure.get_figwidth() - 0.15
    shown = [shortened(str(label), room - handle) for label in labels]
    columns = max(1, int((room + gap) / (max((inches(label) for label in shown), default=0.0) + handle + gap)))
    figure.legend(
        handles,
        shown,
        loc="outside lower center" if place == "lower" else "outside upper center",
        ncols=min(columns, max(1, len(shown))),
        title=wrapped(title, room) or None,
    )


def make_visible(figure: Figure) -> None:
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


def save(figure: Figure, buffer: IO[Any], **options: Any) -> None:
    """Write a figure; where its words leave no room for what is drawn, it is made higher first."""
    for _ in range(6):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="constrained_layout not applied")
            try:
                figure.savefig(buffer, **options)
                return
            except UserWarning:
                buffer.seek(0)
                buffer.truncate()
                figure.set_figheight(1.4 * figure.get_figheight())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        figure.savefig(buffer, **options)


def to_svg(figure: Figure) -> str:
    """A figure as SVG text, the same bytes for the same figure; coordinates to a hundredth of a point."""
    buffer = StringIO()
    make_visible(figure)
    with style():
        save(figure, buffer, format="svg", dpi=110, metadata={"Date": None, "Creator": None})
    return _rounded(buffer.getvalue())


def to_png(figure: Figure, *, dpi: float = 160.0) -> bytes:
    """A figure as PNG bytes on white."""
    buffer = BytesIO()
    make_visible(figure)
    with style():
        save(figure, buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()
