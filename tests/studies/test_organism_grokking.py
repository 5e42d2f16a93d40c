"""Grokking with wrong labels: planted waves, pruning that removes exactly the noise, and a short run."""

import functools

import numpy as np
import pytest
import torch

import assay
from assay import AssayError
from assay.engine import Samples
from assay.studies.organisms import grokking
from assay.studies.organisms._modular import (
    Adds,
    ModularAddition,
    PrunePeriodic,
    participation,
    periodicity,
    planted,
    said,
    squares,
)
from assay.studies.organisms._neurons import RandomNeurons, lowest, neurons_of
from assay.subjects import Subject

TASK = ModularAddition()
NOTHING = Samples(())


def test_participation_of_known_vectors():
    wave = np.arange(97)[:, None] * 2 * np.pi / 97
    one = np.cos(5 * wave + 1.0)
    vectors = np.concatenate((one, one + np.cos(9 * wave), np.random.default_rng(0).normal(size=(97, 400))), axis=1)
    found = participation(torch.from_numpy(vectors))
    assert found[0].item() == pytest.approx(1.0)
    assert found[1].item() == pytest.approx(0.5)
    assert found[2:].mean().item() == pytest.approx(0.04, abs=0.005)


@pytest.mark.parametrize(("neurons", "least", "most"), [(48, 0.88, 0.95), (96, 0.985, 1.0), (192, 0.9995, 1.0)])
def test_planted_waves_add_the_better_the_more_there_are(neurons, least, most):
    model = planted(TASK, neurons, 0, 0.0, seed=0)
    assert least <= (said(model, TASK) == TASK.sums).mean() <= most
    assert periodicity(model, 97).min().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("neurons", [96, 192])
def test_pruning_removes_exactly_the_random_neurons_and_brings_the_sum_back(neurons):
    model = planted(TASK, neurons, 200, 0.7, seed=1)
    subject = Subject(model, None, "planted")
    scores = periodicity(model, 97)
    assert scores[neurons:].max().item() < 0.07
    assert sorted(lowest(scores, 200).tolist()) == list(range(neurons, neurons + 200))
    alone = said(planted(TASK, neurons, 0, 0.0, seed=1), TASK)
    recipe = PrunePeriodic(200, 97)
    pruned = recipe.fit(NOTHING).apply(subject).model.model
    assert np.array_equal(said(pruned, TASK), alone)
    noisy, others = said(model, TASK), (alone == TASK.sums).mean()
    assert (noisy == TASK.sums).mean() < others
    assert np.array_equal(said(model, TASK), noisy)  # the subject is as it was
    at_random = RandomNeurons(200).apply(subject).model.model
    assert (said(at_random, TASK) == TASK.sums).mean() < others
    assert isinstance(recipe.control(), RandomNeurons)
    nothing_left = PrunePeriodic(neurons_of(model), 97, "high").apply(subject).model.model
    assert not nothing_left.lm_head.weight.any()


def test_the_splits_are_what_they_say():
    labels, wrong = TASK.labels
    assert (len(labels), wrong.sum(), 97**2 - len(labels)) == (4_704, 1_646, 4_705)
    assert ((labels != TASK.sums[: len(labels)]) == wrong).all()
    rows = {name: TASK.rows(name) for name in TASK.split_names}
    assert sorted(np.concatenate([*rows.values()]).tolist()) == list(range(97**2))
    assert wrong[rows["corrupted"]].all()
    assert not wrong[np.concatenate((rows["train"], rows["iid"]))].any()
    split = TASK.split("corrupted", 50)
    a, b, c = split.tokens.T
    assert ((a - 97 + b - 2 * 97) % 97 == c).all()
    assert (split.right[:, 1] == c).all()
    with pytest.raises(AssayError, match="no_such"):
        TASK.rows("no_such")


def test_the_program_agrees_exactly_where_the_network_answers_truthfully():
    """The failure is the finding: agreement on wrong labels is the share that the subject inverted, to the bit."""
    task = ModularAddition(modulus=23)
    subject = Subject(planted(task, 22, 8, 1.0, seed=0), None, "planted", seed=0)
    truthful = (said(subject.model, task) == task.sums)[task.rows("corrupted")].mean()
    assert 0.1 < truthful < 0.95
    comparison = assay.compare(
        subject, task, [Adds(23), PrunePeriodic(8, 23)], sequences=200, fit_sequences=20, refit=False, controls=False,
        resamples=50, progress=False,
    )  # fmt: skip
    found = grokking.truths({"decay-0": comparison}, task)["decay-0"][0]
    assert found["program"] == found["truthful"] == pytest.approx(truthful, abs=1e-6)


def test_what_cannot_be_pruned_is_refused():
    subject = Subject(squares(TASK, 10, 0), None, "s")
    split = [TASK.split("iid", 2)]
    for recipe, message in (
        (PrunePeriodic(11, 97), "neurons must be 0 to 10"),
        (RandomNeurons(-1), "neurons must be 0 to 10"),
        (PrunePeriodic(5, 23), "one layer and 69 tokens"),
    ):
        with pytest.raises(AssayError, match=message):
            recipe.check(subject, split)
    with pytest.raises(AssayError, match="is a GPT2LMHeadModel"):
        PrunePeriodic(1, 97).check(assay.load("dyck-20-10", seed=0), split)
    recipe = PrunePeriodic(1, 97)
    recipe.by = "middle"
    with pytest.raises(AssayError, match="known: high, low"):
        recipe.__post_init__()
    with pytest.raises(AssayError, match="at least 3"):
        ModularAddition(modulus=2)


def test_a_short_run_gives_all_tables_and_the_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(grokking, "compare", functools.partial(assay.compare, resamples=50))
    monkeypatch.setattr(grokking, "STEPS", {15: 2})
    found = grokking.found(
        tmp_path, ModularAddition(modulus=11), seeds=1, sequences=30, progress=lambda step: None, neurons=20
    )
    assert [*found.comparisons] == ["decay-15"]
    assert [len(table.rows) for table in found.shown.tables] == [1, 4, 6, 1]
    curve = found.numbers["pruned"]["15"][0]["low"]
    assert len(curve) == len(grokking.SHARES)
    assert curve[0] == {key: value for key, value in found.numbers["training"]["15"][0][-1].items() if key != "step"}
    assert [series.panel for series in found.shown.charts[0].series][::3] == ["weight decay 15"]
