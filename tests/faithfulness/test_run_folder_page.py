"""docs/run-folder.md says what a run leaves: every file, field and column, and no other."""

import re

import pandas as pd
import pytest

from assay.faithfulness import Record
from assay.faithfulness._comparison import (
    CONTROL_COLUMNS,
    CONTROLS,
    EFFECT_COLUMNS,
    EFFECTS,
    GAP_COLUMNS,
    GAPS,
    MODEL_COLUMNS,
    MODELS,
    RECORD,
    RESULT_COLUMNS,
    RESULTS,
    SCHEMA,
    SEQUENCES,
)
from assay.faithfulness._folder import _LEFT, STUDY
from pages import ROOT

PAGE = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")


def first_cells(heading):
    """What stands in code in the first column of the table below a heading."""
    section = re.split(rf"^## {re.escape(heading)}$", PAGE, flags=re.MULTILINE)[1].split("\n## ")[0]
    return [
        name
        for row in re.findall(r"^\| (`[^|]*?) \|", section, flags=re.MULTILINE)
        for name in re.findall(r"`(.+?)`", row)
    ]


TABLES = {
    RESULTS: RESULT_COLUMNS, GAPS: GAP_COLUMNS, CONTROLS: CONTROL_COLUMNS, MODELS: MODEL_COLUMNS,
    EFFECTS: EFFECT_COLUMNS,
}  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_columns_are_those_of_the_code(table):
    assert sorted(first_cells(table)) == sorted(TABLES[table])


def test_fields_are_those_of_the_record():
    assert sorted(first_cells("The record")) == sorted(Record.model_fields)
    assert f"schema {SCHEMA}" in PAGE


def test_files_are_those_that_runs_leave():
    left = {name.split("*")[0] for name in (*_LEFT, STUDY)}
    assert set(first_cells("Files")) == left | {"cells/", "fitted/"}


def test_a_run_leaves_what_the_page_says(comparison, run_folder):
    found = {path.name + "/" * path.is_dir() for path in run_folder.iterdir()}
    assert found <= set(first_cells("Files"))
    assert {*TABLES, SEQUENCES, RECORD, STUDY, "cells/"} <= found
    for name, columns in TABLES.items():
        assert set(columns) <= set(pd.read_parquet(run_folder / name).columns)
    assert sorted(pd.read_parquet(run_folder / SEQUENCES).columns) == sorted(first_cells(SEQUENCES))
    assert comparison.record.status == "complete"
