"""Names that are not ours reach the terminal as text: no markup, no codes that a terminal obeys, nothing lost."""

import io
import json
import re
import unicodedata
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

import assay
from assay._terminal import Terminal, styled, visible
from assay.cli import _shared
from assay.faithfulness import Comparison
from assay.reports import TableView, terminal_table

BREAKERS = ("[/INST]", "[/]", "[bold red]x", "[link=file:///]y", ":smile:", "\x1b[31mred", "\x1b]0;title\x07", "\x9b2J",
            "a\rb", "a\nb", "\u202egnp.exe", "\ud800", "\\[x", "{0}", "\u2028next")  # fmt: skip


def harmless(text: str) -> bool:
    """Whether a terminal shows every character as it is."""
    return all(letter == "\n" or unicodedata.category(letter) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} for letter in text)


@given(st.text(st.characters(codec=None), max_size=20))
def test_visible_text_is_harmless_and_says_what_was_there(text):
    shown = visible(text)
    assert harmless(shown)
    assert "\n" not in shown
    assert visible(shown) == shown
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize("width", [20, 200])
def test_a_terminal_takes_strings_as_they_are(width):
    for name in BREAKERS:
        terminal = Terminal()
        terminal.file, terminal.width = io.StringIO(), width
        terminal.print(name)
        terminal.print(styled(name, (name, "bold")))
        table = Table(name, title=name, caption=name)
        table.add_row(name)
        terminal.print(table)
        terminal.print(
            terminal_table(TableView(title=name, note=name, headings=[name, name], rows=[[(name, name)] * 2]))
        )
        found = terminal.file.getvalue()
        assert harmless(found)
        if width == 200:  # wide enough for no name to be folded
            assert found.count(visible(name)) == 15 - (5 if "\n" in name else 0)


SHIFTS = ("[/INST]", "\x1b]0;owned\x07[/]", "$\\frac$\u202eb")

RECIPE = """
import assay

class Named(assay.SVD):
    title = "[/]\\x1b[31m :smile: [bold]"
"""


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A folder of a stranger's: a model, a recipe and texts, all under names that a terminal could obey."""
    folder = tmp_path_factory.mktemp("from") / "x[bold]\x1b[31m\x07"
    assay.subjects.save(assay.load("code-python"), folder / "model\x1b[2J[")
    (folder / "recipe.py").write_text(RECIPE, encoding="utf-8")
    for name in ("fit", "iid", *(f"shift{number}" for number in range(len(SHIFTS)))):
        lines = (f"def {name}{n}(a, b): return a{n} + {n} if a else 'b{n}'" for n in range(8))
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_every_command_that_prints_names(command, stranger, monkeypatch):
    for console in (_shared.out, _shared.err):
        monkeypatch.setattr(console, "width", 400)
    run = stranger / "run[/]"
    call = [
        *("compare", stranger / "model\x1b[2J[", "--fit", stranger / "fit.txt"),
        *("--split", f"iid={stranger / 'iid.txt'}"),
        *(
            part
            for number, name in enumerate(SHIFTS)
            for part in ("--split", f"{name}={stranger / f'shift{number}.txt'}")
        ),
        *("--simplify", f"{stranger / 'recipe.py'}:Named(rank=2)", "--max-length", 12, "--sequences", 4),
        *("--fit-sequences", 4, "--no-controls", "--out", run),
    ]
    for arguments, wanted in (
        ([*call, "--require", "identical"], 3),
        (["report", run, "--markdown", stranger / "table.md"], 0),
    ):
        status, out, err = command(*arguments)
        assert status == wanted, err
        assert harmless(out)
        assert harmless(err)
        assert ("required identical: [/]\\x1b[31m" in err) == (wanted == 3)
        assert "[/]\\x1b[31m :smile: [bold]" in out
        for name in SHIFTS:
            assert visible(name) in out
        assert visible(str(run)) in out
    drawn = [ElementTree.parse(path) for path in run.glob("figures/*.svg")]
    assert any(
        visible(SHIFTS[2]) in "".join(figure.itertext()) for figure in map(ElementTree.ElementTree.getroot, drawn)
    )
    assert set(SHIFTS) < {split.name for split in Comparison.load(run).record.splits}
    status, out, err = command(
        "store", stranger / "model\x1b[2J[", "--split", f"iid={stranger / 'iid.txt'}", "--sequences", 2,
        "--max-length", 8, "--out", stranger / "store[/]",
    )  # fmt: skip
    assert status == 0, err
    assert harmless(out + err)


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "runs[/]\x1b[31m"),
        ("verify", "[/]\x1b[31m"),
        ("certify", "[/]\x1b[31m"),
        ("compare", "code-python", "--split", "[/]\x1b[31m", "--simplify", "one-hot", "--fit", "x"),
        ("compare", "code-python", "--split", "iid=x", "--simplify", "[/]\x1b[31m", "--fit", "x"),
        ("compare", "code-python", "--split", "iid=[/]\x1b[31m", "--simplify", "one-hot", "--fit", "[/]\x1b[31m"),
        ("train", "max-of-k", "[/]\x1b[31m"),
        ("run", "code", "--data", "[/]\x1b[31m"),
        ("run", "dyck", "--sentence", "[/]\x1b[31m"),
        ("[/]\x1b[31m",),
        ("report", "--[/]\x1b[31m"),
    ],
    ids=str,
)
def test_every_error_that_names_something(command, arguments):
    status, out, err = command(*arguments)
    assert status in (1, 2)
    assert not out
    assert harmless(err)
    assert "[/]" in err
    assert "x1b" in err


def test_a_certificate_of_a_stranger(command, tmp_path):
    path = tmp_path / "certificate.json"
    status, *_ = command("certify", "max-of-4", "--strategy", "subcubic", "--out", path)
    assert status == 0
    content = json.loads(path.read_text(encoding="utf-8"))
    for name in ("statement", "strategy", "subject"):
        if isinstance(content.get(name), str):
            changed = {**content, name: "[/]\x1b[31m"}
            path.write_text(json.dumps(changed), encoding="utf-8")
            status, out, err = command("verify", path)
            assert status == 1
            assert harmless(out + err)


def test_every_place_that_prints_goes_through_one_module():
    """rich's texts, consoles and markup are used in one module alone: there is no other way to print a name."""
    root = Path(assay.__file__).parent
    forbidden = re.compile(r"rich\.markup|from_markup|\bTextColumn\b|\bConsole\(\w+=|rich\.print")
    assert not [path for path in root.rglob("*.py") if forbidden.search(path.read_text(encoding="utf-8"))]
