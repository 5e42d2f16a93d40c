"""Concept bottlenecks: the best answer against its exact leak, and claims that hold where regions are supervised."""

import numpy as np
import pytest

from assay.studies import organisms
from assay.studies.organisms import bottleneck
from assay.studies.organisms.bottleneck import APART, best, draw, judge, train


@pytest.mark.parametrize(("together", "leak"), [(0.0, 0.0), (0.5, 0.145), (0.9, 0.306), (1.0, 0.5)])
def test_the_best_answer_leaks_as_much_as_what_comes_together_tells(together, leak):
    judged = judge("best", None, together, 0, 1_500)
    assert judged.leak == pytest.approx(leak, abs=0.015)
    assert judged.accuracy >= judged.accuracy_apart - 0.02


@pytest.mark.parametrize("together", [0.0, 0.7, 1.0])
def test_the_best_answer_is_calibrated(together):
    """Of concepts that it gives a probability, as many are there."""
    drawn = draw(40_000, together, np.random.default_rng(3))
    chance = 1 / (1 + np.exp(-best(drawn.pixels, together)))
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        here = (chance >= low) & (chance < low + 0.2)
        # Four standard errors; the two of a pair may be one.
        off = 4 * np.sqrt(2 * 0.25 / here.sum())
        assert drawn.present[here].mean() == pytest.approx(chance[here].mean(), abs=off)


def test_inputs_are_what_they_say():
    drawn = draw(20_000, 0.8, np.random.default_rng(0))
    assert (drawn.present[:, 0] == drawn.present[:, 1]).mean() == pytest.approx(0.9, abs=0.01)
    assert (drawn.present[:, 1] == drawn.present[:, 2]).mean() == pytest.approx(0.5, abs=0.02)
    first = drawn.pixels[:, :8]
    apart = first[drawn.present[:, 0]].mean(axis=0) - first[~drawn.present[:, 0]].mean(axis=0)
    assert np.linalg.norm(apart) == pytest.approx(APART, abs=0.1)
    sums = {round(float((present - 0.5) @ bottleneck.WEIGHTS), 6) for present in np.unique(drawn.present, axis=0)}
    assert 0 not in sums


def test_a_network_that_saw_concepts_together_reads_them_from_elsewhere():
    found = [judge("sequential", train("sequential", together, 0, steps=150), together, 0, 400)
             for together in (0.0, 1.0)]  # fmt: skip
    assert found[0].leak < 0.2
    assert found[1].leak > 0.4
    assert found[0].accuracy_apart > found[1].accuracy_apart + 0.07


def test_the_study_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(bottleneck, "TOGETHER", (0.5,))
    quick = bottleneck.train
    monkeypatch.setattr(bottleneck, "train", lambda way, together, seed: quick(way, together, seed, steps=2))
    found = organisms.run("bottleneck", tmp_path, seeds=1, sequences=50)
    claims, interventions = found.shown.tables
    assert [row[0][0] for row in claims.rows] == [f"{way}, 0.5 together" for way in ("best", *bottleneck.WAYS)]
    assert len(interventions.rows) == len(bottleneck.WAYS)
    assert list((tmp_path / "figures").glob("*.svg"))
