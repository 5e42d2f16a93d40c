"""How it is shown: tables, figures and the HTML page, all drawn from a comparison's record."""

from assay.reports._between import between_tables
from assay.reports._figures import figures
from assay.reports._graphs import graph_figure, write_graph_page
from assay.reports._illustrations import (
    Chart,
    CircuitEdge,
    CircuitView,
    FeatureSide,
    FeatureText,
    FeatureView,
    GraphEdge,
    GraphNode,
    GraphView,
    HeatView,
    Illustrations,
    KeyCloud,
    SentenceView,
    Series,
    TableView,
    TextView,
)
from assay.reports._junit import write_junit
from assay.reports._latex import latex
from assay.reports._page import environment, picture, write_figures, write_page
from assay.reports._papers import FORMATS, WIDTHS, DrawnFigure, check_form, paper_figures, save_figures
from assay.reports._style import PALETTE, style, to_png, to_svg
from assay.reports._tables import (
    check_markdown,
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
    "FORMATS",
    "PALETTE",
    "WIDTHS",
    "Chart",
    "CircuitEdge",
    "CircuitView",
    "DrawnFigure",
    "FeatureSide",
    "FeatureText",
    "FeatureView",
    "GraphEdge",
    "GraphNode",
    "GraphView",
    "HeatView",
    "Illustrations",
    "KeyCloud",
    "SentenceView",
    "Series",
    "TableView",
    "TextView",
    "between_tables",
    "check_form",
    "check_markdown",
    "environment",
    "figures",
    "graph_figure",
    "latex",
    "limits",
    "markdown",
    "paper_figures",
    "percent",
    "picture",
    "point_limits",
    "points",
    "save_figures",
    "style",
    "terminal",
    "terminal_table",
    "to_png",
    "to_svg",
    "write_figures",
    "write_graph_page",
    "write_junit",
    "write_markdown",
    "write_page",
    "write_tables",
]
