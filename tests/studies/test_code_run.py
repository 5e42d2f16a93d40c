"""`assay run code` on a small untrained model and a source of two languages: everything is there and adds up."""

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from assay import AssayError
from assay.faithfulness import Comparison, compare
from assay.reports import Illustrations, TableView, markdown, percent, points, terminal_table
from assay.simplify import SVD, KMeans, OneHotAttention
from assay.studies import code
from assay.studies._code_views import _p_value, telling_function
from assay.subjects import Subject, code_model, load
from assay.tasks import KINDS, UNSCORED, Code, Found, Function


@dataclass(frozen=True)
class Two:
    """Java functions of seven repositories and JavaScript functions."""

    language: str = "java"

    def read(self) -> Found:
        java = [
            f"int f{i}(int a) {{\n  return {'((((' * (i % 5 == 0)}a + {i}{'))))' * (i % 5 == 0)};\n}}"
            for i in range(150)
        ]
        script = [f"function f{i}(a) {{\n  return a + {i};\n}}" for i in range(60)]
        return Found(
            (
                *(Function(text, "java", f"r{i % 7}") for i, text in enumerate(java)),
                *(Function(text, "javascript", "js") for text in script),
            ),
            1,
        )

    def describe(self) -> dict[str, object]:
        return {"kind": "two"}


@pytest.fixture(scope="module")
def task() -> Code:
    return Code(Two(), context=48)


@pytest.fixture(scope="module")
def small(task: Code) -> Subject:
    return Subject(code_model(task, 0), task.tokenizer(), "small")


@pytest.mark.slow
def test_a_run_leaves_everything(task: Code, small: Subject, tmp_path: Path) -> None:
    comparison, shown = code.run(tmp_path, small, task, functions=8)
    splits = task.split_names[1:]
    assert [split.name for split in comparison.record.splits[1:]] == list(splits)
    titles = [table.title for table in shown.tables]
    assert sum("same prediction by kind" in title for title in titles) == len(code.quick())
    for table in shown.tables:
        assert {len(row) for row in table.rows} == {len(table.headings)}, table.title
    gaps = comparison.gaps("same_prediction", "keyword").set_index(["trained", "proxy", "split"])
    of_kinds = next(table for table in shown.tables if table.title.endswith("gap by kind of character"))
    for shift, *cells in of_kinds.rows:
        assert cells[KINDS.index("keyword")][0] == points(gaps.loc[(True, "SVD(rank=8)", shift[0]), "gap"])
    of_depths = next(table for table in shown.tables if "bracket depth" in table.title)
    rates = comparison.results.query(
        "feature == 'depth' and bin == 4 and kind == 'all' and proxy == 'SVD(rank=8)' and trained "
        "and metric == 'same_prediction' and split == 'unseen_depth'"
    )
    assert of_depths.rows[1][1 + of_depths.headings[1:].index("4")][0] == percent(rates["estimate"].item())
    accurate = [table for table in shown.tables if table.title.endswith("accuracy by kind of character")]
    assert len(accurate) == 1 + len(code.quick())
    of_subject = comparison.results.query("metric == 'subject_accuracy' and kind == 'keyword' and site == 'all'")
    for row, split in zip(accurate[0].rows, splits, strict=True):
        assert row[0][0] == split
        value = of_subject[of_subject["split"] == split]["estimate"].iloc[0]
        assert row[2 + KINDS.index("keyword")][0] == percent(value)
    heads = Comparison.load(tmp_path / code.HEADS)
    assert len({proxy.site for proxy in heads.record.proxies}) == 16
    alone = heads.gaps("same_prediction", "keyword").set_index(["trained", "proxy", "site", "split"])
    of_heads = next(table for table in shown.tables if table.title.endswith("SVD(rank=8): gap by kind of character"))
    for head, shift, *cells in of_heads.rows:
        gap = alone.loc[(True, "SVD(rank=8)", head[0], shift[0]), "gap"]
        assert cells[1 + KINDS.index("keyword")][0] == points(gap)
    assert {chart.name for chart in shown.charts} == {
        "gap-by-shift", "gap-by-kind", "agreement-by-bits", "gap-by-component",
    }  # fmt: skip
    for view in shown.texts:
        assert len(view.characters) == len(view.divergence) == len(view.subject) == len(view.proxy_says) > 20
        assert "".join(view.characters).startswith(("int f", "fun\ufffdti\ufffdn f"))
    assert Illustrations.load(tmp_path) == shown
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(f"<h2>{title}</h2>" in page for title in titles)
    assert '<pre class="code">' in page
    assert markdown(comparison)
    json.dumps([table.model_dump() for table in shown.tables])


