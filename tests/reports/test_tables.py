"""Tables for the terminal and as Markdown."""

import math
from typing import get_args, get_type_hints

import pandas as pd
import pytest
from rich.console import Console

import assay
from assay import AssayError
from assay.faithfulness import Comparison
from assay.reports import markdown, terminal, write_markdown, write_page
from assay.reports._tables import _ASKS, controls_asked, limits, percent

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
    flat = " ".join(text.split())
    assert shown.warnings()
    for warning in shown.warnings():
        assert f"Warning: {' '.join(warning.split())}" in flat
    assert flat.index("Warning: ") < flat.index(f"at {shown.verdicts()[0].site}: ")
    for shift, gap in shown.detectable().items():
        assert f"{100 * gap:.1f} under {shift}" in flat
    for name, question in controls_asked(shown):
        assert f"{name}: {question}" in flat


def test_every_control_asks_something():
    """Whatever may stand beside a simplification as its control is explained where it is shown."""
    controls = set()
    for name in assay.__all__:
        recipe = getattr(assay, name)
        if isinstance(recipe, type) and hasattr(recipe, "control") and not recipe.__name__.startswith("Other"):
            found = get_type_hints(recipe.control)["return"]
            controls |= {one.__name__ for one in (get_args(found) or (found,))} - {"NoneType", "Simplification"}
    assert {"RandomProjection", "RandomDictionary", "RandomCircuit", "RandomMask"} <= controls
    assert controls <= set(_ASKS)


