"""What the studies of small attention models show alike: cells of tables, lines of charts, an agreement with limits."""

from collections.abc import Sequence

from assay.faithfulness import Comparison
from assay.reports import Series

Limits = tuple[float, float, float]
"""An estimate with the limits of its interval."""


def number(value: float) -> str:
    """A number in a cell."""
    return f"{value:.3f}"


def with_limits(limits: Limits) -> tuple[str, str]:
    """A cell with an interval below the number."""
    estimate, low, high = limits
    return number(estimate), f"[{low:.3f}, {high:.3f}]"


def agreement(
    comparison: Comparison, split: str, proxy: str, kind: str | None = None, metric: str | None = None
) -> Limits:
    """How often a proxy agrees with its subject on a split, on predictions of a kind (default: the primary one).

    Or another `metric` of it.
    """
    record, frame = comparison.record, comparison.results
    chosen = (
        (frame["metric"] == (metric or record.primary_metric))
        & (frame["kind"] == (kind or record.primary_kind))
        & (frame["feature"] == "")
        & (frame["split"] == split)
        & (frame["proxy"] == proxy)
        & frame["trained"].astype(bool)
    )
    row = frame[chosen].to_dict("records")[0]
    return float(row["estimate"]), float(row["low"]), float(row["high"])


def gap(comparison: Comparison, shift: str, proxy: str) -> Limits:
    """The generalization gap of a proxy under a shift."""
    frame = comparison.gaps()
    row = frame[(frame["proxy"] == proxy) & (frame["split"] == shift)].to_dict("records")[0]
    return float(row["gap"]), float(row["low"]), float(row["high"])


def judgement(comparison: Comparison, proxy: str) -> str:
    """The verdict on a proxy, in a word."""
    return next(verdict.judgement for verdict in comparison.verdicts() if verdict.proxy == proxy)


def line(name: str, panel: str, points: Sequence[tuple[float, float | None]], variant: str = "") -> Series:
    """A series without limits; None where there is nothing."""
    nothing: list[float | None] = [None] * len(points)
    y: list[float | None] = [None if value is None else float(value) for _, value in points]
    x = [float(x) for x, _ in points]
    return Series(name=name, panel=panel, variant=variant, x=x, y=y, low=nothing, high=nothing)


def with_bars(name: str, panel: str, points: Sequence[tuple[float, Limits]], variant: str = "") -> Series:
    """A series with limits."""
    return Series(
        name=name,
        panel=panel,
        variant=variant,
        x=[x for x, _ in points],
        y=[limits[0] for _, limits in points],
        low=[limits[1] for _, limits in points],
        high=[limits[2] for _, limits in points],
    )
