"""How it is shown: tables, figures and the HTML page, all drawn from a comparison's record."""

from assay.reports._figures import figures
from assay.reports._illustrations import (
    Chart,
    CircuitEdge,
    CircuitView,
    FeatureSide,
    FeatureText,
    FeatureView,
    HeatView,
    Illustrations,
    KeyCloud,
    SentenceView,
    Series,
    TableView,
    TextView,
)
from assay.reports._junit import write_junit
from assay.reports._page import environment, picture, write_figures, write_page
from assay.reports._style import PALETTE, style, to_png, to_svg
from assay.reports._tables import (
    limits,
    markdown,
    percent,
    point_limits,
    points,
    terminal,
    terminal_table,
    write_markdown,
    write_tables,
)

__all__ = [
    "PALETTE",
    "Chart",
    "CircuitEdge",
    "CircuitView",
    "FeatureSide",
    "FeatureText",
    "FeatureView",
    "HeatView",
    "Illustrations",
    "KeyCloud",
    "SentenceView",
    "Series",
    "TableView",
    "TextView",
    "environment",
    "figures",
    "limits",
    "markdown",
    "percent",
    "picture",
    "point_limits",
    "points",
    "style",
    "terminal",
    "terminal_table",
    "to_png",
    "to_svg",
    "write_figures",
    "write_junit",
    "write_markdown",
    "write_page",
    "write_tables",
]
