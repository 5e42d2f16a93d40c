"""Concept shifts: planted ones, a rotation, noise with a closed form, and two models that differ by what was added."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from assay import AssayError
from assay.diagnostics import concept_shift
from assay.diagnostics._concept_shift import Moved, _turn, shift_of
from assay.faithfulness import every
from assay.subjects import Subject

K, WIDTH, SPREAD = 5, 16, 0.05


@pytest.fixture(scope="module")
def drawn():
    """Vectors in tight clusters, 40 sequences of 50, twice: to fit on, and held out; and the cluster of each."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(K, WIDTH)) + 2
    numbers = rng.integers(K, size=(2, 2_000))
    vectors = centres[numbers] + SPREAD * rng.normal(size=(2, 2_000, WIDTH))
    return vectors, numbers


def judged(drawn, after, **options):
    (fitted, held), _ = drawn
    sequence = np.arange(2_000) // 50
    moved = Moved(fitted, after[0], sequence), Moved(held, after[1], sequence)
    return shift_of(*moved, options.pop("concepts", K), every(40, resamples=200), **options)


def test_planted_shifts_are_found(drawn):
    vectors, numbers = drawn
    shifts = np.random.default_rng(1).normal(size=(K, WIDTH))
    found = judged(drawn, vectors + shifts[numbers])
    own = np.array([one.shift for one in found.concepts])
    nearest = [int(np.abs(shifts - one).sum(axis=1).argmin()) for one in own]
    assert sorted(nearest) == list(range(K))
    np.testing.assert_allclose(own, shifts[nearest], atol=1e-12)
    assert [one.samples for one in found.concepts] == [int((numbers[1] == k).sum()) for k in nearest]
    assert all(one.consistency == pytest.approx(1, abs=1e-12) for one in found.concepts)
    assert found.by_concept.explained.low == pytest.approx(1, abs=1e-12)
    assert found.by_concept.residual.high < 1e-20
    assert found.recovery == pytest.approx(1, abs=1e-3)
    assert found.recovery > found.recovery_alike > found.recovery_without
    assert found.recovery_without > 0.9, "the cosine of centroids hardly sees the shifts"
    assert found.alike.explained.high < 0.6
    assert found.alike.residual.low > 10
    assert found.turned.residual.low > 1
    text = str(found)
    assert text.startswith("5 concepts; a shift for each tells 1 [1, 1] of the displacement")


def test_one_shift_for_all_needs_no_concepts(drawn):
    shift = np.random.default_rng(2).normal(size=WIDTH)
    found = judged(drawn, drawn[0] + shift)
    assert found.alike.explained.low == pytest.approx(1, abs=1e-12)
    assert found.by_concept.explained.low == pytest.approx(1, abs=1e-12)
    assert found.turned.explained.low == pytest.approx(1, abs=1e-12), "a rotation by nothing, and a shift"


def test_a_rotation_looks_like_shifts_of_centroids_and_is_told_apart_within_clusters(drawn):
    """Within a cluster a vector is turned, so that a shift leaves |(a - mean)(Q - 1)|², of |a - mean|²: 2 - 2 tr Q / d
    for clusters that are round."""
    vectors, _ = drawn
    turn = ortho_group.rvs(WIDTH, random_state=3)
    found = judged(drawn, vectors @ turn)
    assert found.recovery == pytest.approx(1, abs=1e-3)
    assert min(one.consistency for one in found.concepts) > 0.99
    assert found.by_concept.explained.low > 0.99
    expected = 2 - 2 * np.trace(turn) / WIDTH
    assert found.by_concept.residual.value == pytest.approx(expected, rel=0.05)
    assert found.by_concept.residual.low > 1
    assert found.turned.residual.high < 1e-20
    assert found.turned.explained.low == pytest.approx(1, abs=1e-12)


def test_procrustes_finds_the_rotation(drawn):
    (vectors, _), _ = drawn
    turn = ortho_group.rvs(WIDTH, random_state=4)
    found = _turn(Moved(vectors, vectors @ turn + 3, np.zeros(len(vectors), dtype=np.int64)))
    np.testing.assert_allclose(found, turn, atol=1e-10)


