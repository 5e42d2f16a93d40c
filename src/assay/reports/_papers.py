"""Figures for papers: as wide as a column, with fonts that journals take, a caption, and what they show in words."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from io import BytesIO
from numbers import Real
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import rc_params_from_file
from matplotlib.figure import Figure
from matplotlib.style import library as known_styles

from assay._drawing import PaperFigure
from assay._errors import AssayError, in_line, unknown_name
from assay._files import inside, safe_name, write_atomically
from assay.faithfulness import Comparison
from assay.reports._figures import drawings
from assay.reports._forest import caption as forest_caption
from assay.reports._forest_figure import fitting, forest_figure
from assay.reports._illustrations import Illustrations
from assay.reports._style import PAPER, make_visible, save, style
from assay.reports._told import numbers

WIDTHS: Mapping[str, float] = {"column": 3.25, "text": 5.5, "page": 6.75}
"""Inches of a column, of a text in one column, and of a page of two."""

NARROWEST, WIDEST = 2.5, 20.0
"""Inches: below, names and numbers have no room beside what is drawn."""

FORMATS: Mapping[str, Mapping[str, Any]] = {
    # Without the date, the same run gives the same file.
    "pdf": {"metadata": {"CreationDate": None}},
    "svg": {"metadata": {"Date": None, "Creator": None}},
    "png": {"dpi": 300, "metadata": {"Software": None}},
}
"""The forms a figure can be written in, and how."""

MAIN = "verdicts"
"""The name of the main figure."""


class DrawnFigure(PaperFigure):
    """A figure of a comparison for a paper."""

    def __init__(
        self, name: str, caption: str, draw: Callable[[float], Figure], told: Callable[[], str] | None = None
    ) -> None:
        self.name = name
        self.caption = caption
        self._draw = draw
        self._told = told

    def __repr__(self) -> str:
        return f"<PaperFigure {self.name}: {self.caption}>"

    @cached_property
    def alternative(self) -> str:
        """What it shows, for those who do not see it: its numbers."""
        if self._told is not None:
            return self._told()
        with style(PAPER):
            return numbers(self._draw(WIDTHS["page"]))

    def draw(self, width: str | float = "column", style: str | Path | Mapping[str, Any] | None = None) -> Figure:
        """The figure as one of matplotlib, as wide and in the style as `Comparison.save_figures` has it.

        Save it by `save`: by matplotlib's own call it would have the fonts of the settings that are in use then.
        """
        return self._drawn(_width(width), _settings(style))

    def save(
        self,
        path: str | Path,
        width: str | float = "column",
        style: str | Path | Mapping[str, Any] | None = None,
    ) -> Path:
        """Write it; the end of the file's name says the format. Returns the path. Raises AssayError as for `draw`."""
        path = Path(path)
        data = self.data(path.suffix.removeprefix("."), width, style)
        write_atomically(path, lambda temporary: temporary.write_bytes(data))
        return path

    def data(
        self, format: str, width: str | float = "column", style: str | Path | Mapping[str, Any] | None = None
    ) -> bytes:
        """The file's bytes, the same for the same run."""
        check_form(format)
        inches, settings = _width(width), _settings(style)
        figure = self._drawn(inches, settings)
        return _written(figure, format, settings)

    def _drawn(self, inches: float, settings: Mapping[str, Any]) -> Figure:
        with _told_of_style(settings), style(PAPER, settings):
            return self._draw(inches)


def paper_figures(comparison: Comparison, illustrations: Illustrations | None = None) -> dict[str, DrawnFigure]:
    """The figures of a comparison for papers, by name: first what the page opens with, then those below it.

    `illustrations` are the pictures of its study (`Illustrations.load(folder)`).
    """
    with comparison.trusted_no_further():
        return {one.name: one for one in _figures(comparison, illustrations or Illustrations())}


def _figures(comparison: Comparison, illustrations: Illustrations) -> Iterator[DrawnFigure]:
    found, groups, _ = fitting(comparison)
    rows = [row for group in groups for row in group.rows]
    if rows:
        left_out = len(comparison.verdicts()) - len(rows)
        yield DrawnFigure(
            MAIN,
            forest_caption(comparison, found, left_out=left_out, lanes=True),
            partial(forest_figure, comparison),
            lambda: " ".join(row.label for row in rows),
        )
    for drawn in drawings(comparison, illustrations):
        yield DrawnFigure(*drawn)


