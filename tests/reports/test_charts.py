"""Charts of a study: what shares a colour, what a marker, and a legend that says so."""

import pytest

from assay.reports import Chart, Series
from assay.reports._figures import points_chart
from assay.reports._style import style


def series(name: str, variant: str) -> Series:
    return Series(name=name, variant=variant, x=[0, 1], y=[1.0, None], low=[0.5, None], high=[1.5, None])


def drawn(*all_series: Series):
    chart = Chart(name="c", caption="", x_label="shift", y_label="gap", names=["one", "two"], series=list(all_series))
    with style():
        return points_chart(chart)


def test_a_colour_a_name_and_a_marker_a_variant():
    figure = drawn(*(series(name, variant) for name in ("SVD", "KMeans") for variant in ("raw", "matched")))
    points = [container.lines[0] for container in figure.axes[0].containers]
    assert [point.get_color() == points[0].get_color() for point in points] == [True, True, False, False]
    assert [point.get_marker() == points[0].get_marker() for point in points] == [True, False, True, False]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["SVD", "KMeans", "raw", "matched"]


def test_one_variant_is_not_named():
    figure = drawn(series("SVD", ""), series("KMeans", ""))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["SVD", "KMeans"]


@pytest.mark.parametrize("name", ["c", "KMeans(clusters=256)", "SVD(rank=8), the keys and queries of a layer"])
def test_the_legend_stays_within_the_figure(name):
    figure = drawn(*(series(f"{number} {name}", "") for number in range(9)))
    with style():
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1


def test_a_band_lies_between_its_limits_and_the_legend_says_which():
    line = Series(name="iid", x=[4, 8], y=[0.5, 1.0], low=[0.4, 0.9], high=[0.6, 1.1])
    band = Series(name="random: 95% interval", band=True, x=[4, 8], y=[0.1, 0.2], low=[-0.1, 0.1], high=[0.3, 0.4])
    chart = Chart(name="c", caption="", x_label="edges", y_label="f", names=None, series=[line, band], logarithmic=True)
    with style():
        figure = points_chart(chart)
    [axes] = figure.axes
    [area] = axes.collections[-1:]
    corners = {tuple(map(float, corner)) for corner in area.get_paths()[0].vertices}
    assert {(4, -0.1), (4, 0.3), (8, 0.1), (8, 0.4)} <= corners
    points, legend = figure.legends
    assert [text.get_text() for text in points.get_texts()] == ["iid"]
    assert [text.get_text() for text in legend.get_texts()] == ["random: 95% interval"]
    assert legend.get_patches()[0].get_facecolor() == tuple(area.get_facecolor()[0])
    assert len(axes.containers) == 1, "the band has no points"


def test_a_panel_a_name_of_its_own_with_one_legend_for_all():
    chart = Chart(
        name="c", caption="", x_label="edges", y_label="f", names=None,
        series=[Series(name=name, panel=panel, x=[1, 2], y=[0, 1], low=[0, 1], high=[0, 1])
                for panel in ("exact", "eap") for name in ("iid", "shift")],
    )  # fmt: skip
    with style():
        figure = points_chart(chart)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["exact", "eap"]
    assert [len(axes.containers) for axes in figure.axes] == [2, 2]
    colours = [[container.lines[0].get_color() for container in axes.containers] for axes in figure.axes]
    assert colours[0] == colours[1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["iid", "shift"]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