def test_bits_have_their_share_of_the_codebook_and_one_hot_attention_what_chooses_it(
    task: Code, small: Subject
) -> None:
    recipes = [SVD(rank=4), KMeans(clusters=16), OneHotAttention()]
    options = {"sequences": 6, "fit_sequences": 20, "resamples": 50, "controls": False, "refit": False}
    found = compare(small, task, recipes, metrics=["same_prediction"], **options)
    splits = [task.split(name, 6) for name in task.split_names[1:]]
    chart = code.views.agreement_by_bits(found, recipes, splits, 16, 48)
    positions = {split.name: split.valid.sum() for split in splits}
    by_hand = {
        "SVD": 2 * 4 * 16 + 16 * 4 * 16 / positions["iid"],
        "KMeans": 2 * 4 + 2 * 16 * 16 * 16 / positions["iid"],
        "OneHotAttention": 2 * 16 * 16,
    }
    assert {one.variant: one.x for one in chart.series if one.name == "iid"} == {
        name: [pytest.approx(bits)] for name, bits in by_hand.items()
    }
    assert "codebook" in chart.x_label
    shown = [positions[name] for name in ("iid", *found.shifts[:3])]
    assert f"codebooks spread over the {min(shown):,} to {max(shown):,} positions" in chart.caption
    told = sum(math.log2(place) for place in range(1, 49)) / 48
    assert f"{told:.1f} for OneHotAttention()" in chart.caption


def test_tables_by_kind_fit_into_eighty_letters() -> None:
    rows = [[(name, ""), *[("81.9", "81.1–82.7")] * 7] for name in ("unseen_repository", "javascript")]
    view = TableView(title="t", note="", headings=["split", "all", *code.views.KIND_HEADINGS], rows=rows)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_table(view))
    words = console.export_text().split()
    assert {"white", "space", "keyword", "closing", "bracket", "repository", "javascript"} <= set(words)
    assert words.count("81.1–82.7") == 14


def test_shares_of_kinds_are_counted(task: Code) -> None:
    splits = [task.split(name, 8) for name in task.split_names[1:]]
    table = code.views.shares(task, splits)
    for split, row in zip(splits, table.rows, strict=True):
        kinds = split.kinds[split.kinds != UNSCORED]
        assert row[2][0] == f"{len(kinds):,}"
        assert sum(float(cell[0].replace(">99.9", "100")) for cell in row[3:]) == pytest.approx(100, abs=0.4)
    assert len(table.headings) == 3 + len(KINDS)


@pytest.mark.parametrize(("p", "shown"), [(0.0, "<0.001"), (0.0009, "<0.001"), (0.05, "0.050"), (math.nan, "–")])
def test_no_p_value_is_shown_as_0(p: float, shown: str) -> None:
    assert _p_value(p) == shown


def test_what_a_shipped_model_predicts_is_taken_from_its_record() -> None:
    subject = load("code-python")
    table = code.views.measured(subject)
    assert [row[0][0] for row in table.rows] == list(subject.record["measured"])
    of_iid = subject.record["measured"]["iid"]
    row = dict(zip(table.headings, [cell[0] for cell in table.rows[1]], strict=True))
    assert row["bits"] == f"{of_iid['bits_per_character']:.3f}"
    assert row["repeated word"] == percent(of_iid["kinds"]["repeated_word"]["accuracy"])


def test_a_function_that_fits_is_shown(task: Code, small: Subject) -> None:
    from assay.engine import EditedSubject, Engine  # noqa: PLC0415

    engine = Engine(small)
    one = telling_function(engine, task.split("iid", 8), EditedSubject(small, []))
    assert len(one) == 1
    view = code.views.function_view(engine, task, one, EditedSubject(small, []), "Identity()", "all")
    assert view.divergence == [0.0] * len(view.characters)
    assert view.subject == view.proxy_says


def test_a_model_that_knows_no_characters_is_refused(small: Subject) -> None:
    with pytest.raises(AssayError, match="no tokenizer"):
        code.task_of(Subject(small.model, None, "silent"))
