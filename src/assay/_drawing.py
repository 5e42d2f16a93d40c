"""Who draws what was measured: rooms below `reports` ask here, and know nothing of how it is shown.

Rooms import downwards only. `assay/__init__.py`, which stands above them all and runs before any, says who draws.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


class PaperFigure(ABC):
    """A figure for a paper: a name for its file, a caption, and what it shows in words and numbers."""

    name: str
    caption: str

    @property
    @abstractmethod
    def alternative(self) -> str:
        """What it shows, for those who do not see it: its numbers."""

    @abstractmethod
    def draw(self, width: str | float = "column", style: str | Path | Mapping[str, Any] | None = None) -> Any:
        """The figure as one of matplotlib, as wide and in the style as `Comparison.save_figures` has it.

        Save it by `save`: by matplotlib's own call it would have the fonts of the settings that are in use then.
        """

    @abstractmethod
    def save(
        self, path: str | Path, width: str | float = "column", style: str | Path | Mapping[str, Any] | None = None
    ) -> Path:
        """Write it; the end of the file's name says the format. Returns the path. Raises AssayError as for `draw`."""


@runtime_checkable
class Drawing(Protocol):
    """What draws comparisons."""

    def write_page(self, comparison: Any, path: Path) -> Path:
        """Write the page."""

    def paper_figures(self, comparison: Any) -> Mapping[str, PaperFigure]:
        """The figures for papers by name."""

    def save_figures(self, comparison: Any, folder: Path, *, format: str, width: str | float, style: Any) -> list[Path]:
        """Write these figures."""

    def latex(self, comparison: Any, *, label: str, caption: str | None) -> str:
        """The main table for LaTeX."""


_who: list[Callable[[], Drawing]] = []


def drawn_by(who: Callable[[], Drawing]) -> None:
    """Say who draws; it is asked for only when something is drawn, since plotting takes time to import."""
    _who[:] = [who]


def drawing() -> Drawing:
    """Who draws."""
    return _who[0]()
