"""The study of compiled programs: the calibration of every number, and what methods of discovery find."""

from dataclasses import replace

import numpy as np
import pytest

from assay.studies import programs
from assay.studies._right_program import TRAINED, Histogram


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "JUDGED", {name: programs.JUDGED[name] for name in ("own-count",)})
        patch.setattr(programs, "PAIRS", 40)
        patch.setattr(programs, "DISCOVERED", ("maximum",))
        yield programs.run(folder, sequences=200, seeds=1, recipe=replace(programs.RECIPE, steps=3))
    assert (folder / programs.RESULTS).exists()


def table(shown, title: str):
    return next(one for one in shown.tables if one.title.startswith(title))


def test_exact_explanations_agree_and_have_no_gap(shown):
    for row in table(shown, "What Assay says").rows:
        assert row[2][0] == "100.0"
        assert row[3][0] == "0.0"
        assert float(row[4][0]) < 1e-12


def test_metrics_are_ideal_on_an_exact_explanation(shown):
    rows = {row[0][0]: [cell[0] for cell in row[1:]] for row in table(shown, "Every metric").rows}
    for name, ideal in (("same prediction", "1"), ("jsd", "0"), ("flip to wrong", "0"), ("proxy accuracy", "1")):
        assert rows[name][:3] == [ideal] * 3, name
    assert float(rows["same prediction"][3]) < 1
    assert rows["attention jsd"] == ["–"] * 4


def test_patching_finds_the_edges_and_nothing_else(shown):
    rows = {row[0][0]: row[1] for row in table(shown, "Edges").rows}
    for name in ("exact", "greedy", "mask-ig", "path-interventions"):
        assert rows[name] == ("3 of 3", "0 inert, 0 invented"), name
    assert rows["exact-nodes"][0] == "1 of 3", "scores of heads are no scores of edges"


def test_exact_explanations_are_faithful_at_the_default_size():
    judged, _ = programs.judge("own-count", 500, wrong=0.0)
    assert (judged.verdict, judged.agreement[0], judged.gap[0]) == ("faithful", 1, 0)


@pytest.mark.slow
def test_a_planted_error_of_one_point_is_shown_at_two_thousand_sequences():
    judged, _ = programs.judge("own-count", 2_000, wrong=0.01)
    assert judged.shift == "few"
    assert 0 < judged.gap[1] < judged.gap[0] < judged.gap[2]
    assert judged.gap[1] < 0.01 < judged.gap[2]


def test_a_right_program_is_judged_beside_the_accuracy_of_what_it_explains(shown):
    (row,) = table(shown, "A program that is right").rows
    numbers = np.array([float(cell[0]) for cell in row[1:6]])
    assert (numbers < 60).all(), "three steps teach nothing"


def test_the_splits_of_the_histogram_are_what_they_say():
    task = Histogram()
    words = task.compiled.program.words
    rng = np.random.default_rng(0)
    known = {tuple(row[1:]) for tokens, _ in task.trainable for row in tokens.tolist()}
    for name, longest, met in (("train", TRAINED, False), ("iid", TRAINED, False), ("longer", 7, False),
                               ("pair", TRAINED, True), ("both", 7, True)):  # fmt: skip
        for one in task.inputs(name, 100, rng):
            assert ({*words[-2:]} <= {*one}) is met
            assert len(one) <= longest
            assert (len(one) > TRAINED) is (longest == 7)
            assert (tuple(task.compiled.token(word) for word in one) in known) is (name == "train")
