"""`assay run compressed`: from the models to tables, frontier and pages."""

import json
import math
from dataclasses import replace

import pytest

from assay import AssayError, KMeans, OneHotAttention
from assay.faithfulness import Comparison
from assay.models import NGram, RoundWeights, weight_bits
from assay.simplify import label
from assay.studies import compressed
from assay.studies.compressed import Part


@pytest.fixture(scope="module")
def small(subject, task):
    """A part that takes seconds."""
    recipes = [RoundWeights(8), RoundWeights(3), NGram(2)]

    def part(*, everything, device):
        return Part("small", [subject], task, recipes, [KMeans(4), OneHotAttention()], 12, 40)

    return part


@pytest.fixture(scope="module")
def made(small, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setitem(compressed.PARTS, "dyck", small)
    folder = tmp_path_factory.mktemp("run")
    yield folder, *compressed.run(folder, only=["dyck"])
    patch.undo()


def test_a_run_leaves_a_folder_a_part_and_a_page_of_all(made):
    folder, done, _ = made
    assert [one.folder for one in done] == [folder / "dyck"]
    for page in (folder / "report.html", folder / "dyck" / "report.html"):
        assert "Bits that are enough" in page.read_text(encoding="utf-8") or page.parent != folder
    loaded = Comparison.load(folder / "dyck")
    assert {verdict.proxy for verdict in loaded.verdicts()} == {label(recipe) for recipe in done[0].part.recipes}
    beside = Comparison.load(folder / "dyck" / compressed.ATTENTION)
    assert {verdict.proxy for verdict in beside.verdicts()} == {label(recipe) for recipe in done[0].part.attention}
    assert any(path.stem.startswith("frontier") for path in (folder / "dyck" / "figures").iterdir())


def test_bits_are_those_of_the_recipes_and_attention_keeps_all_weights(made, subject):
    _, [one], _ = made
    whole = weight_bits(RoundWeights(16), subject).parameters
    assert one.bits["RoundWeights(bits=8)"] == weight_bits(RoundWeights(8), subject).per_weight
    assert 8 < one.bits["RoundWeights(bits=8)"] < 9
    assert one.bits["OneHotAttention()"] == 16
    width, heads = 16, 4
    assert one.bits["KMeans(clusters=4)"] == pytest.approx(16 + heads * 2 * 4 * width * 16 / whole)
    assert 0 < one.bits["NGram(order=2)"] < 16


def test_tables_hold_what_the_comparison_says(made):
    _, [one], shown = made
    by_title = {table.title: table for table in shown.tables}
    table = by_title["small: agreement with the subject, per cent"]
    rates = one.comparison.agreement("unseen_depth").set_index("proxy")
    column = table.headings.index("unseen depth")
    for row in table.rows:
        value = 100 * rates.loc[row[0][0], "estimate"]
        assert row[column][0] == (">99.9" if 99.95 <= value < 100 else f"{value:.1f}")
    gaps = by_title["small: generalization gaps, points"]
    assert len(gaps.rows) == 3 * len(one.comparison.shifts)
    noise = {row[0][0]: row[-1][0] for row in gaps.rows}
    assert noise["RoundWeights(bits=3), unseen_depth"] != "–"
    assert noise["NGram(order=2), unseen_depth"] == "–", "it has no noise of equal size"


def test_the_fewest_bits_are_those_whose_lower_limits_suffice(made, monkeypatch):
    _, [one], _ = made

    def rates(comparison):
        known = {8: (0.99, 0.97, 1.0), 3: (0.96, 0.951, 0.98)}
        found = {}
        for bits, rate in known.items():
            for split in ("iid", *comparison.shifts):
                low = rate if split == "iid" or bits == 8 else (0.94, 0.92, 0.96)
                found[f"RoundWeights(bits={bits})", split] = low
        return found

    monkeypatch.setattr(compressed, "_rates", rates)
    [row] = compressed.enough([one]).rows
    assert [cell for cell, _ in row[:3]] == ["small", "3", "8"]


def test_the_frontier_has_every_kind_in_and_out_of_distribution(made):
    _, [one], shown = made
    [chart] = shown.charts
    assert {(series.name, series.variant) for series in chart.series} == {
        (kind, variant)
        for kind in ("RoundWeights", "NGram", "KMeans", "OneHotAttention")
        for variant in ("iid", "worst shift")
    }
    worst = next(item for item in chart.series if (item.name, item.variant) == ("RoundWeights", "worst shift"))
    assert worst.x == sorted(worst.x)
    shifts = [one.comparison.agreement(shift).set_index("proxy")["estimate"] for shift in one.comparison.shifts]
    assert worst.y[1] == pytest.approx(100 * min(rates["RoundWeights(bits=8)"] for rates in shifts))


def test_text_that_is_read_for_the_encoder_differs_by_kind():
    english, source = compressed._english(), compressed._source_lines()
    assert min(len(english), len(source)) >= 400
    letters = [sum(map(str.isalpha, "".join(part[:200]))) / len("".join(part[:200])) for part in (english, source)]
    assert letters[0] > letters[1]
    again = compressed._shuffled(english[:5])
    assert [sorted(line.split()) for line in again] == [sorted(line.split()) for line in english[:5]]
    assert again != [" ".join(line.split()) for line in english[:5]]


@pytest.mark.slow
def test_on_the_command_line(command, small, monkeypatch, tmp_path):
    alone = replace(small(everything=False, device="cpu"), controls=False, attention=[])
    monkeypatch.setitem(compressed.PARTS, "dyck", lambda **options: alone)
    arguments = ("run", "compressed", "--only", "dyck", "--out", tmp_path / "run", "--markdown", tmp_path / "new.md")
    status, out, err = command(*arguments, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert "Bits that are enough for 95% agreement" in found["tables"]
    assert {verdict["proxy"] for verdict in found["parts"]["small"]["verdicts"]} >= {"RoundWeights(bits=3)"}
    assert "**Bits that are enough for 95% agreement.**" in (tmp_path / "new.md").read_text(encoding="utf-8")
    assert not math.isnan(found["parts"]["small"]["verdicts"][0]["agreement"])


@pytest.mark.parametrize(("arguments", "words"), [
    (("--only", "dick"), "did you mean 'dyck'"),
    (("--only", "dyck", "--only", "dyck"), "dyck is named twice"),
    (("--only", "code-java"), "needs Java functions"),
    (("--data", "python"), "--data is for the Java model"),
    (("--sequences", "1"), "sequences"),
    (("--device", "abacus"), "abacus"),
])  # fmt: skip
def test_wrong_calls_end_with_2(command, arguments, words, tmp_path):
    status, out, err = command("run", "compressed", *arguments, "--out", tmp_path / "run")
    assert status == 2
    assert words in " ".join(err.replace("│", " ").split())
    assert not out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["encoder", "smollm2"])
def test_a_package_that_is_missing_is_named(part, monkeypatch):
    monkeypatch.setattr("assay.subjects._packaged.importlib.util.find_spec", lambda name: None)
    with pytest.raises(AssayError, match="pip install"):
        compressed.PARTS[part](everything=False, device="cpu")
