"""How results and progress are shown: tables of verdicts, short reprs, bars where somebody looks."""

import io
import math
import pty
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from assay._progress import following
from assay.faithfulness import Step, Verdict, Verdicts
from assay.tasks import Text

VERDICT = Verdict(
    proxy="SVD(rank=2)", site="all", judgement="illusion", agreement=0.971, low=0.96, high=0.98, shift="deep",
    gap=0.123, gap_low=0.101, gap_high=0.145, p_holm=0.0, per_sequence=0.12, matched=0.1, matched_low=0.08,
    matched_high=0.12,
    recovered=math.nan, recovered_low=math.nan, recovered_high=math.nan, ablation=None, effect=math.nan,
    effect_low=math.nan, effect_high=math.nan, effect_gap=math.nan, effect_gap_low=math.nan, effect_gap_high=math.nan,
    needed=None, notes=(),
)  # fmt: skip
UNKNOWN = replace(VERDICT, proxy="<b>\x1b[31m", judgement="inconclusive", agreement=math.nan, low=math.nan, shift=None)


def test_verdicts_print_as_a_table():
    lines = repr(Verdicts([VERDICT, UNKNOWN])).splitlines()
    assert lines == [
        "proxy        site  verdict       agrees in distribution  largest gap, in points",
        "SVD(rank=2)  all   illusion      97.1% [96.0%, 98.0%]    +12.3 [+10.1, +14.5] under deep",
        "<b>\\x1b[31m  all   inconclusive",
    ]
    assert repr(Verdicts()) == "no verdicts"


def test_verdicts_are_a_tuple_still():
    found = Verdicts([VERDICT, UNKNOWN])
    assert found == (VERDICT, UNKNOWN)
    assert [*found] == [VERDICT, UNKNOWN]
    assert found[0] is VERDICT


def test_verdicts_of_a_notebook_are_escaped():
    html = Verdicts([VERDICT, UNKNOWN])._repr_html_()
    assert html.count("<tr>") == 3
    assert "<b>" not in html
    assert "97.1% [96.0%, 98.0%]" in html


def test_reprs_are_one_short_line(tmp_path, subject):
    assert repr(VERDICT) == (
        "<Verdict SVD(rank=2) at all: illusion, agrees 97.1% [96.0%, 98.0%], gap +12.3 [+10.1, +14.5] under deep>"
    )
    assert repr(UNKNOWN) == "<Verdict <b>\\x1b[31m at all: inconclusive>"
    text = Text(subject.tokenizer, train=["a b"] * 3, iid=tmp_path / "x.txt", shifts={"code": "y.txt"}, max_length=9)
    assert repr(text) == f"<Text train=3 texts, iid={tmp_path / 'x.txt'}, code=y.txt; causal, at most 9 tokens>"


def test_a_comparison_in_a_notebook_has_its_key_numbers(comparison):
    html = comparison._repr_html_()
    for split in comparison.record.splits[1:]:
        assert f"{split.name} ({split.sequences:,} sequences)" in html
    assert "at least 95.0% in distribution and at most 2 points less" in html
    assert comparison.verdicts()[0].agrees in html
    record = repr(comparison.record)
    assert record == str(comparison.record)
    assert len(record) < 400
    assert "\n" not in record


# -- progress ---------------------------------------------------------------------------------------------------------


def shown_on(monkeypatch, stream, progress):
    monkeypatch.setattr(sys, "stderr", stream)
    with following(progress) as tell:
        tell(Step(1, 2, "deep [/x]"))


@pytest.mark.parametrize("progress", [True, False])
def test_a_pipe_gets_no_progress(monkeypatch, progress):
    pipe = io.StringIO()
    shown_on(monkeypatch, pipe, progress)
    assert not pipe.getvalue()


@pytest.mark.parametrize(("progress", "words"), [(True, ["deep [/x]", "1/2"]), (False, [])], ids=["default", "off"])
def test_a_terminal_gets_a_bar(monkeypatch, progress, words):
    monkeypatch.setenv("TERM", "xterm")
    leader, follower = pty.openpty()
    with open(follower, "w", encoding="utf-8") as terminal:
        shown_on(monkeypatch, terminal, progress)
        terminal.write("end")
        terminal.flush()
        with open(leader, "rb", buffering=0, closefd=True) as screen:
            written = b""
            while not written.endswith(b"end"):
                written += screen.read(4096)
    for word in words:
        assert word in written.decode()
    assert words or written == b"end"


def test_a_function_gets_every_step(monkeypatch):
    steps = []
    shown_on(monkeypatch, io.StringIO(), steps.append)
    assert steps == [Step(1, 2, "deep [/x]")]


def test_a_notebook_gets_one_line(monkeypatch):
    """IPython is no dependency; this stands for its shell, and for what it shows."""
    seen = []

    class ZMQInteractiveShell:
        """The name by which rich knows a notebook."""

    def display(data, *, raw, display_id):
        assert (raw, display_id) == (True, True)
        seen.append(data["text/plain"])
        return SimpleNamespace(update=lambda data, raw: seen.append(data["text/plain"]))

    monkeypatch.setattr("builtins.get_ipython", ZMQInteractiveShell, raising=False)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    shown_on(monkeypatch, io.StringIO(), True)
    assert seen == ["starting", "1 of 2: deep [/x]"]
