"""The figure that carries the page: a row a simplification, with its verdict, its agreement on every split, and why.

Positions are in per cent of the width, so that one drawing serves every screen; marks and texts keep their size.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd
from markupsafe import Markup

from assay.faithfulness import Comparison, Judgement, Verdict
from assay.reports._story import SEVERITY, by_severity, reason
from assay.reports._tables import MEANING, agreement_words, on_what, percent

SHAPES: dict[str, Markup] = {
    "illusion": Markup('<path d="M0-5.5 5 0 0 5.5-5 0z" fill="currentColor"/>'),
    "gap": Markup('<path d="M-5.5-4H5.5L0 5.5z" fill="currentColor"/>'),
    "inconclusive": Markup('<circle r="4.4" class="hollow" stroke-dasharray="2.3 2.3"/>'),
    "unfaithful": Markup('<path d="M-4-4 4 4M4-4-4 4" class="hollow"/>'),
    "vacuous": Markup('<circle r="4.6" class="hollow"/><path d="M-2.6 0H2.6" class="hollow"/>'),
    "faithful": Markup('<circle r="5.2" fill="currentColor"/><path d="M-2.4.2-.6 2 2.6-1.7" class="cut"/>'),
    "identical": Markup('<path d="M-4.5-2.2H4.5M-4.5 2.2H4.5" class="hollow"/>'),
    "familiar": Markup('<circle r="4.2" class="ring"/>'),
    "shift": Markup('<circle r="2.4" fill="var(--muted)"/>'),
}
"""One mark a judgement, around the origin: none is told from another by its colour alone."""

DRAWN = 40
"""So many rows are drawn at most, of a larger run the first `FIRST`: the table has all."""

FIRST = 12
"""Up to so many rows all are open; of more, groups that mislead nobody fold."""

_LINE_SAYS: dict[Judgement, str] = {
    "gap": "; its line says what is known",
    "inconclusive": "; its line says about how many sequences would decide",
}

STRETCHED = 0.8
"""Where a simplification agrees on more than this, two thirds of the axis are the rest: there verdicts are made."""


class Mark(NamedTuple):
    """A position of the strip with its interval, in per cent of the width, its lane, shape and class."""

    x: float
    low: float | None
    high: float | None
    y: float
    shape: str


class Row(NamedTuple):
    """A simplification at a site, as the forest shows it; `familiar` and `worst` are agreements in words."""

    verdict: Verdict
    familiar: str
    worst: str
    reason: str
    label: str
    band: tuple[float, float] | None
    ticks: tuple[tuple[float, float], ...]
    marks: tuple[Mark, ...]


class Group(NamedTuple):
    """The rows of one judgement; `folded` where they are many and none misleads."""

    judgement: Judgement
    meaning: str
    rows: tuple[Row, ...]
    folded: bool


class Forest(NamedTuple):
    """The figure: its axis and its rows, those that mislead most first. `height` is that of a strip in pixels."""

    groups: tuple[Group, ...]
    axis: tuple[tuple[float, str], ...]
    needed: float
    needed_at: float
    height: float
    lanes: tuple[float, ...]
    stretched: bool
    left_out: int
    controls: bool


class _Axis:
    """Where a rate lies, in per cent of the width: with a margin for the marks at both ends."""

    def __init__(self, stretched: bool) -> None:
        self.stretched = stretched

    def __call__(self, rate: float) -> float:
        """The position of a rate."""
        at = rate
        if self.stretched:
            at = rate / STRETCHED / 3 if rate <= STRETCHED else 1 / 3 + (rate - STRETCHED) / (1 - STRETCHED) * 2 / 3
        return round(2 + 96 * at, 2)

    @property
    def ticks(self) -> tuple[tuple[float, str], ...]:
        """Positions and numbers along the axis."""
        rates = (0, 40, 80, 85, 90, 95, 100) if self.stretched else (0, 20, 40, 60, 80, 100)
        return tuple((self(rate / 100), str(rate)) for rate in rates)


def forest(comparison: Comparison) -> Forest:
    """The figure of a comparison."""
    verdicts = by_severity(comparison.verdicts())
    shown = verdicts if len(verdicts) <= DRAWN else verdicts[:FIRST]
    axis = _Axis(any(verdict.agreement >= STRETCHED for verdict in shown))
    names = [split.name for split in comparison.record.splits if split.role != "train"]
    # The splits in their order, but what is like training first: all else is compared with it.
    names.sort(key=lambda name: name in comparison.shifts)
    step = 6.0 if len(names) > 3 else 10.0
    lanes = {name: 6.5 + step * index for index, name in enumerate(names)}
    tables = {name: comparison.agreement(name).set_index(["proxy", "site"]) for name in names}
    gaps = comparison.gaps()
    gaps = gaps[gaps["trained"].astype(bool)]
    controls = {(proxy.proxy, proxy.site): proxy.control for proxy in comparison.record.proxies}
    rows = [_row(comparison, verdict, axis, lanes, tables, gaps, controls) for verdict in shown]
    needed = float(comparison.record.settings["min_agreement"])
    return Forest(
        groups=tuple(_groups(rows)),
        axis=axis.ticks,
        needed=needed,
        needed_at=axis(needed),
        height=6.5 + lanes[names[-1]],
        lanes=tuple(lanes.values()),
        stretched=axis.stretched,
        left_out=len(verdicts) - len(shown),
        controls=any(row.band is not None for row in rows),
    )


def caption(comparison: Comparison, found: Forest, *, left_out: int, lanes: bool = False) -> str:
    """What the figure shows and how it is read; with `lanes`, for where no key stands beside it, also what its are."""
    record = comparison.record
    trained = sum(bool(subject["trained"]) for subject in record.subjects)
    over = "whole sequences and training seeds" if trained > 1 else "whole sequences"
    level = round(100 * record.settings["level"])
    parts = [f"{agreement_words(comparison)}{on_what(comparison)}, per cent; lines are {level}% intervals over {over}."]
    if lanes:
        splits = sorted((split for split in record.splits if split.role != "train"), key=lambda one: one.role != "iid")
        named = "; ".join(f"{comparison.split_labels[split.name]} ({split.description})" for split in splits)
        parts.append(
            f"Lanes of a row, from the top: {named}. Open circle: like training; the verdict's mark: the worst shift; "
            "dots: other shifts."
        )
    if found.stretched:
        parts.append("The scale is stretched above 80.")
    parts.append(f"The long tick in the first lane is what is asked there, {100 * found.needed:g}.")
    if found.controls:
        parts.append("Grey ticks on a band are the simplification's own control on the same splits.")
    if left_out:
        parts.append(f"{left_out} more are in the table of all splits.")
    return " ".join(parts)


def _groups(rows: Sequence[Row]) -> Iterator[Group]:
    for judgement in SEVERITY:
        found = tuple(row for row in rows if row.verdict.judgement == judgement)
        if found:
            quiet = judgement in {"unfaithful", "faithful", "vacuous", "identical"}
            yield Group(
                judgement, MEANING[judgement] + _LINE_SAYS.get(judgement, ""), found, quiet and len(rows) > FIRST
            )


def _row(  # noqa: PLR0917
    comparison: Comparison,
    verdict: Verdict,
    axis: _Axis,
    lanes: dict[str, float],
    tables: dict[str, pd.DataFrame],
    gaps: pd.DataFrame,
    controls: dict[tuple[str, str], str | None],
) -> Row:
    key = (verdict.proxy, verdict.site)
    rates = {name: _rate(table, key) for name, table in tables.items()}
    familiar, *shifts = rates
    labels = comparison.split_labels
    marks, said = [], []
    for name, (value, low, high) in rates.items():
        if math.isnan(value):
            said.append(f"{labels[name]} not measured")
            continue
        shape = "familiar" if name == familiar else verdict.judgement if name == verdict.shift else "shift"
        known = not math.isnan(low)
        marks.append(Mark(axis(value), axis(low) if known else None, axis(high) if known else None, lanes[name], shape))
        said.append(
            f"{labels[name]} {percent(value)}%{'' if math.isnan(low) else f' [{percent(low)}, {percent(high)}]'}"
        )
    # A verdict's own mark lies above all others.
    marks.sort(key=lambda mark: (mark.shape == verdict.judgement, mark.shape == "familiar"))
    control = controls[key]
    beside = {} if control is None else {name: _rate(table, (control, verdict.site)) for name, table in tables.items()}
    ticks = tuple((axis(value), lanes[name]) for name, (value, _, _) in beside.items() if not math.isnan(value))
    if ticks:
        measured = [value for value, _, _ in beside.values() if not math.isnan(value)]
        said.append(f"control {control} {percent(min(measured))} to {percent(max(measured))}%")
    band = (min(x for x, _ in ticks), max(x for x, _ in ticks)) if ticks else None
    return Row(
        verdict=verdict,
        familiar=percent(rates[familiar][0]),
        worst="" if verdict.shift not in shifts else percent(rates[verdict.shift][0]),
        reason=reason(comparison, verdict, gaps[(gaps["proxy"] == verdict.proxy) & (gaps["site"] == verdict.site)]),
        label=f"{verdict.where}: {verdict.judgement}. Agreement: {'; '.join(said)}.",
        band=band,
        ticks=ticks,
        marks=tuple(marks),
    )


def _rate(table: pd.DataFrame, key: tuple[str, str]) -> tuple[float, float, float]:
    """Agreement with its limits; NaN where it was not measured."""
    if key not in table.index:
        return (math.nan,) * 3
    row = table.loc[key]
    return float(row["estimate"]), float(row["low"]), float(row["high"])
