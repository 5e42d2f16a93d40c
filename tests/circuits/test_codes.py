from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score, roc_auc_score

from assay import AssayError
from assay.circuits import DiscreteCodes, Problem, Reference, code_score
from assay.engine import Engine
from small_decoder import pairs_of, random_decoder


def heads(rng, count):
    """Three heads whose code is a function of the class, and five with random codes of 200."""
    labels = np.repeat([1, 0], count)
    telling = [np.where(labels == 1, *rng.choice(200, 2, replace=False)) for _ in range(3)]
    return labels, [*telling, *(rng.integers(200, size=2 * count) for _ in range(5))]


@pytest.mark.parametrize("count", [5, 50])
def test_counting_codes_finds_the_random_heads_and_information_the_telling_ones(count):
    labels, codes = heads(np.random.default_rng(0), count)
    truth = [1] * 3 + [0] * 5
    auc = {
        score: roc_auc_score(truth, [code_score(one, labels, score) for one in codes])
        for score in ("information", "count")
    }
    assert auc == {"information": 1.0, "count": 0.0}


def test_scores_of_codes_by_hand():
    labels = np.array([1] * 4 + [0] * 4)
    codes = np.array([1, 1, 2, 3, 3, 3, -1, -1])
    assert code_score(codes, labels, "count") == 2
    assert code_score(codes, labels, "union") == 2 / 4
    rng = np.random.default_rng(0)
    chance = [mutual_info_score(codes, rng.permutation(labels)) for _ in range(500)]
    expected = mutual_info_score(codes, labels) - np.mean(chance)
    error = np.std(chance) / 500**0.5
    assert code_score(codes, labels, "information") == pytest.approx(expected, abs=4 * error)
    assert code_score(labels, labels, "information") > 0.5
    assert code_score(np.zeros(8, dtype=int), labels, "information") == pytest.approx(0)


def test_codes_of_clusters():
    generator = torch.Generator().manual_seed(0)
    centres = 5 * torch.randn(3, 6, generator=generator)
    which = torch.arange(60) % 3
    vectors = (centres[which] + 0.01 * torch.randn(60, 6, generator=generator))[None]
    codes = DiscreteCodes(features=16).codes(vectors)[0]
    assert len(set(codes[codes >= 0].tolist())) >= 2
    for one in range(3):
        assert len(set(codes[which == one].tolist())) == 1
    nothing = DiscreteCodes().codes(torch.ones(1, 10, 4))
    # All equal: what is left of the mean is nothing that a feature could see.
    assert set(nothing.flatten().tolist()) == {-1}


def test_a_head_that_gives_nothing_tells_nothing():
    subject = random_decoder()
    with torch.no_grad():
        subject.model.transformer.h[0].attn.c_attn.weight[:, 40:48] = 0
        subject.model.transformer.h[0].attn.c_attn.bias[40:48] = 0
    problem = Problem(Engine(subject), pairs_of(subject, count=40), Reference("counterfactual"))
    scores = DiscreteCodes(steps=100).scores(problem)
    found = dict(zip(problem.wiring.graph.senders, -np.nansum(scores, axis=1), strict=True))
    assert found["layer0.head1"] == pytest.approx(0)
    assert max(found.values()) > 0.02
    assert np.array_equal(np.isnan(scores), ~problem.wiring.graph.exists)
    again = DiscreteCodes(steps=100).scores(problem)
    assert np.array_equal(scores, again, equal_nan=True)
    with pytest.raises(AssayError, match="features=0"):
        DiscreteCodes(features=0).scores(problem)


def test_where_both_sides_are_of_one_kind_the_answer_is_told_and_the_side_is_not():
    """The token at the first place is to be said at the last; the counterfactual has another one there."""
    rng = np.random.default_rng(0)
    subject = random_decoder(vocabulary=6, layers=1, scale=1.0)
    attention, d = subject.model.transformer.h[0].attn, 16
    with torch.no_grad():
        subject.model.transformer.wte.weight.normal_()
        # Both heads attend evenly; the first carries what it sees, the second nothing.
        attention.c_attn.weight.zero_()
        attention.c_attn.bias.zero_()
        attention.c_attn.weight[:8, 2 * d : 2 * d + 8] = torch.eye(8, dtype=torch.float64)
    first = rng.integers(6, size=60)
    other = (first + rng.integers(1, 6, size=60)) % 6
    tokens = np.stack((first, np.zeros(60, dtype=int)), axis=1)
    pairs = pairs_of(random_decoder(vocabulary=6), count=30, length=2).take(np.zeros(60, dtype=int))
    answers, foils = pairs.answers.copy(), pairs.foils.copy()
    answers[:, -1], foils[:, -1] = first, other
    pairs = replace(
        pairs, tokens=tokens, counterfactuals=np.stack((other, tokens[:, 1]), axis=1), answers=answers, foils=foils
    )
    problem = Problem(Engine(subject), pairs, Reference("counterfactual"))
    found = {
        classes: -np.nansum(DiscreteCodes(classes=classes).scores(problem), axis=1)[1] for classes in ("side", "answer")
    }
    assert abs(found["side"]) < 0.05
    assert found["answer"] > 0.5
    with pytest.raises(AssayError, match="is of two classes"):
        DiscreteCodes(classes="answer", score="count").scores(problem)
