"""What has to be found of planted truths is found, and where nothing is planted nothing is."""

import numpy as np
import pytest

from assay.circuits import discoveries
from assay.studies.organisms import planted as study
from assay.testing import planted

METHODS = ("exact", "eap", "eap-ig", "gim", "greedy", "discrete-codes", "information-flow", "ships")
"""Those that are fast; the others are in the slow test."""


@pytest.fixture(scope="module")
def circuits():
    return study.circuits(0, pairs=3, methods=METHODS)


def counts(row):
    return row["found"], row["missed"], row["invented"]


@pytest.mark.parametrize("method", ["exact", "eap-ig", "greedy"])
def test_methods_of_edges_find_induction_whole_however_sharp(circuits, method):
    for case in ("induction", "saturated"):
        assert counts(circuits[method][case]) == (5, 0, 0)


def test_gradients_at_one_point_miss_what_is_saturated(circuits):
    for method in ("eap", "gim"):
        assert counts(circuits[method]["induction"]) == (5, 0, 0)
        assert counts(circuits[method]["saturated"]) == (2, 3, 0)


def test_one_edge_at_a_time_misses_either_and_invents_what_is_undone(circuits):
    assert counts(circuits["exact"]["either"]) == (1, 4, 0)
    assert counts(circuits["exact"]["cancelling"]) == (5, 0, 8)
    assert circuits["exact"]["cancelling"]["undone"] == 8
    assert counts(circuits["eap-ig"]["either"]) == (5, 0, 0)
    assert counts(circuits["ships"]["cancelling"]) == (2, 0, 2)


INVENTS = {"discrete-codes", "information-flow"}
"""They ask no pair what an edge does to the answer: of codes and of sizes they always have some."""


def test_nothing_is_found_where_nothing_is_but_by_methods_that_ask_for_no_effect(circuits):
    found = {method for method, cases in circuits.items() if cases["nothing"].get("invented")}
    assert found == INVENTS


def test_taylor_scores_find_planted_neurons_and_chance_does_not():
    found = study.neurons(0)
    for case, number in (("memoriser", 24), ("wrapper", 3)):
        best = found[case]["Taylor score on the other kind"]
        assert best == {"found": number, "planted": number, "restored": 1, "kept": 1}
        assert found[case]["random"]["found"] < number / 2
    assert found["memoriser"]["least periodic in the answer"]["found"] == 24
    assert found["wrapper"]["value vectors: most for one answer"]["found"] == 1, "carriers write no answer"


def test_the_slopes_are_those_of_small_steps():
    known = planted.wrapper(2)
    split = known.task.everything()
    activations, slopes = study._taylor(known, split)
    layer, neuron = known.neurons[1]
    row = int(np.flatnonzero(split.kinds[:, 3] == 1)[5])
    own = activations[layer][row, neuron]
    assert own == pytest.approx(1)
    # The loss of the rule's answer is nearly the 60 logits by which 0 leads, less what the sum leads by.
    assert slopes[layer][row, neuron] == pytest.approx(60, rel=1e-3)


def test_bases_are_judged_with_the_planted_gap():
    for case, comparison in study.bases(200).items():
        row = comparison.gaps().iloc[0]
        assert row["low"] <= study.planted_gap(case) <= row["high"]
        assert comparison.verdicts()[0].judgement in ("gap", "illusion", "unfaithful")


def gap(**changed):
    given = {
        "case": "fit", "recipe": "a", "seed": 0, "verdict": "faithful", "gap": 0.0, "low": -0.1, "high": 0.1,
        "true_gap": 0.0, "known": True, "truth": "faithful",
    }  # fmt: skip
    return study.Gap(**{**given, **changed})


@pytest.mark.parametrize(
    ("verdict", "truth", "outcome"),
    [("identical", "faithful", "right"), ("gap", "illusion", "right"), ("faithful", "illusion", "missed"),
     ("illusion", "faithful", "invented"), ("inconclusive", "illusion", "open"), ("illusion", "unfaithful", "other"),
     ("unfaithful", "faithful", "invented"), ("faithful", "unfaithful", "missed")],
    ids=["identical", "gap", "missed", "invented", "open", "other", "worse", "missed-worse"],
)  # fmt: skip
def test_outcomes(verdict, truth, outcome):
    assert gap(verdict=verdict, truth=truth).outcome == outcome


def test_tables_count_draws_that_differ():
    found = [gap(case=case, seed=seed) for case in study.cases(0) for seed in (0, 1)]
    found[1] = gap(seed=1, verdict="illusion", low=0.02)
    text, below = study._of_gaps(found).rows[0][1]
    assert text == "faithful 1 of 2, illusion 1 of 2"
    assert below == "right 1 of 2, invented 1 of 2; faithful"
    assert [cell[0] for cell in study._of_coverage(found).rows[0]] == ["a", "yes", "7 of 8", "7", "0", "1", "0", "0"]


@pytest.mark.slow
def test_every_registered_method_is_in_the_table_and_two_invent():
    found = study.circuits(1)
    assert set(found) == set(discoveries)
    for method in ("eap-ig-activations", "mask-ig", "path-interventions"):
        for case in ("induction", "saturated"):
            assert counts(found[method][case]) == (5, 0, 0)
    assert {method for method, cases in found.items() if cases["nothing"].get("invented")} == INVENTS


@pytest.mark.slow
def test_no_verdict_misses_or_invents_where_the_truth_is_planted():
    found = [one for one in study.gaps(0, 300) if one.known]
    assert {one.outcome for one in found} <= {"right", "open"}
    assert sum(one.outcome == "right" for one in found) >= 0.9 * len(found)


@pytest.mark.slow
def test_trained_dictionaries_have_the_atoms_and_random_ones_do_not():
    found = study.dictionaries(0, 100)
    assert found["the atoms, by pursuit"]["iid"] == found["the atoms, by pursuit"]["share"] == 1
    for name, row in found.items():
        if name.startswith("sparse autoencoder"):
            assert row["share"] > 0.6, name
    assert found["random dictionary"]["share"] == 0
    assert found["SVD"]["share"] == 0
