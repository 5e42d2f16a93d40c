"""Two runs side by side, as tables."""

import pandas as pd

from assay.faithfulness import BetweenRuns
from assay.reports._illustrations import TableView
from assay.reports._tables import limits, percent

MOST = 20
"""Numbers and settings that are shown; the rest is in the JSON."""


def between_tables(found: BetweenRuns) -> list[TableView]:
    """Verdicts that changed, numbers that moved most, and settings that differ; those in which there is something."""
    changed = found.verdicts[found.verdicts["changed"].astype(bool)]
    moved = found.numbers[found.numbers["moved"].abs() > 0]
    moved = moved.sort_values("moved", key=lambda by: by.abs(), ascending=False, kind="stable")
    tables = [
        TableView(
            title="Verdicts that changed",
            note="By proxy and site; a dash where a run has it not.",
            headings=["proxy", "site", "first", "second"],
            rows=[
                [(row.proxy, ""), (row.site, ""), (_judged(row.first), ""), (_judged(row.second), "")]
                for row in changed.itertuples()
            ],
        ),
        TableView(
            title="Numbers that moved",
            note=f"Rates that verdicts rest on, with their intervals{_of(moved)}; where these do not overlap: apart.",
            headings=["proxy", "site", "split", "first", "second", "points", ""],
            rows=[
                [
                    (row.proxy, ""),
                    (row.site, ""),
                    (row.split, ""),
                    (percent(row.first), limits(row.low_first, row.high_first)),
                    (percent(row.second), limits(row.low_second, row.high_second)),
                    (f"{100 * row.moved:+.1f}", ""),
                    ("apart" if row.apart else "", ""),
                ]
                for row in moved.head(MOST).itertuples()
            ],
        ),
        TableView(
            title="What was asked differently",
            note=f"As the records of the runs have it{_of(found.settings)}.",
            headings=["what", "first", "second"],
            rows=[
                [(row.name, ""), (_short(row.first), ""), (_short(row.second), "")]
                for row in found.settings.head(MOST).itertuples()
            ],
        ),
    ]
    return [table for table in tables if table.rows]


def _judged(judgement: object) -> str:
    return judgement if isinstance(judgement, str) else "–"


def _of(rows: pd.DataFrame) -> str:
    return f", the first {MOST} of {len(rows)}" if len(rows) > MOST else ""


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"
