"""What is measured of two models, against numbers by hand and against float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assay.faithfulness import Pair, Predictions, metrics

VOCABULARY = 7


def pair(subject, proxy, targets, **options):
    """Of two arrays of logits (position, vocabulary)."""
    kinds = torch.zeros(1, len(targets), dtype=torch.long)
    made = (Predictions(torch.tensor(np.array(one))[None].float(), kinds, ()) for one in (subject, proxy))
    return Pair(*made, torch.tensor([targets]), {}, **options)


def measure(name, *given, **options):
    return metrics.get(name)()(pair(*given, **options))[0].numpy()


def one_hot(*chosen):
    found = np.zeros((len(chosen), VOCABULARY))
    found[np.arange(len(chosen)), chosen] = 5
    return found


def test_flips_by_hand():
    """Right to wrong twice, wrong to right once, wrong to another wrong once, right both once."""
    targets = [0, 1, 2, 3, 4]
    subject, proxy = one_hot(0, 1, 0, 0, 4), one_hot(1, 0, 2, 1, 4)
    assert measure("flip_to_wrong", subject, proxy, targets).tolist() == [1, 1, 0, 0, 0]
    assert measure("flip_to_right", subject, proxy, targets).tolist() == [0, 0, 1, 0, 0]
    assert measure("same_prediction", subject, proxy, targets).tolist() == [0, 0, 0, 0, 1]


def test_probabilities_of_the_right_token_by_hand():
    """With two tokens left, p = 1/2 against q = 3/4 and 1/4."""
    low = -1e4
    subject = [[0.0, 0.0] + [low] * 5] * 2
    proxy = [[math.log(3), 0.0] + [low] * 5] * 2
    np.testing.assert_allclose(measure("right_probability", subject, proxy, [0, 1]), [1 / 4, -1 / 4], atol=1e-7)
    expected = [math.log(1 / 2) - math.log(3 / 4), math.log(1 / 2) - math.log(1 / 4)]
    np.testing.assert_allclose(measure("log_perplexity_ratio", subject, proxy, [0, 1]), expected, atol=1e-7)
    forward = (math.log(2 / 3) + math.log(2)) / 2
    backward = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    np.testing.assert_allclose(measure("kl", subject, proxy, [0, 1]), [forward] * 2, rtol=1e-5)
    np.testing.assert_allclose(measure("kl_reverse", subject, proxy, [0, 1]), [backward] * 2, rtol=1e-5)


def test_the_kl_of_two_tokens_that_change_places():
    """(p1 - p2)(ln p1 - ln p2), both ways."""
    subject = np.array([[2.0, 1.0, 0, 0, 0, 0, 0]])
    proxy = subject[:, [1, 0, 2, 3, 4, 5, 6]]
    p = np.exp(subject[0]) / np.exp(subject[0]).sum()
    expected = (p[0] - p[1]) * (math.log(p[0]) - math.log(p[1]))
    for name in ("kl", "kl_reverse"):
        np.testing.assert_allclose(measure(name, subject, proxy, [0]), [expected], rtol=2e-6)


def test_the_first_five_by_hand():
    order = np.array([[7.0, 6, 5, 4, 3, 2, 1]])
    two_others = np.array([[1.0, 2, 5, 4, 3, 7, 6]])
    assert measure("first_five", order, order, [0]).tolist() == [1]
    assert measure("first_five", order, two_others, [0]).tolist() == pytest.approx([3 / 5])
    assert metrics.get("first_five")()(pair(order[:, :3], order[:, ::-1][:, :3].copy(), [0])).tolist() == [[1]]


logits = st.lists(
    st.lists(st.floats(-20, 20, width=32), min_size=VOCABULARY, max_size=VOCABULARY), min_size=2, max_size=2
)


@given(logits, logits)
def test_both_divergences_are_those_of_float64_and_change_places(first, second):
    first, second = (np.array(one, dtype=np.float32) for one in (first, second))
    p, q = (torch.tensor(one).double().log_softmax(dim=-1) for one in (first, second))
    forward, backward = ((a.exp() * (a - b)).sum(dim=-1).numpy() for a, b in ((p, q), (q, p)))
    np.testing.assert_allclose(measure("kl", first, second, [0, 0]), forward, rtol=2e-5, atol=1e-9)
    np.testing.assert_allclose(measure("kl_reverse", first, second, [0, 0]), backward, rtol=2e-5, atol=1e-9)
    for both_ways in (False, True):
        found = measure("kl", first, second, [0, 0], both_ways=both_ways)
        np.testing.assert_allclose(found, measure("kl_reverse", second, first, [0, 0]), rtol=4e-5, atol=1e-9)


@given(logits, st.floats(-40, 40, width=32))
def test_a_constant_added_to_all_logits_changes_nothing(first, constant):
    first = np.array(first, dtype=np.float32)
    moved = first + np.float32(constant)
    assert np.abs(measure("kl_reverse", first, moved, [0, 1])).max() <= 1e-9
    assert np.abs(measure("log_perplexity_ratio", first, moved, [0, 1])).max() <= 2e-5


def test_differences_are_signed_and_antisymmetric():
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 50, VOCABULARY))
    targets = generator.integers(0, VOCABULARY, 50).tolist()
    for name in ("right_probability", "log_perplexity_ratio"):
        found = measure(name, first, second, targets)
        np.testing.assert_allclose(found, -measure(name, second, first, targets), atol=1e-6)
        assert found.min() < 0 < found.max()
