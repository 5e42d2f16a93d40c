"""Logit differences of pairs: by hand, by properties, and in comparisons whose splits have pairs or have none."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs_by_chance import PairTask

import assay
from assay import AssayError
from assay.engine import Engine, collect
from assay.faithfulness import Pair, Predictions, metrics
from assay.faithfulness._scores import score

NAMES = ("logit_difference", "subject_logit_difference", "logit_deviation")


def pair(subject, proxy, answers, foils):
    """Of arrays of logits (position, vocabulary)."""
    kinds = torch.zeros(1, len(answers), dtype=torch.long)
    made = (Predictions(torch.tensor(np.array(one))[None].float(), kinds, ()) for one in (subject, proxy))
    targets = torch.tensor([answers]).clamp(min=0)
    return Pair(*made, targets, {}, answers=torch.tensor([answers]), foils=torch.tensor([foils]))


def measured(*given):
    return {name: metrics.get(name)()(pair(*given))[0].tolist() for name in NAMES}


def test_by_hand_with_one_foil():
    subject, proxy = [[1.0, 4.0, 2.0]] * 2, [[3.0, 2.0, 0.5]] * 2
    found = measured(subject, proxy, [1, 2], [0, 1])
    assert found == {
        "logit_difference": [2 - 3, 0.5 - 2],
        "subject_logit_difference": [4 - 1, 2 - 4],
        "logit_deviation": [4.0, 0.5],
    }


def test_several_foils_count_by_their_mean_and_minus_one_is_none():
    subject, proxy = [[1.0, 4.0, 2.0, -7.0]] * 3, [[0.0, 1.0, 5.0, 2.0]] * 3
    found = measured(subject, proxy, [1, 1, -1], [[0, 2], [3, -1], [-1, -1]])
    assert found["subject_logit_difference"] == [4 - 1.5, 4 + 7, 0]
    assert found["logit_difference"] == [1 - 2.5, 1 - 2, 0]
    assert found["logit_deviation"] == [4, 12, 0]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.lists(st.floats(-20, 20, width=32), min_size=5, max_size=5), min_size=2, max_size=2),
    st.floats(-50, 50, width=16),
    st.permutations(range(5)),
)
def test_a_constant_moves_nothing_and_one_foil_twice_is_one_foil(both, constant, order):
    answer, foil, *_ = order
    plain = measured([both[0]], [both[1]], [answer], [foil])
    moved = measured([both[0]], [[value + constant for value in both[1]]], [answer], [foil])
    twice = measured([both[0]], [both[1]], [answer], [[foil, foil]])
    turned = measured([both[0]], [both[1]], [foil], [answer])
    for name in NAMES:
        assert moved[name] == pytest.approx(plain[name], abs=2e-5)
        assert twice[name] == pytest.approx(plain[name])
        assert turned[name] == pytest.approx([(1 if name == "logit_deviation" else -1) * plain[name][0]])


@pytest.mark.parametrize("name", NAMES)
def test_without_pairs_a_metric_of_pairs_says_so(name):
    logits = Predictions(torch.zeros(1, 1, 3), torch.zeros(1, 1, dtype=torch.long), ())
    with pytest.raises(AssayError, match="give a split with answers and foils"):
        metrics.get(name)()(Pair(logits, logits, torch.zeros(1, 1, dtype=torch.long), {}))


def test_scores_are_those_of_a_loop_that_reads_one_sequence_at_a_time(subject):
    task = PairTask()
    split = task.split("iid", 12)
    svd = assay.SVD(rank=1)
    proxy = svd.fit(collect(Engine(subject), task.split("train", 40), ("queries", "keys"))).apply(subject)
    found = score(Engine(subject), {"it": proxy}, task, split, [metrics.get(name)() for name in NAMES])["it"]
    sums = dict.fromkeys(NAMES, 0.0)
    for row in range(len(split)):
        tokens = torch.from_numpy(split.tokens[row : row + 1, : split.lengths[row]])
        of_subject, of_proxy = (one(tokens)[0].double() for one in (subject, proxy))
        for position in np.flatnonzero(split.kinds[row] == 0):
            foils = [foil for foil in split.foils[row, position] if foil >= 0]
            m, c = (
                float(one[position, split.answers[row, position]] - one[position, foils].mean())
                for one in (of_subject, of_proxy)
            )
            sums["logit_difference"] += c
            sums["subject_logit_difference"] += m
            sums["logit_deviation"] += abs(c - m)
    for name in NAMES:
        place = next(n for n, column in enumerate(found.columns) if tuple(column[:3]) == (name, "asked", ""))
        assert found.counts[:, place].tolist() == (split.kinds >= 0).sum(axis=1).tolist()
        assert found.sums[:, place].sum() == pytest.approx(sums[name], rel=1e-4, abs=1e-4)
    assert sums["logit_deviation"] > 0.1


def test_in_a_comparison_they_are_skipped_on_splits_without_pairs_and_the_reason_is_said(subject):
    comparison = assay.compare(
        subject, PairTask(without=("shorter",)), [assay.SVD(rank=1)], sequences=12, fit_sequences=12, resamples=50,
        refit=False,
    )  # fmt: skip
    frame = comparison.results.query("feature == '' and trained and proxy == 'SVD(rank=1)'")
    for name in NAMES:
        rows = frame[frame["metric"] == name].set_index(["split", "kind"])
        assert np.isfinite(rows.loc["iid", "estimate"]).all()
        assert rows.loc["shorter", "estimate"].isna().all()
        assert set(rows.loc["shorter", "reason"]) == {"skipped: shorter has no pairs"}
        assert set(rows["unit"]) == {"logits"}
        assert comparison.gaps(name)["gap"].isna().all()
        assert np.isfinite(comparison.gaps("same_prediction")["gap"]).all()


def test_a_comparison_without_pairs_has_none_of_them_and_refuses_to_be_asked(subject):
    options = {"sequences": 12, "fit_sequences": 12, "resamples": 50, "refit": False, "controls": False}
    bare = PairTask(without=("train", "iid", "shorter"))
    comparison = assay.compare(subject, bare, [assay.SVD(rank=1)], **options)
    assert not set(NAMES) & {metric.name for metric in comparison.record.metrics}
    assert comparison.effects().empty
    with pytest.raises(AssayError, match="logit_difference is about pairs, and no split has any"):
        assay.compare(subject, bare, [assay.SVD(rank=1)], metrics=["same_prediction", "logit_difference"], **options)


def test_accuracy_counts_every_right_answer():
    subject, proxy = [[0.0, 9, 0, 0], [0, 0, 9, 0], [9, 0, 0, 0]], [[0.0, 0, 0, 9], [0, 0, 9, 0], [0, 9, 0, 0]]
    given = pair(subject, proxy, [1, 1, 1], [0, 0, 0])
    given.also_right = torch.tensor([[[2, 3], [3, -1], [2, 3]]])
    found = {
        name: metrics.get(name)()(given)[0].tolist()
        for name in ("subject_accuracy", "proxy_accuracy", "flip_to_wrong", "flip_to_right")
    }
    assert found == {
        "subject_accuracy": [1, 0, 0],
        "proxy_accuracy": [1, 0, 1],
        "flip_to_wrong": [0, 0, 0],
        "flip_to_right": [0, 0, 1],
    }
