"""Tables for the terminal and as Markdown."""

import math

import pytest
from rich.console import Console

from assay import AssayError
from assay.faithfulness import Comparison
from assay.reports import markdown, terminal, write_markdown
from assay.reports._tables import percent

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def printed(comparison, width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal(comparison))
    console.file.close()
    return console.export_text()


def test_the_terminal_table_fits_80_columns_and_leaves_nothing_out(shown):
    text = printed(shown, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for proxy in shown.record.proxies:
        assert (proxy.proxy in text) == (not proxy.proxy.startswith("RandomPerturbation"))
    words = text.split("accuracy of subject")[0].split()
    for split in shown.record.splits[1:]:
        assert set(split.name.split("_")) <= set(words), split.name
    for verdict in shown.verdicts():
        assert f"{verdict.proxy} at {verdict.site}: {verdict.judgement.upper()}" in text
    assert "Noise floor" in text


def test_the_terminal_table_has_the_numbers(shown):
    text = printed(shown, 200)
    row = shown.agreement("unseen_depth").set_index("proxy").loc["SVD(rank=2)"]
    line = next(line for line in text.splitlines() if line.startswith("SVD(rank=2)"))
    assert f"{100 * row['estimate']:.1f}" in line


def test_splits_that_do_not_fit_beside_each_other_are_shown_below_each_other(shown):
    wide, narrow = printed(shown, 200), printed(shown, 40)
    assert wide.count("accuracy of subject") == 1
    assert narrow.count("accuracy of subject") == len(shown.record.splits) - 1
    row = shown.agreement("unseen_depth").set_index("proxy").loc["SVD(rank=2)"]
    assert f"{100 * row['estimate']:.1f}" in narrow


def test_markdown_has_a_row_a_proxy_with_limits(shown):
    rows = [line for line in markdown(shown).splitlines() if line.startswith("|")]
    first = next(number for number, row in enumerate(rows) if row.startswith("| proxy | where | shift |"))
    rows, parts = rows[:first], rows[first:]
    assert len({row.count("|") for row in rows}) == 1
    assert len({row.count("|") for row in parts}) == 1
    frame = shown.agreement("iid").set_index("proxy")
    [row] = [row for row in rows if row.startswith("| SVD(rank=2) | at layer1 |")]
    value = frame.loc["SVD(rank=2)"]
    assert f"{100 * value['estimate']:.1f} ({100 * value['low']:.1f}–{100 * value['high']:.1f})" in row
    assert sum(row.startswith("| *Identity()*") for row in rows) == 1
    own = sum(not proxy.is_control for proxy in shown.record.proxies)
    perturbations = sum(proxy.proxy.startswith("RandomPerturbation") for proxy in shown.record.proxies)
    assert perturbations == own
    assert len(rows) == 3 + len(shown.record.proxies) - perturbations + own
    assert len(parts) == 2 + own
    gap = shown.gaps().query("proxy == 'SVD(rank=2)' and trained").sort_values("gap", ascending=False).iloc[0]
    [part] = [row for row in parts if row.startswith("| SVD(rank=2) | at layer1 |")]
    for name, low, high in (("gap", "low", "high"), ("perturbed", "perturbed_low", "perturbed_high"),
                            ("removed", "removed_low", "removed_high")):  # fmt: skip
        assert f"{100 * gap[name]:+.1f} ({100 * gap[low]:+.1f} {100 * gap[high]:+.1f})" in part


def test_markdown_goes_between_the_marks_and_nowhere_else(shown, tmp_path):
    path = tmp_path / "dyck.md"
    path.write_text(f"# Before\n\n{BEGIN}\nold\n{END}\n\nAfter | a bar\n", encoding="utf-8")
    write_markdown(shown, path)
    text = path.read_text(encoding="utf-8")
    assert text == f"# Before\n\n{BEGIN}\n{markdown(shown)}{END}\n\nAfter | a bar\n"
    write_markdown(shown, path)
    assert path.read_text(encoding="utf-8") == text


def test_markdown_makes_a_file_that_it_can_write_again(shown, tmp_path):
    path = tmp_path / "new.md"
    write_markdown(shown, path)
    first = path.read_text(encoding="utf-8")
    write_markdown(shown, path)
    assert path.read_text(encoding="utf-8") == first


@pytest.mark.parametrize("text", ["no marks", BEGIN, f"{BEGIN}{END}{BEGIN}{END}", f"{END} turned {BEGIN}"])
def test_markdown_refuses_a_file_without_its_marks(shown, tmp_path, text):
    path = tmp_path / "dyck.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(AssayError, match="table: begin"):
        write_markdown(shown, path)
    assert path.read_text(encoding="utf-8") == text


def test_what_was_not_matched_is_a_dash_and_not_a_zero(shown):
    gaps = shown._gaps.assign(matched=math.nan, matched_low=math.nan, matched_high=math.nan)
    blank = Comparison(shown.record, shown.results, gaps, shown._sequences)
    rows = [line for line in markdown(blank).splitlines() if line.startswith("| SVD(rank=2) | at layer1 | ")]
    assert rows[-1].split(" | ")[4:6] == ["–", "–"]


def test_percentages_never_round_up_to_perfection():
    assert percent(1.0) == "100"
    assert percent(0.9994) == "99.9"
    assert percent(0.9996) != "100", "one error in 2,500 is not perfect"
    assert percent(math.nan) == "–"
