"""A sweep over many sites at a glance: a grid a recipe, a sign a site, and what is lost where."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from assay.faithfulness import Judgement, Verdict
from assay.reports._story import points_of, tally

MISLEADING = ("illusion", "gap")
"""Judgements whose cells are tinted."""

WHOLE = "whole"
"""The column of a site that is a whole layer."""

_SITE = re.compile(r"layer(\d+)(?:\.(.+))?")
_PART = re.compile(r"(\D*)(\d*)")


class Cell(NamedTuple):
    """A site of a grid: its verdict in a word, and in words for those who do not see the sign."""

    judgement: Judgement
    label: str


class Grid(NamedTuple):
    """The verdicts of a recipe: rows are layers, columns heads or other parts; None where nothing was judged."""

    recipe: str
    counts: tuple[tuple[Judgement, int], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


class Loss(NamedTuple):
    """The largest loss of a recipe in a layer, in points, and at how many of how many sites it misleads."""

    loss: str
    misleading: int
    sites: int


def place(site: str) -> tuple[str, str]:
    """The row and the column of a site; one that reaches over layers has a row of its own."""
    match = _SITE.fullmatch(site)
    if match is None:
        return site, WHOLE
    return f"layer {match[1]}", (match[2] or WHOLE).removeprefix("head")


def grids(verdicts: Sequence[Verdict]) -> tuple[Grid, ...]:
    """A grid for every recipe, in the order in which they were given."""
    found = []
    for recipe in dict.fromkeys(verdict.proxy for verdict in verdicts):
        own = {place(verdict.site): verdict for verdict in verdicts if verdict.proxy == recipe}
        rows = sorted({row for row, _ in own}, key=_natural)
        columns = sorted({column for _, column in own}, key=_natural)
        found.append(
            Grid(
                recipe,
                tuple(tally(own.values())),
                tuple(columns),
                tuple((row, tuple(_cell(own.get((row, column))) for column in columns)) for row in rows),
            )
        )
    return tuple(found)


def losses(verdicts: Sequence[Verdict]) -> tuple[tuple[str, tuple[Loss | None, ...]], ...]:
    """What is lost at most by layer: a row a layer, a column a recipe, in the order of `grids`."""
    recipes = list(dict.fromkeys(verdict.proxy for verdict in verdicts))
    layers = sorted({place(verdict.site)[0] for verdict in verdicts}, key=_natural)
    return tuple(
        (
            layer,
            tuple(
                _loss([one for one in verdicts if one.proxy == recipe and place(one.site)[0] == layer])
                for recipe in recipes
            ),
        )
        for layer in layers
    )


def _loss(verdicts: Sequence[Verdict]) -> Loss | None:
    if not verdicts:
        return None
    known = [verdict.gap for verdict in verdicts if not math.isnan(verdict.gap)]
    misleading = sum(verdict.judgement in MISLEADING for verdict in verdicts)
    return Loss(points_of(max(known)) if known else "–", misleading, len(verdicts))


def _cell(verdict: Verdict | None) -> Cell | None:
    if verdict is None:
        return None
    lost = "" if math.isnan(verdict.gap) else f", {points_of(verdict.gap)} points lost"
    return Cell(verdict.judgement, f"{verdict.site}: {verdict.judgement}{lost}")


def _natural(name: str) -> tuple[bool, list[tuple[str, int]]]:
    """Numbers in names by their value; what is no part of a layer first, in its own order."""
    parts = [(text, int(number or -1)) for text, number in _PART.findall(name)]
    return name.startswith("layer ") or name[:1].isdigit(), parts