def test_every_judgement_and_the_widest_numbers_fit_80_columns(shown):
    """A share recovered is far below zero where the ablation hardly costs anything."""
    beside = shown._controls.assign(recovered=-12.345, recovered_low=-456.789, recovered_high=-0.5)
    gaps = shown._gaps.assign(effective=1_234_567.0, gap=-1.0, low=-1.0, high=-1.0)
    text = printed(Comparison(shown.record, shown.results, gaps, beside, shown._sequences), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    words = text.split()
    assert {"-1234.5", "(-45678.9", "-50.0)", "-100.0"} <= set(words)


def test_the_terminal_table_has_the_numbers(shown):
    text = printed(shown, 200)
    row = shown.agreement("unseen_depth").set_index("proxy").loc["SVD(rank=2)"]
    every = text.splitlines()
    place = next(place for place, line in enumerate(every) if line.startswith("SVD(rank=2)"))
    assert f"{100 * row['estimate']:.1f}" in every[place]
    verdict = next(verdict for verdict in shown.verdicts() if verdict.proxy == "SVD(rank=2)")
    recovered = limits(verdict.recovered_low, verdict.recovered_high)
    assert every[place + 1].startswith(f"recovers {percent(verdict.recovered)} ({recovered})")
    assert text.count("recovers ") == len(shown.verdicts()) * 2, "below every name, and in every verdict"


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
    verdict = next(verdict for verdict in shown.verdicts() if verdict.proxy == "SVD(rank=2)")
    recovered = f"{percent(verdict.recovered)} ({limits(verdict.recovered_low, verdict.recovered_high)})"
    assert row.split(" | ")[-2:] == [recovered, f"{verdict.judgement} |"]
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
    names = [
        ("gap", "low", "high"),
        *((one, f"{one}_low", f"{one}_high") for one in ("perturbed", "per_sequence", "removed")),
    ]
    for name, low, high in names:
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
    blank = Comparison(shown.record, shown.results, gaps, shown._controls, shown._sequences)
    rows = [line for line in markdown(blank).splitlines() if line.startswith("| SVD(rank=2) | at layer1 | ")]
    assert rows[-1].split(" | ")[5:7] == ["–", "–"]


def test_markdown_says_what_to_know(shown):
    text = markdown(shown)
    assert "shuffled copy" in text
    assert "untrained" not in text
    for warning in shown.warnings():
        assert f"\n**Warning:** {warning}\n" in text
    for shift, gap in shown.detectable().items():
        assert f"{100 * gap:.1f} under {shift}" in text
    for name, question in controls_asked(shown):
        assert f"{name}: {question}" in text


def test_limits_below_zero_do_not_look_like_a_dash():
    assert limits(0.1234, 1.0) == "12.3–100"
    assert limits(-0.284, -0.083) == "-28.4 to -8.3"
    assert limits(math.nan, math.nan) == "–"


def test_percentages_never_round_up_to_perfection():
    assert percent(1.0) == "100"
    assert percent(0.9994) == "99.9"
    assert percent(0.9996) != "100", "one error in 2,500 is not perfect"
    assert percent(1.02) == "102.0"
    assert (limits(0.97, 0.99996), limits(0.97, 1.0), limits(-0.01, 0.5)) == (
        "97.0 to >99.9",
        "97.0–100",
        "-1.0 to 50.0",
    )
    assert percent(math.nan) == "–"


# -- effect on the answer -------------------------------------------------------------------------------------------


def with_effects(shown):
    """`shown` as if it had pairs: one proxy on two splits, one of them without a share, and one control."""
    nan = math.nan
    known = {
        "proxy": "SVD(rank=8)", "site": "layer1", "is_control": False, "split": "iid", "ablation": "MeanAblation()",
        "pairs": 240, "subject_difference": 10.304, "proxy_difference": 9.8, "ablated_difference": -10.28,
        "effect": 1.204, "effect_low": 1.18, "effect_high": 1.25,
        "deviation": 0.21, "deviation_low": 0.2, "deviation_high": 0.223,
        "gap": nan, "gap_low": nan, "gap_high": nan,
        "gap_iid_scale": nan, "gap_iid_scale_low": nan, "gap_iid_scale_high": nan, "reason": None,
    }  # fmt: skip
    none = dict.fromkeys(("effect", "effect_low", "effect_high"), nan)
    lost = {"gap_iid_scale": 0.062, "gap_iid_scale_low": -0.01, "gap_iid_scale_high": 0.1}
    rows = [
        known,
        {**known, "split": "unseen_depth", **none, **lost, "reason": "only 29 different pairs"},
        {**known, "proxy": "RandomProjection(rank=8)", "is_control": True, "effect": 0.041, "effect_low": 0.0},
    ]
    frames = (shown.results, shown._gaps, shown._controls, shown._sequences, shown._models)
    return Comparison(shown.record, *frames, pd.DataFrame(rows))


def test_effects_are_a_table_in_the_terminal_that_fits_80_columns(shown):
    text = printed(with_effects(shown), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    table = text.split("Effect on the answer", 1)[1].split("Warning: ")[0]
    assert {"10.30", "9.80", "-10.28", "120.4", "21.0", "–"} <= set(table.split())
    assert "29 different pairs" in " ".join(table.split())
    assert "RandomProjection" not in table
    assert "iid scale" not in table
    assert "Effect on the answer" not in printed(shown, 80)


def test_effects_are_a_table_in_markdown_and_on_the_page(shown, tmp_path):
    text = markdown(with_effects(shown))
    row = next(line for line in text.splitlines() if line.startswith("| SVD(rank=8) (iid)"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "SVD(rank=8) (iid)",
        "10.30",
        "9.80",
        "-10.28",
        "120.4 (118.0–125.0)",
        "21.0 (20.0–22.3)",
        "–",
        "–",
    ]
    row = next(line for line in text.splitlines() if line.startswith("| SVD(rank=8) (unseen_depth)"))
    assert [cell.strip() for cell in row.strip("|").split("|")][4:] == [
        "–",
        "21.0 (20.0–22.3)",
        "–",
        "+6.2 (-1.0 +10.0)",
    ]
    assert "| RandomProjection(rank=8) (iid) |" in text
    assert "No share of some proxies on unseen_depth: only 29 different pairs." in text
    assert "**Effect on the answer.**" not in markdown(shown)
    page = write_page(with_effects(shown), tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<h2>Effect on the answer</h2>" in page
    assert "<td>120.4<small>118.0–125.0</small></td>" in page
