"""The Python of the pages of docs/ that no other test runs, and of the README, runs as it stands there."""

import contextlib

import pytest

import assay
from pages import blocks, printed_by

QUICK = ("intervals.md", "prove.md", "programs.md")
SLOW = ("own-model.md", "margins.md", "cluster.md", "studies.md")


@pytest.mark.parametrize("page", [*QUICK, *(pytest.param(page, marks=pytest.mark.slow) for page in SLOW)])
def test_the_python_of_a_page_runs(page):
    printed, _ = printed_by(page)
    assert len(printed) == len(blocks(page)) > 0
    assert any(printed)


def test_seventy_two_sequences_without_an_error_show_95_per_cent():
    """docs/testing.md says that about 72 do; with one prediction a sequence the limit is 0.025^(1/n)."""
    [[line]], _ = printed_by("intervals.md")
    value, low, high = (float(number.strip("[,]")) for number in line.split())
    assert (value, high) == (1, 1)
    assert low == pytest.approx(0.025 ** (1 / 72), abs=0.005)


@pytest.mark.slow
def test_the_test_of_the_page_on_ci_passes(pytester):
    [code] = blocks("ci.md")
    pytester.makepyfile(test_explanation=code)
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_the_python_of_the_readme_runs(tmp_path):
    """With a model in memory and three files of text."""
    [code] = blocks("../README.md")
    subject = assay.load("code-python")
    for name, word in {"train": "if", "held_out": "for", "code": "def"}.items():
        lines = (f"{word} item_{n} in [{n}]: print('{n}')" for n in range(30))
        (tmp_path / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    names: dict[str, object] = {"hf_model": subject.model, "tokenizer": subject.tokenizer, "print": lambda *words: None}
    code = code.replace(
        "assay.OneHotAttention()])", "assay.OneHotAttention()], sites=['layer0'], sequences=5, fit_sequences=20)"
    )
    with contextlib.chdir(tmp_path):
        exec(compile(code, "README.md", "exec"), names)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert len(names["comparison"].verdicts()) == 2
