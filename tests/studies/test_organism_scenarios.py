"""Scenarios of toy English: the mixture formula, edits on a planted bias, heads behind a default answer."""

import numpy as np
import pytest

from assay.engine import Engine
from assay.faithfulness import compare
from assay.simplify import SVD
from assay.studies.organisms import scenarios as study
from assay.subjects import load
from assay.tasks import ToyEnglish
from assay.testing import planted


@pytest.fixture(scope="module")
def facts():
    return compare(
        load("toy-english"), ToyEnglish("facts"), [SVD(rank=1)], sequences=60, fit_sequences=40, controls=False,
        refit=False, resamples=50, progress=False,
    )  # fmt: skip


def test_iid_is_the_mixture_of_its_kinds(facts):
    """By hand, with the kinds of iid themselves: their weighted mean is iid, exactly."""
    frame = facts.results
    own = frame[(frame["metric"] == "same_prediction") & (frame["feature"] == "") & (frame["split"] == "iid")]
    own = own.set_index("kind")
    weights = own.loc[["recall", "both"], "sequences"]
    mean = float((weights * own.loc[["recall", "both"], "estimate"]).sum() / weights.sum())
    assert mean == pytest.approx(own.loc["all", "estimate"])
    (found,) = study.mixture(facts).values()
    assert found["iid"] == pytest.approx(mean)
    elsewhere = {name: facts.agreement(name)["estimate"].iloc[0] for name in ("recall", "both")}
    expected = sum(weights[name] / weights.sum() * elsewhere[name] for name in elsewhere)
    assert found["mixed"] == pytest.approx(expected)


def test_importances_of_planted_heads_are_equal_parts():
    first, second = planted.two_tasks(2, 1, pairs=8)
    engine = Engine(first.subject)
    found = [study._importances(study._problem(engine, known.pairs)) for known in (first, second)]
    for one in found:
        assert np.sort(np.abs(one), axis=None)[-3:] == pytest.approx(20 / 3)
        assert np.sort(np.abs(one), axis=None)[-4] == pytest.approx(0, abs=1e-9)
    again = study._again(study._problem(engine, first.pairs))
    assert len(again) == study.AGAIN
    np.testing.assert_allclose(again[0], found[0], atol=1e-9)


def test_a_head_behind_the_default_answer_is_found_and_is_what_it_is_called():
    found = study.default_heads(load("toy-english"), 40)
    best = max(found, key=lambda one: one["score"])
    assert best["head"] == "layer0.head0"
    assert best["open"] < 0.5
    assert best["iid"] > 0.8
    assert min(one["open"] for one in found if one["head"] != best["head"]) > best["open"]


@pytest.mark.slow
def test_an_edit_of_a_few_neurons_takes_the_bias_and_gives_no_skill():
    found = {one["edit"]: one for one in study.edited(load(study.ANCHORED), 60)}
    assert found["none"]["says_a"]["balanced"] == 1
    assert found["subtract A"]["says_a"]["balanced"] < 0.9
    assert found["other neurons"]["says_a"]["balanced"] > 0.95
    assert found["subtract A"]["right"]["balanced"] < found["none"]["right"]["balanced"] + 0.15
    assert found["subtract A"]["kept"] > 0.9
    table = study._of_bias(list(found.values()))
    assert table.rows[0][0][0] == "no edit"
    assert all(len(row) == len(table.headings) for row in table.rows)
