"""Simulators of models whose explanation is known: x_j with j named, and a linear model's contributions."""

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier

from assay import AssayError
from assay.diagnostics import Explained, simulatability

PARTS = 8


def chosen_coordinate(count, seed, explained):
    """f(x) = x_j with j drawn for every input."""
    rng = np.random.default_rng(seed)
    x = rng.choice([-1.0, 1.0], size=(count, PARTS))
    j = np.eye(PARTS)[rng.integers(PARTS, size=count)]
    return Explained(x, ((x * j).sum(axis=1) > 0).astype(int), {"applied": x * j, "raw": j}[explained])


@pytest.fixture(scope="module")
def applied():
    return simulatability(
        chosen_coordinate(300, 0, "applied"), {"iid": chosen_coordinate(200, 1, "applied")}, sizes=(16, 64), fits=10
    )


def share(found, simulator, size, condition, split="iid"):
    (row,) = found.rows.query(
        "split == @split and simulator == @simulator and size == @size and condition == @condition"
    ).to_dict("records")
    assert row["low"] <= row["accuracy"] <= row["high"]
    return row["accuracy"]


def test_what_applies_the_explanation_is_foretold(applied):
    assert share(applied, "linear", 64, "post") > 0.97
    assert share(applied, "linear", 64, "pre") < 0.65
    effect = applied.effect("iid", "linear", 64)
    assert effect.low > 0.3
    assert effect.value == pytest.approx(share(applied, "linear", 64, "post") - share(applied, "linear", 64, "pre"))
    assert "the explanation adds" in str(applied)


def test_explanations_of_other_inputs_are_no_help(applied):
    shuffled = applied.effect("iid", "linear", 64, "shuffled")
    assert shuffled.low < 0.02
    assert shuffled.value < 0.05


def test_saying_the_answer_is_foretold_by_whoever_can_read_it(applied):
    assert share(applied, "tree", 16, "label-only") == 1
    assert share(applied, "linear", 64, "alone") > 0.97  # this explanation says the answer


def test_a_raw_name_is_of_no_use_to_what_cannot_multiply():
    found = simulatability(
        chosen_coordinate(300, 0, "raw"), {"iid": chosen_coordinate(200, 1, "raw")}, sizes=(16,), fits=10
    )
    assert abs(found.effect("iid", "linear", 16).value) < 0.08
    assert abs(share(found, "linear", 16, "alone") - 0.5) < 0.08


def test_an_explanation_that_stops_being_true_has_a_gap():
    good, bad = chosen_coordinate(200, 1, "applied"), chosen_coordinate(200, 2, "applied")
    wrong = np.random.default_rng(0).permutation(bad.explanations)
    shift = Explained(bad.inputs, bad.answers, wrong)
    found = simulatability(chosen_coordinate(300, 0, "applied"), {"iid": good, "shift": shift}, sizes=(64,), fits=10)
    gap = found.gap("shift", "linear", 64)
    effects = [found.effect(name, "linear", 64).value for name in ("iid", "shift")]
    assert gap.value == pytest.approx(effects[0] - effects[1])
    assert gap.low > 0.2
    assert found.gap("iid", "linear", 64).value == 0


def test_knowing_the_right_answer_is_no_help_where_it_is_balanced():
    """The model is right about 90%; a simulator that says what is right has 90%, and balanced half."""
    rng = np.random.default_rng(0)

    def drawn(count):
        truth = rng.integers(2, size=count)
        correct = rng.random(count) < 0.9
        return truth, correct, np.where(correct, truth, 1 - truth)

    sets = {}
    for name, count in (("examples", 600), ("iid", 400)):
        truth, correct, answers = drawn(count)
        sets[name] = (2.0 * truth[:, None] - 1, answers, rng.normal(size=(count, 1)), correct)
    plain = simulatability(Explained(*sets["examples"][:3]), {"iid": Explained(*sets["iid"][:3])}, sizes=(64,), fits=6)
    balanced = simulatability(Explained(*sets["examples"]), {"iid": Explained(*sets["iid"])}, sizes=(64,), fits=6)
    assert share(plain, "tree", 64, "pre") > 0.85
    assert abs(share(balanced, "tree", 64, "pre") - 0.5) < 0.06
    assert balanced.balanced
    assert not plain.balanced


def test_a_simulator_that_learns_nothing_has_no_effect_with_limits_around_it():
    simulators = {"most frequent": DummyClassifier()}
    examples, test = chosen_coordinate(100, 0, "applied"), {"iid": chosen_coordinate(50, 1, "applied")}
    found = simulatability(examples, test, simulators=simulators, sizes=(16,), fits=3)
    assert tuple(found.effect("iid", "most frequent", 16)) == (0, 0, 0)
    same = simulatability(examples, test, simulators=simulators, sizes=(16,), fits=3)
    assert found.rows.equals(same.rows)


def test_limits_cover_what_other_fits_and_tests_give():
    """The mean of very many fits and tests lies within the limits of a few, in 95 of 100 cases or so."""
    truth = 0.7
    covered = 0
    from assay.diagnostics._refits import both_ways  # noqa: PLC0415

    for seed in range(60):
        rng = np.random.default_rng(seed)
        rate = truth + 0.1 * rng.normal(size=(12, 1)) + 0.2 * rng.normal(size=(1, 60))
        found = both_ways((rng.random((12, 60)) < rate.clip(0, 1)).astype(float), level=0.95, seed=0)
        covered += found.low <= truth <= found.high
    assert covered >= 54


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sizes": (3,)}, "from 4 to the 100"),
        ({"sizes": (101,)}, "from 4 to the 100"),
        ({"sizes": (16, 16)}, "different numbers"),
        ({"fits": 1}, "at least 2 fits"),
        ({"simulators": {"x": 3}}, "must have fit"),
        ({"tests": {}}, "at least one test"),
        ({"level": 1.0}, "level"),
    ],
    ids=str,
)
def test_wrong_calls(options, said):
    call = {"tests": {"iid": chosen_coordinate(50, 1, "raw")}, "sizes": (16,), **options}
    with pytest.raises(AssayError, match=said):
        simulatability(chosen_coordinate(100, 0, "raw"), **call)


def test_wrong_examples():
    x = np.zeros((10, 2))
    with pytest.raises(AssayError, match="10 labels"):
        Explained(x, np.zeros(9, dtype=int), x)
    with pytest.raises(AssayError, match="9 examples, the inputs have 10"):
        Explained(x, np.zeros(10, dtype=int), x[:9])
    with pytest.raises(AssayError, match="not finite"):
        Explained(x + np.nan, np.zeros(10, dtype=int), x)
    with pytest.raises(AssayError, match="at least 8"):
        Explained(x[:5], np.zeros(5, dtype=int), x[:5])
    examples = chosen_coordinate(100, 0, "raw")
    narrow = Explained(x, np.zeros(10, dtype=int), x)
    with pytest.raises(AssayError, match="inputs of 'iid' have 2 numbers each, those of the examples 8"):
        simulatability(examples, {"iid": narrow}, sizes=(16,))
