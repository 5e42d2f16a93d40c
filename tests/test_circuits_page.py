"""What docs/circuits.md says is run as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "circuits.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def printed():
    """What every block of Python prints, in their order, and the names that they leave."""
    names: dict[str, object] = {}
    found = []
    for code in re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE):
        lines: list[str] = []
        names["print"] = lambda *words, lines=lines: lines.append(" ".join(map(str, words)))
        exec(compile(code, "circuits.md", "exec"), names)
        found.append(lines)
    return found, names


def test_the_first_block_judges_three_circuits(printed):
    blocks, _ = printed
    *verdicts, table = blocks[0]
    assert [verdict.split(" at ")[0] for verdict in verdicts] == [f"Circuit(edges={n})" for n in (4, 6, 10)]
    assert "UNFAITHFUL" in verdicts[0]
    assert "unseen_depth" in table


def test_the_effect_hardly_moves_under_unseen_depth(printed):
    (iid, depth), _ = (printed[0][1], None)
    effects = [float(line.split()[1]) for line in (iid, depth)]
    assert min(effects) > 0.9
    assert abs(effects[0] - effects[1]) < 0.05


def test_first_order_scores_are_too_small_and_have_another_sign(printed):
    lines = printed[0][2]
    exact, first = np.array([[float(word) for word in line.split()[-2:]] for line in lines]).T
    assert exact[0] < 0 < first[0]
    assert (np.abs(exact[1:]) > 3 * np.abs(first[1:])).all()


def test_of_edges_drawn_evenly_hardly_one_is_on_a_path(printed):
    [line] = printed[0][3]
    assert line.startswith("32,491 edges; of 200 drawn evenly ")
    assert int(line.split()[-5]) < 20


def test_pruning_takes_edges_out(printed):
    assert printed[0][4] == ["4 edges, of which 2 on paths"]