def save_figures(
    comparison: Comparison,
    folder: Path,
    *,
    format: str = "pdf",
    width: str | float = "column",
    style: str | Path | Mapping[str, Any] | None = None,
    illustrations: Illustrations | None = None,
) -> list[Path]:
    """Write every figure for papers, and a .txt with its caption and alternative text beside it; gives the paths.

    Raises AssayError, before anything is written, for a format, width or style that there is not.
    """
    check_form(format, width, style)
    inside(folder.parent, folder.name)
    paths = []
    with comparison.trusted_no_further():
        for figure in paper_figures(comparison, illustrations).values():
            words = f"{figure.caption}\n\n{figure.alternative}\n".encode()
            for suffix, data in ((format, figure.data(format, width, style)), ("txt", words)):
                path = folder / f"{safe_name(figure.name)}.{suffix}"
                write_atomically(path, lambda temporary, data=data: temporary.write_bytes(data))  # type: ignore[misc]
                paths.append(path)
    return paths


def check_form(
    format: str = "pdf", width: str | float = "column", style: str | Path | Mapping[str, Any] | None = None
) -> None:
    """Raise AssayError for a format, width or style that figures cannot have."""
    if format not in FORMATS:
        raise unknown_name("format of a figure", format, FORMATS)
    _width(width)
    _settings(style)


def _width(given: str | float) -> float:
    """A width in inches, by name or as a number of them, which may be text."""
    if given in WIDTHS:
        return WIDTHS[str(given)]
    try:
        found = float(given) if isinstance(given, str | Real) and not isinstance(given, bool) else math.nan
    except ValueError:
        found = math.nan
    if not NARROWEST <= found <= WIDEST:
        names = ", ".join(f"{name!r} ({inches:g} inches)" for name, inches in WIDTHS.items())
        raise AssayError(f"width={given!r}: give {names}, or a number of inches from {NARROWEST:g} to {WIDEST:g}.")
    return found


def _settings(given: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """A style's settings: of matplotlib's by its name, of a file of such settings, or as they are given."""
    if given is None:
        return {}
    what = f"style={given!r}" if isinstance(given, str | Path) else "style"
    try:
        if isinstance(given, Mapping):
            _check_names(given, what)
            return _table(mpl.RcParams(given))
        if isinstance(given, str) and given in known_styles:
            return _table(known_styles[given])
        if Path(given).is_file():
            # Names first: matplotlib leaves out those that it does not know, and says so in a log only.
            _check_names(_names(Path(given)), what)
            return _table(rc_params_from_file(Path(given), fail_on_error=True, use_default_template=False))
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise AssayError(f"{what} cannot be used: {in_line(error)}.") from None
    raise AssayError(
        f"{what} is no style: give the name of one of matplotlib's (such as 'ggplot'), a file of its settings, or a "
        "table such as {'font.family': 'serif'}."
    )


def _table(settings: mpl.RcParams) -> dict[str, Any]:
    return {str(name): settings[name] for name in settings}


def _check_names(given: Iterable[str], what: str) -> None:
    """Raise AssayError, with the nearest names, for a setting that matplotlib has not."""
    for name in given:
        if name not in mpl.rcParams:
            raise AssayError(f"{what}: {unknown_name('setting of matplotlib', str(name), mpl.rcParams)}")


def _names(path: Path) -> Iterator[str]:
    """The names of the settings in a file."""
    for line in path.read_text(encoding="utf-8").splitlines():
        name, colon, _ = line.partition("#")[0].partition(":")
        if colon:
            yield name.strip()


def _written(figure: Figure, format: str, settings: Mapping[str, Any]) -> bytes:
    """A figure as a file, drawn in the style that it was made in."""
    buffer = BytesIO()
    make_visible(figure)
    with _told_of_style(settings), style(PAPER, settings):
        save(figure, buffer, format=format, **FORMATS[format])
    return buffer.getvalue()


@contextmanager
def _told_of_style(settings: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, what fails because of a style of others, such as one that needs TeX, fails with an AssayError.

    Ours needs nothing: there an error is our own.
    """
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        if not settings:
            raise
        raise AssayError(f"the figure cannot be drawn in this style ({in_line(error)}); change it.") from error
