"""Sites that are changed at scored positions only: what happens elsewhere is what the subject does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import assay
from assay import AssayError
from assay.engine import AtScored, Block, Edit, EditedSubject, Head, tensors
from assay.faithfulness import CleanPass
from assay.simplify import MeanAblation
from assay.tasks import UNSCORED, Dyck

CALL = {"sequences": 6, "fit_sequences": 10, "resamples": 99, "refit": False, "controls": False}


@pytest.fixture(scope="module")
def batch(task):
    return task.split("iid", 6)


def at_last(batch):
    """The same sequences, of which only the last prediction is scored."""
    kinds = np.full_like(batch.kinds, UNSCORED)
    last = [np.flatnonzero(row != UNSCORED)[-1] for row in batch.kinds]
    kinds[np.arange(len(batch)), last] = batch.kinds[np.arange(len(batch)), last]
    return replace(batch, kinds=kinds)


EVERYTHING = [
    Edit(
        Head(0, 0), queries=torch.zeros_like, keys=torch.zeros_like, pattern=lambda p, seen: seen / seen.sum(-1, True)
    ),
    Edit(Head(1, 0), values=torch.zeros_like, outputs=torch.zeros_like),
    Edit(Block(0), mlp=torch.zeros_like, residual=lambda x: 2 * x, attention=torch.zeros_like),
    Edit(Block(1), after=torch.zeros_like),
]


@pytest.mark.parametrize("edit", EVERYTHING, ids=["attention", "vectors", "block", "after"])
def test_edits_act_at_scored_positions_and_nowhere_else(engine, batch, edit):
    tokens, valid = tensors(batch, engine.subject.device)
    clean = CleanPass(engine, tokens, valid)
    before = engine.logits(clean.run, slice(None))
    last = at_last(batch)
    scored = torch.from_numpy(last.kinds != UNSCORED)
    earlier = (torch.arange(tokens.shape[1]) < scored.int().argmax(dim=1)[:, None]) & valid.bool()
    proxies = [AtScored(EditedSubject(engine.subject, [edit])), EditedSubject(engine.subject, [edit])]
    found = {}
    for name, given in (("last", last), ("none", replace(last, kinds=np.full_like(last.kinds, UNSCORED)))):
        by_number = {number: answer.logits(slice(None)) for number, answer in clean.answers(proxies, batch=given)}
        found[name], everywhere = by_number[0], by_number[1]
    assert torch.equal(found["none"][valid.bool()], before[valid.bool()]), "nothing is scored, so nothing is changed"
    assert torch.equal(found["last"][earlier], before[earlier]), "what lies before a causal subject's change"
    assert not torch.allclose(found["last"][scored], before[scored], atol=1e-3)
    assert not torch.allclose(everywhere[earlier], before[earlier], atol=1e-3)
    called = proxies[0](tokens, valid, scored)
    torch.testing.assert_close(called[valid.bool()], found["last"][valid.bool()], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(proxies[0](tokens, valid), proxies[1](tokens, valid), atol=0, rtol=0)


def test_without_the_batch_it_does_not_guess(engine, batch):
    clean = CleanPass(engine, *tensors(batch, engine.subject.device))
    with pytest.raises(AssayError, match="need the batch"):
        list(clean.answers([AtScored(EditedSubject(engine.subject, EVERYTHING[:1]))]))


class HalfOfIt(Dyck):
    """Every other position has no prediction that is scored."""

    def split(self, name, sequences):
        whole = super().split(name, sequences)
        kinds = whole.kinds.copy()
        kinds[:, ::2] = UNSCORED
        return replace(whole, kinds=kinds)


def results(comparison):
    frame = comparison.results
    frame = frame[(frame["feature"] == "") & frame["trained"].astype(bool) & (frame["metric"] != "attention_jsd")]
    return frame.set_index(["proxy", "site", "split", "metric", "kind"])["estimate"]


def test_compare_changes_sites_where_predictions_are_scored(subject, task, tmp_path):
    """What leaves the last block decides the prediction at its own position: there, the rest cannot matter."""
    task = HalfOfIt(
        task.brackets, task.max_depth, deeper=task.deeper, training_sentences=task.training_sentences, max_brackets=60
    )
    given = {"sites": ["layer1.after", "layer0.values"], "folder": tmp_path, **CALL}
    recipes = [assay.SVD(rank=2), MeanAblation()]
    everywhere = assay.compare(subject, task, recipes, **given)
    there = assay.compare(subject, task, recipes, positions="scored", overwrite=True, **given)
    assert (everywhere.record.settings["positions"], there.record.settings["positions"]) == ("all", "scored")
    assert any("at scored positions only" in warning for warning in there.warnings())
    assert not any("at scored positions only" in warning for warning in everywhere.warnings())
    first, second = (results(one) for one in (everywhere, there))
    at_the_end = first.index.get_level_values("site") == "layer1.after"
    np.testing.assert_allclose(first[at_the_end], second[at_the_end], atol=1e-5)
    values = ("SVD(rank=2)", "layer0.values", "iid", "kl", "all")
    assert abs(first[values] - second[values]) > 1e-4
    assert second["MeanAblation()", "layer0.values", "iid", "kl", "all"] != pytest.approx(
        first["MeanAblation()", "layer0.values", "iid", "kl", "all"], abs=1e-4
    )


class Elsewhere:
    """A recipe for parts of a model that gives no edits."""

    streams = ()

    def fit(self, samples):
        return self

    def apply(self, subject):
        return lambda tokens, valid=None: subject(tokens, valid)

    def control(self):
        return None


def test_what_cannot_be_told_where_to_act_is_refused(subject, task):
    with pytest.raises(AssayError, match="unknown positions 'last'"):
        assay.compare(subject, task, [assay.SVD(rank=2)], positions="last", **CALL)
    with pytest.raises(AssayError, match="another model is run whole"):
        assay.compare(subject, task, [assay.RoundWeights(bits=4)], positions="scored", **CALL)
    with pytest.raises(AssayError, match="gives no edits"):
        assay.compare(subject, task, [Elsewhere()], positions="scored", **CALL)
