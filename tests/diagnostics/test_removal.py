"""Remove and retrain where it is known which part matters, and where the mask says it."""

import numpy as np
import pytest
from sklearn.tree import DecisionTreeClassifier

from assay import AssayError
from assay.diagnostics import removal

PARTS = 20


def one_matters(count, seed):
    """The first of 20 independent parts decides."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, PARTS))
    return x, (x[:, 0] > 0).astype(int), rng


def found_with(ranking_of, **options):
    x, y, rng = one_matters(600, 0)
    z, t, other = one_matters(500, 1)
    return removal(x, y, ranking_of(x, y, rng), test=(z, t, ranking_of(z, t, other)), shares=(0.1,), **options)


def known(x, y, rng):
    ranking = np.zeros_like(x)
    ranking[:, 0] = 1
    return ranking


def leaking(x, y, rng):
    """A ranking that points at one place for one answer, and at another for the other."""
    ranking = rng.random(x.shape)
    ranking[np.arange(len(x)), 5 + y] = 2
    return ranking


def test_the_part_that_matters_is_found():
    found = found_with(known)
    difference = found.difference(0.1)
    assert difference.low > 0.4
    assert difference.value == pytest.approx(0.48, abs=0.05)
    assert found.difference(0.1, less="mask").low > 0.35
    assert found.readable(0.1)
    assert "not interpretable" not in str(found)


def test_a_ranking_by_chance_finds_nothing():
    found = found_with(lambda x, y, rng: rng.random(x.shape))
    difference = found.difference(0.1)
    assert difference.low < 0.02
    assert abs(difference.value) < 0.08


def test_a_ranking_that_leaks_the_answer_is_not_called_importance():
    found = found_with(leaking, model=DecisionTreeClassifier(max_depth=4, random_state=0))
    means = found.rows.set_index("kept")["accuracy"]
    assert means["mask"] > 0.95
    assert found.difference(0.1).value > 0.2
    assert not found.readable(0.1)
    assert "not interpretable: the mask alone predicts" in str(found)


def test_the_same_seed_gives_the_same():
    assert found_with(known, fits=2).rows.equals(found_with(known, fits=2).rows)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shares": (0.0,)}, "at least one of the 20 parts"),
        ({"shares": (1.0,)}, "not all of them"),
        ({"fits": 1}, "at least 2"),
        ({"model": 3}, "must have fit"),
        ({"ranking": np.zeros((600, 3))}, "shape"),
        ({"answers": np.zeros(5, dtype=int)}, "600 labels"),
        ({"test": (np.zeros((9, 3)), np.zeros(9, dtype=int), np.zeros((9, 3)))}, "3 parts"),
        ({"test": (1, 2)}, "inputs, answers and ranking"),
    ],
    ids=lambda value: next(iter(value)) + str(len(value)) if isinstance(value, dict) else None,
)
def test_wrong_calls(change, said):
    x, y, rng = one_matters(600, 0)
    call = {"inputs": x, "answers": y, "ranking": known(x, y, rng), "test": (x, y, known(x, y, rng)), **change}
    with pytest.raises(AssayError, match=said):
        removal(**call)
