"""Biased representations: measures on planted vectors, the task, the recipe of scored positions, and a short run."""

import functools
import json

import numpy as np
import pytest
import torch

import assay
from assay import AssayError
from assay.engine import collect, engine_of
from assay.simplify import SVD
from assay.studies.organisms import biased
from assay.studies.organisms._bits import BITS, Bits, Question, expected_gap, majority, parity, patterns, tokens_of
from assay.studies.organisms._scored import ScoredSVD, at_scored, by_seed
from assay.studies.organisms._trained_bits import (
    Looked,
    at_last,
    batches_of,
    explained,
    kept,
    loss_of_pairs,
    similarity,
)
from assay.subjects import IGNORED, Subject, pooled_mlp
from assay.tasks import UNSCORED, Split

TASK = biased.TASK


def planted(rows=2_000, width=32, noise=0.3):
    """R = 3 e u + 1 h v + noise, with orthogonal unit vectors u and v and independent labels e and h of -1 and 1."""
    rng = np.random.default_rng(0)
    easy, hard = rng.integers(0, 2, (2, rows))
    u, v = np.linalg.qr(rng.normal(size=(width, 2)))[0].T
    vectors = 3 * np.outer(2 * easy - 1, u) + np.outer(2 * hard - 1, v) + noise * rng.normal(size=(rows, width))
    return vectors, easy, hard


def test_variance_of_planted_features_is_theirs_by_hand():
    vectors, easy, hard = planted(noise=0.3)
    total = 9 + 1 + 32 * 0.09
    assert explained(vectors, easy) == pytest.approx(9 / total, abs=0.01)
    assert explained(vectors, hard) == pytest.approx(1 / total, abs=0.01)
    assert explained(vectors, easy) / explained(vectors, hard) == pytest.approx(9, rel=0.05)
    assert similarity(vectors[:300], easy[:300]) > 0.9
    assert similarity(vectors[:300], hard[:300]) < 0.5
    nothing = np.random.default_rng(1).integers(0, 2, len(vectors))
    assert explained(vectors, nothing) < 0.01


def test_one_direction_carries_the_large_planted_feature_and_decodes_it_alone():
    vectors, easy, hard = planted()
    assert kept(vectors, easy, (1, 2)) == pytest.approx([1, 1], abs=0.01)
    assert kept(vectors, hard, (1, 2)) == pytest.approx([0, 1], abs=0.02)
    centred = vectors - vectors.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    for rank, expected in ((1, (1.0, 0.5)), (2, (1.0, 1.0))):
        basis = directions[:, -rank:]
        kept_vectors = centred @ basis @ basis.T
        for label, share in zip((easy, hard), expected, strict=True):
            direction = centred[label == 1].mean(axis=0) - centred[label == 0].mean(axis=0)
            right = ((kept_vectors @ direction > 0) == (label == 1)).mean()
            assert right == pytest.approx(share, abs=0.05)


def test_questions_of_bits_by_hand():
    bits = np.zeros((3, BITS), dtype=np.int64)
    bits[1, [0, 2, 4, 5, 8]] = 1
    bits[2, [0, 1, 5, 6, 7, 8, 9]] = 1
    assert TASK.labels(bits).tolist() == [[0, 0, 0], [1, 1, 1], [0, 0, 1]]
    assert majority(3)(bits).tolist() == [0, 0, 0]
    assert tokens_of(bits, 6)[1, :3].tolist() == [7, 8, 11]


def test_splits_share_no_pattern_and_differ_in_their_mixture_alone():
    splits = {name: TASK.split(name, 5_000) for name in TASK.split_names}
    seen = [{*map(bytes, split.tokens[:, :BITS].astype(np.uint8))} for split in splits.values()]
    assert sum(map(len, seen)) == len(set().union(*seen)) == 5_000 + 4 * 4_096
    assert len(TASK.bits("train")) == 2**BITS - 4 * 4_096
    for name, split in splits.items():
        asked = split.kinds[:, BITS - 1]
        shares = [(asked == number).mean() for number in range(3)]
        assert shares == pytest.approx(TASK.shares[name], abs=0.02)
        assert (split.kinds[:, : BITS - 1] == UNSCORED).all()
        bits = (split.tokens[:, :BITS] - 6) % 2
        right = split.right[:, BITS - 1] - 2 * asked
        assert (right == TASK.labels(bits)[np.arange(len(bits)), asked]).all()
        assert all(abs(bits.mean(axis=0) - 0.5) < 0.04)
        again = TASK.split(name, 100)
        assert np.array_equal(again.tokens, split.tokens[:100])
        assert np.array_equal(again.kinds, split.kinds[:100])
    assert len(np.unique(patterns(3), axis=0)) == 2**BITS


def test_the_gap_of_a_mixture_by_hand():
    assert expected_gap((0.97, 0.015, 0.015), (0.5, 0.25, 0.25), (1.0, 0.5, 0.5)) == pytest.approx(0.235)
    assert expected_gap((0.9, 0.1), (0.5, 0.5), (1.0, 1.0)) == pytest.approx(0)


