from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import assay
from assay.tasks import InputSet, MaxOfK, Task


def test_it_is_a_task():
    assert isinstance(MaxOfK(), Task)


@pytest.mark.parametrize("name", MaxOfK.split_names)
def test_splits(name):
    split = MaxOfK(5, vocabulary=16).split(name, 3000)
    inputs, answer = split.tokens[:, :-1], split.tokens[:, -1]
    assert (inputs.max(axis=1) == answer).all()
    assert (split.kinds[:, -2] == 0).all()
    assert (split.kinds >= 0).sum() == len(split)
    if name == "near_ties":
        assert (inputs >= answer[:, None] - 2).all()
    if name == "high_maximum":
        assert (answer >= 12).all()
    again = MaxOfK(5, vocabulary=16).split(name, 100)
    assert (again.tokens == split.tokens[:100]).all()


def test_the_gap_is_to_the_largest_smaller_token():
    split = MaxOfK(3, vocabulary=4).split("iid", 200)
    for tokens, gap in zip(split.tokens, split.features["gap"][:, -2], strict=True):
        smaller = [token for token in tokens if token < tokens[-1]]
        assert gap == (tokens[-1] - max(smaller) if smaller else 0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_sizes_are_exact(data):
    length, vocabulary = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    conditions = {
        "minimum_maximum": data.draw(st.integers(0, vocabulary - 1)),
        "within": data.draw(st.none() | st.integers(0, 5)),
        "copies": data.draw(st.none() | st.integers(1, length)),
    }
    every = np.array(list(product(range(vocabulary), repeat=length)))
    copies, smaller = conditions["copies"], vocabulary - 1 if conditions["within"] is None else conditions["within"]
    assume(copies in (None, length) or min(smaller, vocabulary - 1) > 0)
    inputs = InputSet(length, vocabulary, **conditions)
    inside = inputs.contains(every)
    assert inputs.size == inside.sum()
    for maximum in range(vocabulary):
        assert inputs.count(maximum) == (inside & (every.max(axis=1) == maximum)).sum()


@pytest.mark.parametrize(("name", "value"), [("minimum_maximum", 8), ("within", -1), ("copies", 5), ("length", 0)])
def test_a_wrong_condition_is_named(name, value):
    with pytest.raises(assay.AssayError, match=name):
        InputSet(**{"length": 4, "vocabulary": 8, name: value})


@pytest.mark.parametrize(("length", "vocabulary"), [(2**63, 4), (4, 2**63), (10**300, 10**300), (1_001, 1_000)])
def test_a_set_too_large_to_be_counted_is_refused_at_once(length, vocabulary):
    with pytest.raises(assay.AssayError, match="their product must be at most 1000000"):
        InputSet(length, vocabulary)
    assert InputSet(1_000, 1_000).size == 1_000**1_000


def test_an_empty_set_is_refused():
    with pytest.raises(assay.AssayError, match="empty"):
        InputSet(3, 1, copies=2)
