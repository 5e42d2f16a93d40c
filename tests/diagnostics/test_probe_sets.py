"""Dependence on the probe set: one distribution twice, and two that share nothing."""

from itertools import permutations

import numpy as np
import pytest
import torch

import assay
from assay import AssayError
from assay.diagnostics import probe_set_dependence
from assay.diagnostics._probe_sets import _dealt, _p, matched
from one_hot import Given, relu_dictionary, split_of, subject_of

HALF, WIDTH = 8, 20
RECIPE = assay.SparseAutoencoder(k=1, features=HALF, steps=60, batch=64, lr=0.02)


def drawn(name, first, *, sequences=90, length=12, seed=0):
    """Tokens of one half of the vocabulary."""
    rng = np.random.default_rng([seed, first, len(name)])
    return split_of(name, first + rng.integers(HALF, size=(sequences, length)))


@pytest.fixture(scope="module")
def subject():
    """Tokens whose vectors are at right angles to each other, but for what makes them even in number."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64))[0]
    return subject_of(2 * basis[: 2 * HALF])


@pytest.fixture(scope="module")
def task():
    return Given([drawn("train", 0), drawn("iid", 0), drawn("same again", 0, seed=5), drawn("other tokens", HALF)])


def test_features_of_other_tokens_are_other_features(subject, task):
    found = probe_set_dependence(RECIPE, subject, task, site="layer0.residual", shift="other tokens")
    assert found.place == "layer0.residual"
    assert (len(found.within), len(found.within_shift), found.between.size, len(found.same_data)) == (3, 3, 9, 3)
    assert min(found.within.min(), found.within_shift.min()) > 0.6
    assert found.between.max() < found.chance < 0.6
    assert found.dependence > 0.5
    assert found.p == pytest.approx(0.1)
    assert "dependence +" in str(found)


def test_one_distribution_twice_does_not_depend_on_which(subject, task):
    found = probe_set_dependence(RECIPE, subject, task, site="layer0.residual", shift="same again")
    assert abs(found.dependence) < 0.1
    assert found.between.mean() > 0.6
    assert found.p > 0.1
    assert found.ceiling == pytest.approx(found.within.mean(), abs=0.15)


def test_matching_is_the_best_of_all_and_the_unmatched_count_nothing():
    torch.manual_seed(3)
    first, second = (torch.nn.functional.normalize(torch.randn(n, 4, dtype=torch.float64)) for n in (3, 5))
    cosines = first @ second.T
    best = max(sum(float(cosines[i, j]) for i, j in enumerate(order)) for order in permutations(range(5), 3))
    assert matched(first, second) == pytest.approx(best / 5)
    assert matched(second, first) == pytest.approx(best / 5)
    shuffled = first[torch.tensor([2, 0, 1])]
    assert matched(first, shuffled) == pytest.approx(1)
    assert matched(first, -shuffled) < 1
    assert matched(first, first[:0]) == 0


def test_parts_share_no_sequence_and_are_equally_large():
    rows = np.arange(40).reshape(20, 2)
    copied = split_of("train", np.concatenate([rows, rows[:7]]))
    other = split_of("other", np.arange(100, 130).reshape(15, 2))
    parts = _dealt([copied, other], 4, 0)
    assert [len(part) for part in parts] == [3] * 8
    for own in (parts[:4], parts[4:]):
        seen = [tuple(row) for part in own for row in part.tokens.tolist()]
        assert len(set(seen)) == len(seen)
    with pytest.raises(AssayError, match="'other' has 15 different sequences, too few for 16 fits"):
        _dealt([copied, other], 16, 0)


def test_p_counts_the_ways_to_part_the_fits():
    same = np.full((4, 4), 0.2)
    same[:2, :2] = same[2:, 2:] = 0.9
    assert _p(same, 2) == pytest.approx(1 / 3)
    assert _p(np.full((4, 4), 0.5), 2) == 1


def test_what_trains_nothing_and_what_is_unknown_is_refused(subject, task):
    given = assay.GivenDictionary(relu_dictionary(*(torch.eye(WIDTH, dtype=torch.float64) for _ in range(2))))
    options = {"site": "layer0.residual", "shift": "other tokens"}
    for recipe in (given, assay.SVD(rank=2)):
        with pytest.raises(AssayError, match="trains no dictionary from a seed"):
            probe_set_dependence(recipe, subject, task, **options)
    with pytest.raises(AssayError, match="at least 2"):
        probe_set_dependence(RECIPE, subject, task, fits=1, **options)
    with pytest.raises(AssayError, match="unknown shift 'others'"):
        probe_set_dependence(RECIPE, subject, task, **{**options, "shift": "others"})
    assert RECIPE.dictionaries_ is None
