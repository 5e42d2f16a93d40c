"""The notebooks run, and what is committed of them was run."""

import json
import re
from pathlib import Path

import matplotlib
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
TUTORIAL = EXAMPLES.parent / "docs" / "tutorial.ipynb"
NOTEBOOKS = [*sorted(EXAMPLES.glob("*.ipynb")), TUTORIAL]


def code_cells(path):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_was_run_from_top_to_bottom(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    for output in outputs:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr"
        assert "/tmp/" not in json.dumps(output)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_installs_what_is_missing_and_else_does_nothing(path, monkeypatch):
    code = "".join(code_cells(path)[0]["source"])
    called = []
    monkeypatch.setattr("subprocess.run", lambda *arguments, **options: called.append(arguments[0]))
    exec(compile(code, path.name, "exec"), {})
    assert called == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(compile(code, path.name, "exec"), {})
    assert [call[1:] for call in called] == [
        ["-m", "pip", "install", "-q", "assay-interp[proofs]" if "proofs" in path.stem else "assay-interp"]
    ]


def run(path):
    """The names that a notebook leaves; the last expression of a cell, which it shows, is one statement more."""
    names: dict[str, object] = {}
    with matplotlib.rc_context({"backend": "agg"}):
        for cell in code_cells(path):
            exec(compile("".join(cell["source"]), path.name, "exec"), names)
    return names


def test_your_own_model_runs(capsys):
    """One direction hides among everything what it loses on verbs; three lose nothing."""
    names = run(EXAMPLES / "your-own-model.ipynb")
    everything, about_verbs = names["everything"].verdicts(), names["about_verbs"].verdicts()
    printed = capsys.readouterr().out
    assert all(str(verdict) in printed for verdict in about_verbs)
    assert [verdict.proxy for verdict in everything] == [verdict.proxy for verdict in about_verbs]
    one, _, three = about_verbs
    assert one.judgement == "unfaithful"
    assert everything[0].agreement > one.agreement + 0.1
    assert three.agreement > 0.99
    assert names["page"].is_file()
    assert names["about_verbs"].shifts == ("mixed",)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compact-proofs", "your-own-model", "tutorial"])
def test_what_is_committed_is_what_it_prints(name, capsys):
    """All but how long things took."""
    path = next(path for path in NOTEBOOKS if path.stem == name)
    outputs = [output for cell in code_cells(path) for output in cell["outputs"]]
    committed = "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    capsys.readouterr()
    run(path)
    printed = capsys.readouterr().out
    assert untimed(printed) == untimed(committed)
    assert len(printed) > 200


def untimed(text):
    """Text without numbers of seconds."""
    return re.sub(r"\d+\.\d+ s\b", "… s", text)


@pytest.mark.slow
def test_the_tutorial_runs(capsys):
    names = run(TUTORIAL)
    ranks, one_hot = names["comparison"].verdicts()
    assert ranks.gap < 0.02
    assert one_hot.gap_low > 0.02
    assert one_hot.judgement == "gap"
    illusion, identical = names["certain"].verdicts()
    assert (illusion.judgement, identical.judgement) == ("illusion", "identical")
    assert illusion.gap_low < names["planted"].truth.gap < illusion.gap_high
    printed = capsys.readouterr().out
    assert str(one_hot) in printed
    assert "after 7): of all closing brackets it would write 3)" in printed
