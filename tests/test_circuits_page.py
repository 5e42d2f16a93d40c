"""What docs/circuits.md says is run as it stands there."""

import re

import numpy as np
import pytest

from pages import printed_by

pytestmark = pytest.mark.slow  # its code takes a minute


@pytest.fixture(scope="module")
def printed():
    """What every block of Python prints, in their order, and the names that they leave."""
    return printed_by("circuits.md")


def test_the_first_block_judges_three_circuits(printed):
    blocks, _ = printed
    *verdicts, table = blocks[0]
    assert [verdict.split(" at ")[0] for verdict in verdicts] == [f"Circuit(edges={n})" for n in (4, 6, 10)]
    assert "UNFAITHFUL" in verdicts[0]
    assert "unseen_depth" in table


def test_a_pruned_graph_scores_better_and_is_worse(printed):
    whole, runs, pruned, runs_of_pruned = printed[0][1]
    assert numbers(whole)[0] < numbers(pruned)[0]
    kept = [numbers(next(row for row in rows.split("\n") if "kept where" in row))[1] for rows in (runs, runs_of_pruned)]
    assert 10 * kept[0] < kept[1]


def test_the_effect_hardly_moves_under_unseen_depth(printed):
    (iid, depth), _ = (printed[0][2], None)
    effects = [float(line.split()[1]) for line in (iid, depth)]
    assert min(effects) > 0.9
    assert abs(effects[0] - effects[1]) < 0.05


def test_first_order_scores_are_too_small_and_have_another_sign(printed):
    lines = printed[0][3]
    exact, first = np.array([[float(word) for word in line.split()[-2:]] for line in lines]).T
    assert exact[0] < 0 < first[0]
    assert (np.abs(exact[1:]) > 3 * np.abs(first[1:])).all()


def test_of_edges_drawn_evenly_hardly_one_is_on_a_path(printed):
    [line] = printed[0][4]
    assert line.startswith("32,491 edges; of 200 drawn evenly ")
    assert int(line.split()[-5]) < 20


def test_pruning_takes_edges_out(printed):
    assert printed[0][5] == ["4 edges, of which 2 on paths"]


def numbers(text):
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]


def test_areas_stand_beside_each_other(printed):
    assert [line.split()[0] for line in printed[0][7]] == ["iid", "unseen_depth"]
    for line in printed[0][7]:
        cpr, low, high, cmd, *_ = numbers(line)
        assert low <= cpr <= high
        assert cpr + cmd == pytest.approx(1, abs=0.05), "f hardly goes beyond 1"


def test_circuits_share_more_than_by_chance_and_no_more_than_the_ceiling(printed):
    shared, ceiling = printed[0][8]
    own, first, second, jaccard, chance, _, layered, _ = numbers(shared)
    assert own <= min(first, second)
    assert chance < layered < own
    assert jaccard <= numbers(ceiling)[0] + 1e-9


def test_less_is_lost_near_the_data(printed):
    all_of_it, tenth = (numbers(line) for line in printed[0][9])
    assert (all_of_it[0], tenth[0]) == (100, 10)
    assert 0 < tenth[1] < all_of_it[1] < all_of_it[4]


def test_subject_and_circuit_part_without_an_edge(printed):
    [line] = printed[0][10]
    whole, _, _, worst, low, _, *_ = numbers(line)
    assert low > whole
    assert worst > whole
    assert " -> " in line


def test_an_edge_is_idle(printed):
    first, last = printed[0][11]
    needed, edges, bound = numbers(first)[:3]
    assert 0 < needed < edges
    assert abs(numbers(last.split("[")[0])[-1]) <= bound + 1e-9


def test_the_patch_by_hand_is_an_illusion_and_that_of_the_model_is_not(printed):
    [by_hand], [of_model] = printed[0][12:14]
    assert by_hand.startswith("illusory: the patch has 1 [1, 1] of the effect")
    assert of_model.startswith("faithful: ")
