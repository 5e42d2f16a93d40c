"""Metrics against scipy and against batches that can be worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr, softmax

from assay.faithfulness import Pair, Predictions, attention_divergence, metrics
from assay.faithfulness._metrics import choices
from assay.tasks import UNSCORED, Kind

ANY = Kind("any", "anything", None)
LAST_TWO = Kind("last_two", "tokens 2 and 3", (2, 3))
FIRST = Kind("first", "tokens 0 and 1, in the other order", (1, 0))


def pair_of(p_logits, q_logits, kinds=(ANY,), kind_of=None, targets=None, attention=None):  # noqa: PLR0917
    p, q = torch.as_tensor(p_logits), torch.as_tensor(q_logits)
    kind_of = torch.zeros(p.shape[:2], dtype=torch.long) if kind_of is None else torch.as_tensor(kind_of)
    targets = torch.zeros(p.shape[:2], dtype=torch.long) if targets is None else torch.as_tensor(targets)
    return Pair(Predictions(p, kind_of, kinds), Predictions(q, kind_of, kinds), targets, attention or {})


def measured(name, pair):
    return metrics.get(name)()(pair).numpy()


def logits_of(seed, *shape, scale=3.0):
    return np.random.default_rng(seed).normal(0, scale, shape)


def test_kl_is_the_sum_over_the_vocabulary_that_scipy_gives():
    p, q = logits_of(0, 3, 5, 1000), logits_of(1, 3, 5, 1000)
    expected = rel_entr(softmax(p, -1), softmax(q, -1)).sum(axis=-1)
    np.testing.assert_allclose(measured("kl", pair_of(p, q)), expected, rtol=1e-9)
    assert expected.min() > 1, "a mean over 1000 tokens would be a thousand times less"


def test_kl_has_the_subject_first():
    p, q = np.log([[[0.5, 0.5]]]), np.log([[[0.9, 0.1]]])
    forward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    backward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert measured("kl", pair_of(p, q))[0, 0] == pytest.approx(forward, abs=1e-12)
    assert measured("kl", pair_of(q, p))[0, 0] == pytest.approx(backward, abs=1e-12)
    assert abs(forward - backward) > 0.1


def test_kl_survives_probabilities_that_underflow():
    p, q = np.array([[[0.0, 2000.0]]]), np.array([[[2000.0, 0.0]]])
    assert measured("kl", pair_of(p, q))[0, 0] == pytest.approx(2000.0)
    assert measured("jsd", pair_of(p, q))[0, 0] == pytest.approx(math.log(2))


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 10.0])
def test_kl_in_single_precision_keeps_small_divergences(scale):
    """The same logits in double precision give it; offsets and rare tokens that gain much are part of the test."""
    p = logits_of(6, 4, 9, 3000).astype(np.float32)
    q = (p + scale * logits_of(7, 4, 9, 3000, scale=1.0) + 5).astype(np.float32)
    q[0, :, 0] += 90
    exact = rel_entr(softmax(p.astype(float), -1), softmax(q.astype(float), -1)).sum(axis=-1)
    np.testing.assert_allclose(measured("kl", pair_of(p, q)), exact, rtol=1e-4, atol=1e-9)


def test_jsd_is_the_squared_distance_of_scipy():
    p, q = logits_of(2, 2, 4, 50), logits_of(3, 2, 4, 50)
    expected = jensenshannon(softmax(p, -1), softmax(q, -1), axis=-1) ** 2
    np.testing.assert_allclose(measured("jsd", pair_of(p, q)), expected, rtol=1e-9)


def test_equal_logits_have_no_divergence_whatever_their_offset():
    p = logits_of(4, 2, 3, 20).astype(np.float32)
    for name in ("kl", "jsd"):
        assert np.abs(measured(name, pair_of(p, p))).max() < 1e-15
        assert np.abs(measured(name, pair_of(p, p + np.float32(4)))).max() < 1e-6


@given(
    arrays(np.float64, (1, 1, 6), elements=st.floats(-60, 60)),
    arrays(np.float64, (1, 1, 6), elements=st.floats(-60, 60)),
)
@settings(max_examples=60, deadline=None)
def test_divergences_keep_their_bounds(p, q):
    pair = pair_of(p, q)
    kl, jsd = measured("kl", pair)[0, 0], measured("jsd", pair)[0, 0]
    assert kl >= 0
    assert 0 <= jsd <= math.log(2)
    assert jsd <= kl / 2 + math.log(2) / 2 + 1e-12
    other_way = measured("jsd", pair_of(q, p))[0, 0]
    assert jsd == pytest.approx(other_way, abs=1e-7)


# -- attention ------------------------------------------------------------------------------------------------------


def rows_of(*rows):
    """Patterns (batch 1, head 1, query, key)."""
    return torch.tensor([[list(map(list, rows))]], dtype=torch.float32)


def test_attention_divergence_is_scipy_row_by_row_and_a_mean_over_heads():
    rng = np.random.default_rng(5)
    p, q = rng.dirichlet(np.ones(7), (2, 3, 4)), rng.dirichlet(np.ones(7), (2, 3, 4))
    expected = (jensenshannon(p, q, axis=-1) ** 2).mean(axis=1)
    found = attention_divergence(torch.from_numpy(p), torch.from_numpy(q))
    assert found.shape == (2, 4)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    single = attention_divergence(torch.from_numpy(p).float(), torch.from_numpy(q).float())
    np.testing.assert_allclose(single.numpy(), expected, rtol=1e-4)


def test_attention_divergence_of_equal_and_of_disjoint_rows():
    rows = rows_of((1.0, 0, 0), (0.25, 0.75, 0), (0.2, 0.3, 0.5))
    assert attention_divergence(rows, rows).tolist() == [[0.0, 0.0, 0.0]]
    found = attention_divergence(rows_of((1.0, 0), (0, 1.0)), rows_of((0, 1.0), (1.0, 0)))
    np.testing.assert_allclose(found.numpy(), math.log(2), rtol=1e-9)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        ((0.2, 0.3), (0.6, 0.4)),
        ((0.2, 0.3), (0.1, 0.1)),
        ((0.2, 0.3), (0.2, 0.3)),
        ((0.0, 0.0), (0.5, 0.5)),
        ((0.01, 0.0), (0.0, 0.01)),
    ],
)
def test_missing_mass_is_one_more_outcome(p, q):
    whole = [np.array([*row, 1 - sum(row)]) for row in (p, q)]
    expected = jensenshannon(*whole) ** 2
    found = float(attention_divergence(rows_of(p), rows_of(q))[0, 0])
    assert found == pytest.approx(0 if p == q else expected, abs=1e-6)


@given(arrays(np.float64, (2, 1, 1, 1, 5), elements=st.floats(0.0, 1.0)))
@settings(max_examples=60, deadline=None)
def test_attention_divergence_is_symmetric_and_bounded(weights):
    weights = weights + 1e-3
    p, q = (torch.from_numpy(part / part.sum(axis=-1, keepdims=True)) for part in weights)
    there, back = float(attention_divergence(p, q)), float(attention_divergence(q, p))
    assert 0 <= there <= math.log(2)
    assert there == pytest.approx(back, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_divergence_of_half_precision_rows(dtype):
    p, q = rows_of((0.5, 0.5, 0.0), (0.125, 0.375, 0.5)), rows_of((0.25, 0.0, 0.75), (0.125, 0.375, 0.5))
    expected = [jensenshannon(p[0, 0, 0], q[0, 0, 0]) ** 2, 0]
    found = attention_divergence(p.to(dtype), q.to(dtype))
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)


def test_attention_jsd_averages_over_layers():
    attention = {0: torch.tensor([[0.0, 0.2]]).double(), 1: torch.tensor([[0.4, 0.6]]).double()}
    pair = pair_of(np.zeros((1, 2, 4)), np.zeros((1, 2, 4)), attention=attention)
    np.testing.assert_allclose(measured("attention_jsd", pair), [[0.2, 0.4]])


# -- predictions ----------------------------------------------------------------------------------------------------

# One sequence, five positions: kinds any, last_two, first, last_two, unscored.
KINDS = (ANY, LAST_TWO, FIRST)
KIND_OF = [[0, 1, 2, 1, UNSCORED]]
SUBJECT = [[[0, 9, 1, 0], [9, 0, 1, 2], [3, 4, 9, 9], [0, 0, 5, 4], [0, 0, 0, 1]]]
PROXY = [[[9, 0, 1, 0], [0, 9, 3, 4], [4, 3, 0, 0], [9, 9, 1, 0], [1, 0, 0, 0]]]
TARGETS = [[1, 3, 1, 3, 0]]


def hand_made():
    return pair_of(
        torch.tensor(SUBJECT, dtype=torch.float32), torch.tensor(PROXY, dtype=torch.float32), KINDS, KIND_OF, TARGETS
    )


def test_the_prediction_is_the_arg_max_among_the_candidates_of_its_kind():
    chosen = choices(torch.tensor(SUBJECT, dtype=torch.float32), torch.tensor(KIND_OF), KINDS)
    assert chosen[0, :4].tolist() == [1, 3, 1, 2], "9s outside the candidates do not count"
    chosen = choices(torch.tensor(PROXY, dtype=torch.float32), torch.tensor(KIND_OF), KINDS)
    assert chosen[0, :4].tolist() == [0, 3, 0, 2]


def test_agreement_and_accuracy_by_hand():
    pair = hand_made()
    assert measured("same_prediction", pair)[0, :4].tolist() == [0, 1, 0, 1]
    assert measured("subject_accuracy", pair)[0, :4].tolist() == [1, 1, 1, 0]
    assert measured("proxy_accuracy", pair)[0, :4].tolist() == [0, 1, 0, 0]


def test_a_proxy_can_agree_with_a_subject_that_is_wrong():
    pair = hand_made()
    assert measured("same_prediction", pair)[0, 3] == 1
    assert measured("subject_accuracy", pair)[0, 3] == 0
    assert measured("proxy_accuracy", pair)[0, 3] == 0


@given(arrays(np.float64, (1, 4, 4), elements=st.floats(-5, 5)), st.floats(-3, 3))
@settings(max_examples=40, deadline=None)
def test_the_choice_is_always_a_candidate_and_blind_to_the_rest(logits, noise):
    kind_of = torch.tensor([[1, 2, 1, 2]])
    first = choices(torch.from_numpy(logits), kind_of, KINDS)
    assert set(first[0, [0, 2]].tolist()) <= {2, 3}
    assert set(first[0, [1, 3]].tolist()) <= {0, 1}
    disturbed = logits.copy()
    disturbed[0, [0, 2], :2] += noise
    disturbed[0, [1, 3], 2:] += noise
    assert choices(torch.from_numpy(disturbed), kind_of, KINDS).tolist() == first.tolist()


def test_every_metric_says_its_unit_and_direction():
    expected = {
        "same_prediction": ("rate", True, False),
        "subject_accuracy": ("rate", True, True),
        "proxy_accuracy": ("rate", True, True),
        "kl": ("nats", False, False),
        "jsd": ("nats", False, False),
        "attention_jsd": ("nats", False, False),
    }
    found = {name: metrics.get(name)() for name in metrics}
    for name, (unit, higher, answer) in expected.items():
        assert (found[name].unit, found[name].higher_is_better, found[name].needs_answer) == (unit, higher, answer)
