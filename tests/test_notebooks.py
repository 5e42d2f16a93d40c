"""The notebooks run, and what is committed of them was run."""

import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


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


def test_your_own_model_runs(capsys):
    """The last expression of a cell, which a notebook shows, is a statement like any other here."""
    names: dict[str, object] = {}
    for cell in code_cells(EXAMPLES / "your-own-model.ipynb"):
        exec(compile("".join(cell["source"]), "your-own-model.ipynb", "exec"), names)
    verdicts = names["comparison"].verdicts()
    assert len(verdicts) == 3
    printed = capsys.readouterr().out
    assert all(str(verdict) in printed for verdict in verdicts)
    assert names["page"].is_file()
    assert {"attractors", "longer"} == set(names["comparison"].shifts)
