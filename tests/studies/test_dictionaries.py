"""The study of dictionaries, on a small part of it, and a dictionary on one's own text."""

import json
from dataclasses import replace

import pandas as pd
import pytest

import assay
from assay import AssayError
from assay.dictionaries import SparseAutoencoder
from assay.simplify import SVD, label
from assay.studies import dictionaries

MAIN = SparseAutoencoder(k=4, steps=60, batch=256, rows=2_000)


def small(*, everything: bool, device: str, data: str | None) -> dictionaries.Part:
    whole = dictionaries.dyck(everything=False, device=device, data=data)
    return replace(whole, main=MAIN, others=[SVD(rank=6, centred=True)], sequences=30, fit_sequences=80)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(dictionaries.PARTS, "dyck", small)
        found, shown = dictionaries.run(folder, only=["dyck"])
    return folder, found[0], shown


def test_the_table_has_what_was_measured(done):
    _, one, shown = done
    table = shown.tables[0]
    agreement = one.comparison.agreement("iid").set_index("proxy")["estimate"]
    for row, recipe in zip(table.rows, one.part.recipes, strict=True):
        name = label(recipe)
        assert row[0][0] == name
        assert float(row[4][0]) == pytest.approx(100 * agreement[name], abs=0.06)
        vectors = one.vectors[name].query("split == 'iid' and kind == 'all'").iloc[0]
        assert float(row[2][0]) == pytest.approx(vectors["explained"], abs=6e-4)
    bits = [float(row[1][0]) for row in table.rows]
    assert bits[1] == 6 * 16
    assert bits[0] == pytest.approx(4 * 16 + 24, abs=6), "4 of 256 or so features, in any order"
    control = float(table.rows[0][5][0])
    assert control == pytest.approx(100 * agreement[label(MAIN.control())], abs=0.06)


def test_a_page_files_and_what_was_fitted_are_left(done):
    folder, one, shown = done
    for page in (folder / "report.html", folder / "dyck" / "report.html"):
        text = page.read_text(encoding="utf-8")
        assert "dictionaries beside projections of equal bits" in text
        assert "what refitting gives back" in text
    assert {path.name for path in (folder / "dyck" / "figures").glob("*bits-dyck.svg")} == {
        "same-prediction-by-bits-dyck.svg", "explained-by-bits-dyck.svg",
    }  # fmt: skip
    vectors = pd.read_parquet(folder / "dyck" / dictionaries.VECTORS)
    assert set(vectors["proxy"]) == {label(recipe) for recipe in one.part.recipes}
    kept = sorted(path for path in (folder / "dyck" / "fitted").iterdir() if "refitted" not in path.name)
    subject = one.part.subjects[0]
    again = [assay.load_proxy(path, subject).simplification for path in kept]
    fitted = one.comparison.fitted(label(MAIN), "layer1.residual")
    assert any(other.measures_ == fitted.measures_ for other in again)
    assert shown.features, "telling features are shown"


@pytest.mark.slow
def test_what_was_fitted_is_not_fitted_again(done, monkeypatch):
    """A run that was stopped goes on with the dictionaries that it had trained."""
    folder, one, _ = done
    monkeypatch.setitem(dictionaries.PARTS, "dyck", small)
    monkeypatch.setattr(SparseAutoencoder, "fit", lambda *_: pytest.fail("it is trained again"))
    for cell in list((folder / "dyck" / "cells").iterdir())[::3]:
        cell.unlink()
    found, _ = dictionaries.run(folder, only=["dyck"])
    pd.testing.assert_frame_equal(found[0].comparison.to_frame(), one.comparison.to_frame())


def test_equal_ranks_have_equal_bits():
    for k, expansion, width in ((16, 8, 128), (32, 8, 128), (4, 2, 64)):
        rank = dictionaries.equal_rank(SparseAutoencoder(k=k, expansion=expansion), width)
        import math  # noqa: PLC0415

        bits = math.log2(math.comb(expansion * width, k)) + 16 * k
        assert abs(rank * 16 - bits) <= 8


def test_unknown_parts_are_refused():
    for only, words in ((["dyk"], "dyck"), (["dyck", "dyck"], "twice"), (["code-java"], "--data")):
        with pytest.raises(AssayError, match=words):
            dictionaries.check_names(only)


@pytest.mark.slow
def test_from_the_command_line(command, monkeypatch, done):
    monkeypatch.setitem(dictionaries.PARTS, "dyck", small)
    status, out, _ = command("run", "dictionaries", "--only", "dyck", "--json", "--out", str(done[0]))
    assert status == 0
    assert list(json.loads(out)["parts"]) == ["dyck"]
    status, _, err = command("run", "dictionaries", "--only", "code-java")
    assert status == 2
    assert "--data" in err