def test_noise_beside_the_shifts_is_what_is_left(drawn):
    """Of a spread sigma and noise tau: tau² / (sigma² + tau²), and the limits have it."""
    vectors, numbers = drawn
    rng = np.random.default_rng(5)
    shifts, noise = rng.normal(size=(K, WIDTH)), 0.5 * SPREAD
    found = judged(drawn, vectors + shifts[numbers] + noise * rng.normal(size=vectors.shape))
    residual = found.by_concept.residual
    assert residual.low < 0.25 / 1.25 < residual.high
    assert 0 < residual.high - residual.low < 0.02


def test_unrelated_vectors_are_not_explained(drawn):
    rng = np.random.default_rng(6)
    found = judged(drawn, rng.normal(size=drawn[0].shape))
    assert found.by_concept.residual.low > 1
    assert found.turned.residual.low > 1


def test_sequences_are_the_unit(drawn):
    """Noise that all vectors of a sequence share leaves wider limits than noise of their own."""
    rng = np.random.default_rng(7)
    own, shared = rng.normal(size=drawn[0].shape), np.repeat(rng.normal(size=(2, 40, WIDTH)), 50, axis=1)
    sizes = np.repeat(rng.exponential(size=(2, 40, 1)), 50, axis=1)
    widths = []
    for noise in (own, sizes * shared):
        limits = judged(drawn, drawn[0] + 1 + 0.02 * noise).alike.residual
        widths.append((limits.high - limits.low) / limits.value)
    assert widths[1] > 5 * widths[0]


def test_what_was_added_to_a_model_is_found(subject, task):
    """A bias that training would have moved is one shift for all; the vectors are those of held-out sentences."""
    tuned = Subject(copy.deepcopy(subject.model), subject.tokenizer, "tuned")
    added = torch.linspace(-1, 1, tuned.model.config.n_embd)
    with torch.no_grad():
        tuned.model.transformer.h[0].mlp.c_proj.bias += added
    found = concept_shift(subject, tuned, task, "layer0.mlp", concepts=4, sequences=20, fit_sequences=20, resamples=100)
    for one in found.concepts:
        np.testing.assert_allclose(one.shift, added, atol=1e-4)
    assert sum(one.samples for one in found.concepts) == int(task.split("iid", 20).lengths.sum())
    assert found.alike.explained.low > 1 - 1e-6
    # What is behind it has moved, too, and not alike everywhere.
    behind = concept_shift(
        subject, tuned, task, "layer1.head0.values", concepts=4, split="unseen_depth", sequences=20, fit_sequences=20,
        resamples=100,
    )  # fmt: skip
    assert behind.alike.explained.high < 1
    assert behind.by_concept.explained.value >= behind.alike.explained.value - 0.05


def test_what_cannot_be_compared_is_refused(subject, task, drawn):
    quick = {"concepts": 3, "sequences": 5, "fit_sequences": 5, "resamples": 20}
    with pytest.raises(AssayError, match="no held-out vector has moved"):
        concept_shift(subject, subject, task, "layer1.residual", **quick)
    for site in ("layer1", "all.residual"):
        with pytest.raises(AssayError, match=rf"concept_shift\(site='{site}'\): needs one place and one stream"):
            concept_shift(subject, subject, task, site, **quick)
    with pytest.raises(AssayError, match=r"concept_shift\(concepts=0\): must be at least 1"):
        concept_shift(subject, subject, task, "layer1.mlp", **quick | {"concepts": 0})
    few = Moved(drawn[0][0][:7], drawn[0][0][:7] + 1, np.zeros(7, dtype=np.int64))
    with pytest.raises(AssayError, match=r"only 7 different vectors"):
        shift_of(few, few, 4, every(1))
    other = copy.deepcopy(subject.model)
    other.resize_token_embeddings(subject.vocabulary + 2)
    with pytest.raises(AssayError, match=r"give two states of one model"):
        concept_shift(subject, Subject(other, None, "other"), task, "layer1.mlp", **quick)
