"""Errors of an explanation of a function, by formulas that can be done by hand."""

import numpy as np
import pytest
from sklearn.tree import DecisionTreeRegressor

from assay import AssayError
from assay.diagnostics import function_errors

X = np.arange(-128, 128) + 0.5
INSIDE = (X > 32) & (X < 64)  # one eighth


def departing(x):
    return x + 10 * ((x > 32) & (x < 64))


def rule(x):
    return x.copy()


def test_what_is_exact_has_no_error():
    found = function_errors(departing, departing, X, INSIDE, rule=rule, exhaustive=True)
    assert [one.value for one in (found.everywhere, found.inside, found.outside, found.of_ranks, found.missed)] == [
        0
    ] * 5
    assert found.found is True
    assert found.told is None


def test_the_mean_has_an_error_of_one():
    found = function_errors(departing, lambda x: np.full_like(x, departing(X).mean()), X, INSIDE, exhaustive=True)
    assert found.everywhere.value == pytest.approx(1)
    assert not found.passes


def test_a_departure_that_is_missed_passes_the_rule_of_a_tenth():
    found = function_errors(departing, rule, X, INSIDE, rule=rule, exhaustive=True)
    variance = departing(X).var()
    assert found.everywhere.value == pytest.approx(100 / 8 / variance)  # p c² / variance
    assert found.everywhere.value == pytest.approx(0.0023, abs=2e-4)
    assert found.passes
    assert found.inside.value == pytest.approx(100 / variance)
    assert found.outside.value == 0
    assert found.missed.value == 1
    assert found.found is False


def test_a_fit_that_sees_the_departure_finds_it():
    tree = DecisionTreeRegressor(max_leaf_nodes=300, random_state=0).fit(X[:, None], departing(X))
    found = function_errors(departing, lambda x: tree.predict(x[:, None]), X, INSIDE, rule=rule)
    assert found.found is True
    assert found.missed.high < 0.05


def test_doubts_tell_where_the_function_departs():
    inside = function_errors(departing, rule, X, INSIDE, doubts=lambda x: INSIDE.astype(float))
    assert inside.told == 1
    even = function_errors(departing, rule, X, INSIDE, doubts=np.zeros_like)
    assert even.told == 0.5
    assert inside.missed is None
    assert inside.found is None


def test_noise_is_taken_off():
    rng = np.random.default_rng(0)
    x = rng.uniform(-128, 128, 4_000)
    inside = (x > 32) & (x < 64)
    noisy = departing(x) + 5 * rng.normal(size=x.shape)
    found = function_errors(lambda _: noisy, departing, x, inside, noise=5.0)
    for one in (found.everywhere, found.inside, found.outside):
        assert one.low < 0 < one.high
        assert abs(one.value) < 1e-3
    without = function_errors(lambda _: noisy, departing, x, inside)
    assert without.everywhere.low > 0


def test_limits_cover_the_error_of_all_inputs():
    """The error on all inputs lies within the limits of samples, in about 95 of 100."""
    whole = function_errors(departing, rule, X, INSIDE, exhaustive=True).everywhere.value
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(40):
        x = rng.choice(X, size=300)
        found = function_errors(departing, rule, x, (x > 32) & (x < 64), seed=3)
        covered += found.everywhere.low <= whole <= found.everywhere.high
    assert covered >= 35


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inside": np.zeros(256, dtype=bool)}, "0 inputs are inside"),
        ({"inside": INSIDE[:9]}, "True or False of each"),
        ({"truth": np.ones_like}, "constant"),
        ({"explanation": lambda x: x[:3]}, "shape"),
        ({"explanation": lambda x: x * np.inf}, "not finite"),
        ({"rule": departing}, "nothing departs"),
        ({"level": 0.0}, "level"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_wrong_calls(change, said):
    call = {"truth": departing, "explanation": rule, "inputs": X, "inside": INSIDE, **change}
    with pytest.raises(AssayError, match=said):
        function_errors(**call)
