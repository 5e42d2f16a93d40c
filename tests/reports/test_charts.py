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
