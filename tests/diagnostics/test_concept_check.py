"""Concepts with planted weights inside and outside their regions."""

import numpy as np
import pytest

from assay import AssayError
from assay.diagnostics import concept_check

REGIONS = np.kron(np.eye(3, dtype=bool), np.ones((1, 4), dtype=bool))  # three concepts of four parts each


def data(count=400, seed=0):
    x = np.random.default_rng(seed).normal(size=(count, 12))
    return x, np.stack([x[:, own].sum(axis=1) > 0 for own in REGIONS], axis=1)


def planted(outside):
    """The first concept also reads parts of the second, with a weight; the others read their own."""
    weights = REGIONS.astype(float).T
    weights[4:8, 0] = outside
    return lambda x: x @ weights


def test_concepts_that_read_their_own_region_leak_nothing():
    x, present = data()
    found = concept_check(planted(0.0), x, present, REGIONS, weights=np.ones(3)).rows
    assert (found["leak"] == 0).all()
    assert (found["accuracy"] == 1).all()
    assert found["importance"].sum() == pytest.approx(1)
    assert (found["why"] == "").all()


def test_the_leak_is_that_of_the_weights():
    """Of independent standard parts, Out / (In + Out) is the ratio of the norms of the weights outside and all."""
    x, present = data(1_500)
    found = concept_check(planted(0.5), x, present, REGIONS, draws=16).rows
    outside, inside = np.sqrt(4 * 0.25), np.sqrt(4)
    first = found.iloc[0]
    assert first["leak"] == pytest.approx(outside / (inside + outside), abs=0.01)
    assert first["leak_low"] <= outside / (inside + outside) <= first["leak_high"]
    assert first["accuracy"] < 0.95
    assert list(found["leak"][1:]) == [0, 0]
    assert "existence" not in found  # no weights, no contributions


def test_what_is_named_wrongly_is_there_as_often_as_chance_has_it():
    x, present = data(2_000)
    names = ["first", "second", "third"]
    mixed = concept_check(
        lambda x: planted(0.0)(x)[:, [1, 2, 0]], x, present, REGIONS, weights=np.array([3.0, 1, 1]), names=names
    ).rows.set_index("concept")
    assert list(mixed["leak"]) == [1, 1, 1]
    for name in names:
        row = mixed.loc[name]
        assert row["existence_low"] <= row["prevalence"] + 0.03
        assert abs(row["accuracy"] - 0.5) < 0.06
    assert mixed["importance"].idxmax() == "first"


def test_what_cannot_be_measured_is_missing_with_its_reason():
    x, present = data()
    found = concept_check(lambda x: np.zeros((len(x), 3)), x, present, REGIONS, weights=np.array([1.0, 0, 0])).rows
    assert found["leak"].isna().all()
    assert found["why"].str.contains("leak: nothing changes it").all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"present": np.zeros((3, 3), dtype=bool)}, "must have"),
        ({"regions": REGIONS[:2]}, "must have"),
        ({"top": 4}, "from 1 to the 3"),
        ({"names": ["a"]}, "one for each"),
        ({"concepts": lambda x: x.sum(axis=1)}, "shape"),
        ({"concepts": lambda x: np.full((len(x), 3), np.nan)}, "finite"),
    ],
    ids=lambda value: next(iter(value)) + str(len(str(value))) if isinstance(value, dict) else None,
)
def test_wrong_calls(change, said):
    x, present = data(50)
    call = {"concepts": planted(0.0), "inputs": x, "present": present, "regions": REGIONS, **change}
    with pytest.raises(AssayError, match=said):
        concept_check(**call)
