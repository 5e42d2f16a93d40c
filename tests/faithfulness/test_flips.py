"""Tests of flips: by enumeration, against each other, and their rate of false alarms under clustered flips."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from assay.faithfulness._flips import sign_flip_test

some_differences = st.lists(st.integers(-30, 30), max_size=40)


def by_enumeration(differences):
    """All signs of all sequences, those without a flip among them."""
    signs = list(product((-1, 1), repeat=len(differences)))
    hits = sum(abs(sum(s * d for s, d in zip(one, differences, strict=True))) >= abs(sum(differences)) for one in signs)
    return hits / len(signs)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        # 7 right to wrong and 3 wrong to right in 2 sequences: (5, -1) is reached by ± 4 and ± 6, all of them.
        ([5 - 0, 2 - 3], 1.0),
        # The same flips, each sequence one way: of ± 10 and ± 4 all are at least 4.
        ([7, -3], 1.0),
        # (4, 0) and (3, 3): one sequence alone says nothing.
        ([4, 0], 1.0),
        # Three sequences of 2 all one way: 2 of 8.
        ([2, 2, 2], 0.25),
        # Σ = 5 of ± 3 ± 2 ± 1 ± 1: +3+2 with 1-1 twice (5), +1+1 (7), mirrored: 3 of 16, twice.
        ([3, 2, 1, -1], 6 / 16),
        ([1] * 12, 2 / 2**12),
        ([], 1.0),
        ([0, 0, 0], 1.0),
        ([3, -3], 1.0),
    ],
)
def test_p_by_hand(differences, p):
    assert sign_flip_test(differences) == pytest.approx(p)
    assert by_enumeration(differences) == pytest.approx(p)


@given(st.lists(st.integers(-9, 9), max_size=9))
def test_p_by_enumeration(differences):
    assert sign_flip_test(np.array(differences, dtype=np.int64)) == pytest.approx(by_enumeration(differences))


@given(some_differences)
def test_which_model_comes_first_does_not_matter_and_p_is_never_0(differences):
    mirrored = [-d for d in differences]
    assert sign_flip_test(differences) == pytest.approx(sign_flip_test(mirrored))
    assert 0 < sign_flip_test(differences) <= 1
    assert sign_flip_test([*differences, 0]) == pytest.approx(sign_flip_test(differences))


def test_drawn_signs_agree_with_all_of_them():
    """13 to 16 sequences: enumerated here, drawn there; p of 9,999 draws is within 4 standard errors."""
    rng = np.random.default_rng(0)
    for sequences in (13, 14, 16):
        differences = rng.integers(1, 6, sequences) * rng.choice((-1, 1, 1), sequences)
        signs = np.array(list(product((-1, 1), repeat=sequences)))
        exact = (np.abs(signs @ differences) >= abs(differences.sum())).mean()
        drawn = sign_flip_test(differences)
        assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 10_000))
        assert drawn == sign_flip_test(differences, seed=0) != sign_flip_test(differences, seed=1)


def test_the_least_p_of_draws_is_that_of_no_hit():
    assert sign_flip_test([2] * 100) == 1 / 10_000


def mcnemar(lost, gained):
    """The exact test of all flips together: of the flips, half are expected to go either way."""
    return stats.binomtest(int(lost), int(lost + gained)).pvalue if lost + gained else 1.0


def test_false_alarms_stay_at_5_percent_where_those_of_mcnemar_do_not():
    """200 runs whose two models were exchanged, or not, in every sequence at random. In a sequence flips go one way:
    (lost, gained) are binomial with a chance of their own."""
    rng = np.random.default_rng(0)
    runs, alarms, pooled = 200, 0, 0
    for _ in range(runs):
        flips = rng.poisson(4, 60)
        lost = rng.binomial(flips, rng.beta(0.8, 0.8, 60))
        exchanged = rng.integers(0, 2, 60).astype(bool)
        lost = np.where(exchanged, flips - lost, lost)
        differences = 2 * lost - flips
        alarms += sign_flip_test(differences) <= 0.05
        pooled += mcnemar(lost.sum(), (flips - lost).sum()) <= 0.05
    limits = stats.binom(runs, 0.05).ppf((0.001, 0.999))
    assert limits[0] <= alarms <= limits[1]
    assert pooled > 1.5 * limits[1]


def test_a_true_difference_is_found():
    rng = np.random.default_rng(0)
    flips = rng.poisson(4, 60)
    lost = rng.binomial(flips, rng.beta(3, 1, 60))
    assert sign_flip_test(2 * lost - flips) == 1 / 10_000
