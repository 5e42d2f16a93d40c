"""docs/run-folder.md says what a run leaves: every file, field and column, and no other."""

import re

import pandas as pd
import pytest

from assay.faithfulness import Comparison, Record
from assay.faithfulness import _comparison as comparison
from assay.faithfulness._folder import _LEFT, STUDY
from pages import ROOT
from small_comparison import CALL, recipes

import assay  # isort: skip

PAGE = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")


def first_cells(heading):
    """What stands in code in the first column of the table below a heading."""
    section = re.split(rf"^## {re.escape(heading)}$", PAGE, flags=re.MULTILINE)[1].split("\n## ")[0]
    return [name for row in re.findall(r"^\| (`[^|]*?) \|", section, flags=re.MULTILINE) for name in re.findall(r"`(.+?)`", row)]


TABLES = {
    comparison.RESULTS: comparison.RESULT_COLUMNS,
    comparison.GAPS: comparison.GAP_COLUMNS,
    comparison.CONTROLS: comparison.CONTROL_COLUMNS,
    comparison.MODELS: comparison.MODEL_COLUMNS,
    comparison.EFFECTS: comparison.EFFECT_COLUMNS,
}


@pytest.mark.parametrize("table", TABLES)
def test_columns_are_those_of_the_code(table):
    assert sorted(first_cells(table)) == sorted(TABLES[table])


def test_fields_are_those_of_the_record():
    assert sorted(first_cells("The record")) == sorted(Record.model_fields)
    assert f"schema {comparison.SCHEMA}" in PAGE


def test_files_are_those_that_runs_leave():
    left = {name.split("*")[0] for name in (*_LEFT, STUDY)}
    assert set(first_cells("Files")) == left | {"cells/", "fitted/"}


def test_a_run_leaves_what_the_page_says(subject, task, tmp_path):
    call = {**CALL, "sequences": 8, "fit_sequences": 60, "resamples": 20, "refit": False}
    assay.compare(subject, task, recipes()[:1], folder=tmp_path, progress=False, **call)
    found = {path.name + "/" * path.is_dir() for path in tmp_path.iterdir()}
    assert found <= set(first_cells("Files"))
    assert {*TABLES, comparison.SEQUENCES, comparison.RECORD, STUDY, "cells/"} <= found
    for name, columns in TABLES.items():
        assert set(columns) <= set(pd.read_parquet(tmp_path / name).columns)
    assert sorted(pd.read_parquet(tmp_path / comparison.SEQUENCES).columns) == sorted(first_cells(comparison.SEQUENCES))
    assert Comparison.load(tmp_path).record.status == "complete"
