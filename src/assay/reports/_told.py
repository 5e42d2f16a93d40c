"""What a figure shows, in words: its numbers are read from what was drawn, so that both say the same."""

import math
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

CELLS = 300
"""Of a picture with more cells, such as the attention of a sentence, only the range is told."""


def numbers(figure: Figure) -> str:
    """The numbers of a figure, panel by panel and series by series; nothing for one without any."""
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    return " ".join(part for axes in panels for part in _of_panel(axes, named=len(panels) > 1))


def _of_panel(axes: Axes, *, named: bool) -> Iterator[str]:
    title = " ".join(axes.get_title(loc="left").split())
    parts = [*_images(axes), *_clouds(axes), *_series(axes)]
    if parts:
        yield f"{title}: {'; '.join(parts)}." if title and named else f"{'; '.join(parts)}."


def _images(axes: Axes) -> Iterator[str]:
    rows, columns = _names(axes.yaxis), _names(axes.xaxis)
    for image in axes.images:
        values: np.ndarray = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan)
        if values.size > CELLS:
            yield f"from {_number(np.nanmin(values))} to {_number(np.nanmax(values))}"
            continue
        for row, line in enumerate(values):
            cells = (f"{columns.get(column, column)} {_number(value)}" for column, value in enumerate(line))
            yield f"{rows.get(row, row)}: {', '.join(cells)}"


def _clouds(axes: Axes) -> Iterator[str]:
    for cloud in axes.collections:
        number = len(np.asarray(cloud.get_offsets()))
        if cloud.get_array() is not None and number:
            yield f"{number:,} points"


def _series(axes: Axes) -> Iterator[str]:
    down, along = _names(axes.yaxis), _names(axes.xaxis)
    # Numbers that stand at chosen ticks are no names of rows.
    by_row = any(not _is_number(name) for name in down.values())
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        if isinstance(handle, BarContainer):
            x = np.array([bar.get_width() for bar in handle.patches])
            y = np.array([bar.get_y() + bar.get_height() / 2 for bar in handle.patches])
        elif isinstance(handle, ErrorbarContainer | Line2D):
            line = handle if isinstance(handle, Line2D) else handle.lines[0]
            if not isinstance(line, Line2D):
                continue
            x, y = np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)
        else:
            continue
        where, value, names = (y, x, down) if by_row else (x, y, along)
        told = [
            f"{_nearest(names, at)} {_number(one)}"
            for at, one in zip(where.tolist(), value.tolist(), strict=True)
            if not math.isnan(one)
        ]
        if told:
            yield f"{label}: {', '.join(told)}"


def _names(axis: Axis) -> dict[float, str]:
    """What stands at the places along an axis that were named."""
    locator, formatter = axis.get_major_locator(), axis.get_major_formatter()
    if not isinstance(locator, FixedLocator):
        return {}
    named = {float(place): " ".join(formatter(place).split()) for place in locator()}
    return {place: name for place, name in named.items() if name}


def _nearest(names: dict[float, str], at: float) -> str:
    """The name of a place, from which series beside each other are moved a little."""
    return names[min(names, key=lambda place: abs(place - at))] if names else _number(at)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).replace("\N{MINUS SIGN}", "", 1).isdecimal()


def _number(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
