"""How it is shown: tables, figures and the HTML page, all drawn from a comparison's record."""

from assay.reports._figures import figures
from assay.reports._illustrations import Illustrations, KeyCloud, SentenceView
from assay.reports._page import environment, picture, write_figures, write_page
from assay.reports._style import PALETTE, style, to_png, to_svg
from assay.reports._tables import markdown, terminal, write_markdown

__all__ = [
    "PALETTE",
    "Illustrations",
    "KeyCloud",
    "SentenceView",
    "environment",
    "figures",
    "markdown",
    "picture",
    "style",
    "terminal",
    "to_png",
    "to_svg",
    "write_figures",
    "write_markdown",
    "write_page",
]