def test_shares_that_are_none_are_refused():
    question = Question("one", "", parity(0))
    with pytest.raises(AssayError, match="1 in all"):
        Bits("b", (question,), {"train": (1.0,), "iid": (0.9,)})
    with pytest.raises(AssayError, match="for 1 questions"):
        Bits("b", (question,), {"train": (0.5, 0.5)})
    with pytest.raises(AssayError, match="no_such"):
        TASK.bits("no_such")


@pytest.fixture(scope="module")
def subject():
    model = pooled_mlp(length=BITS, vocabulary=TASK.vocabulary, answers=TASK.answers, hidden=(8, 6), seed=0)
    return Subject(model, None, "tiny")


def test_the_recipe_is_fitted_on_the_scored_position_alone(subject):
    engine = engine_of(subject)
    site = engine.site("layer0.mlp")
    split = TASK.split("train", 200)
    samples = collect(engine, split, site.read).at(site)
    (place,) = site.places
    (vectors,) = at_scored(samples).of(place)
    with torch.no_grad():
        expected = subject.model.hidden_layers(torch.from_numpy(split.tokens[:, :BITS]))[-1]
    torch.testing.assert_close(vectors, expected)
    fitted = ScoredSVD(2).fit(samples).subspaces_[place][0]
    torch.testing.assert_close(fitted.mean, expected.double().mean(dim=0))
    centred = (expected - expected.mean(dim=0)).double()
    leading = torch.linalg.svd(centred, full_matrices=False).Vh[:2].T
    torch.testing.assert_close(fitted.basis @ fitted.basis.T, leading @ leading.T)
    everywhere = SVD(2, centred=True).fit(samples).subspaces_[place][0]
    assert not torch.allclose(everywhere.mean, fitted.mean, atol=1e-2)


def test_samples_of_several_lengths_are_refused(subject):
    split = TASK.split("train", 2)
    uneven = Split(split.name, split.role, "", split.tokens, np.array([17, 16]), split.kinds)
    samples = collect(engine_of(subject), uneven, ("mlp",))
    with pytest.raises(AssayError, match="several lengths"):
        at_scored(samples)


def test_batches_are_of_the_train_split_with_all_answers(subject):
    batch = batches_of(TASK, rows=64, seed=1)(3)
    bits = (batch.tokens - TASK.answers) % 2
    digits = (batch.labels[:, -1:] >> np.arange(3)) & 1
    assert np.array_equal(digits, TASK.labels(bits))
    assert (batch.labels[:, :-1] == IGNORED).all()
    train = {*map(bytes, TASK.bits("train").astype(np.uint8))}
    assert {*map(bytes, bits.astype(np.uint8))} <= train
    assert np.array_equal(batches_of(TASK, rows=64, seed=1)(3).tokens, batch.tokens)
    looked = Looked.of(TASK, bits)
    logits = at_last(subject.model, looked.tokens).detach().numpy()
    by_hand = (logits[:, 1::2] > logits[:, ::2]).astype(int) == digits
    assert np.array_equal(looked.right(subject.model), by_hand)
    shares = torch.from_numpy(logits).reshape(64, 3, 2).log_softmax(dim=2).numpy()
    chosen = np.take_along_axis(shares, digits[:, :, None], axis=2)
    assert loss_of_pairs(3)(subject.model, batch).item() == pytest.approx(-chosen.sum() / 64, rel=1e-5)


@pytest.mark.slow
def test_predictions_stand_before_the_comparison_and_the_gap_is_that_of_the_mixture(tmp_path, monkeypatch):
    """A short run of one network: the gap by the mixtures is within the measured interval."""
    monkeypatch.setattr(biased, "OTHERS", ())
    monkeypatch.setattr(biased, "compare", functools.partial(assay.compare, resamples=200))
    compared = []
    judge = biased.judge

    def after_prediction(*arguments, **options):
        compared.append((tmp_path / biased.PREDICTION).is_file())
        return judge(*arguments, **{**options, "whole": False})

    monkeypatch.setattr(biased, "judge", after_prediction)
    found = biased.run(tmp_path, seeds=1, sequences=300, progress=lambda step: None)
    assert compared == [True]
    assert json.loads((tmp_path / biased.PREDICTION).read_text()) == json.loads(json.dumps(found.numbers["predicted"]))
    (one,) = found.numbers["predicted"]["biased"]
    assert min(one["accuracy"].values()) > 0.99
    assert one["variance"]["majority"] > 4 * one["variance"]["parity"]
    agreement = found.numbers["agreement"]["biased"]
    assert agreement["majority"][0][0] > 0.99
    assert agreement["parity"][0][0] < 0.6
    assert agreement["parity"][-1][0] > 0.99
    for row in found.numbers["gaps"]:
        assert row["low"] - 0.02 <= row["expected"] <= row["high"] + 0.02
    predicted = biased.Predicted(**one)
    right, of = biased.hits(predicted, agreement, 0)
    assert of == 12
    assert right >= 10
    comparison = found.comparisons["biased"]
    assert by_seed(comparison, "xor_only", "xor")["ScoredSVD(rank=8)"] == [agreement["xor"][-1][0]]
