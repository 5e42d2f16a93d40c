"""Explained variance and loss recovered, against their formulas written out, and where the truth is known."""

import numpy as np
import pytest
import torch

import assay
from assay import AssayError
from assay.diagnostics import loss_recovered, reconstruction
from assay.engine import Engine, collect
from assay.simplify import Identity, MeanAblation

SITE = "layer1.residual"


@pytest.fixture(scope="module")
def block_samples(subject, task):
    return collect(Engine(subject), task.split("train", 200), ("residual",))


@pytest.fixture(scope="module")
def at_site(subject, block_samples):
    return block_samples.at(Engine(subject).site(SITE))


def vectors_of(subject, split):
    """The residual stream before block 1, by transformers alone: vectors and sequence of every token."""
    tokens = torch.from_numpy(split.tokens.astype(np.int64))
    valid = torch.from_numpy(split.valid.astype(np.int64))
    hidden = subject.model(tokens, attention_mask=valid, output_hidden_states=True).hidden_states[1]
    keep = valid.bool()
    return hidden[keep].detach().double(), split.kinds[split.valid.astype(bool)]


def row_of(frame, split, kind="all"):
    return frame[(frame["split"] == split) & (frame["kind"] == kind)].iloc[0]


def test_explained_variance_is_that_of_the_formula_by_split_and_kind(subject, task, at_site):
    fitted = assay.SVD(rank=3, centred=True).fit(at_site)
    found = reconstruction(subject, task, fitted, sequences=40, resamples=300)
    ((subspace,),) = fitted.subspaces_.values()
    for split in (name for name in task.split_names if name != "train"):
        x, kinds = vectors_of(subject, task.split(split, 40))
        back = subspace.mean + (x - subspace.mean) @ subspace.basis @ subspace.basis.T
        error = (x - back).square().sum(dim=1).numpy()
        square = (x - x.mean(dim=0)).square().sum(dim=1).numpy()
        for kind in ("all", *(kind.name for kind in task.kinds)):
            chosen = slice(None) if kind == "all" else kinds == [one.name for one in task.kinds].index(kind)
            row = row_of(found, split, kind)
            if not len(error[chosen]):
                assert row["reason"] is not None
                continue
            assert row["explained"] == pytest.approx(1 - error[chosen].sum() / square[chosen].sum(), abs=1e-5)
            assert row["explained_low"] <= row["explained"] <= row["explained_high"]
            assert row["vectors"] == len(error[chosen])
    iid = row_of(found, "iid")
    for split in ("unseen_depth",):
        row = row_of(found, split)
        assert row["gap"] == pytest.approx(iid["explained"] - row["explained"])
        assert row["gap_low"] < row["gap"] < row["gap_high"]
    assert iid["off_support"] == pytest.approx(0.05, abs=0.01)
    assert np.isnan(iid["gap"])
    assert found[["l0", "dead", "dense", "newly_dense", "shrinkage"]].isna().all(axis=None)


def test_changing_nothing_explains_all_and_the_mean_nothing(subject, task, at_site):
    everything = reconstruction(subject, task, Identity().fit(at_site), sequences=30, resamples=200)
    whole = everything[everything["reason"].isna()]
    np.testing.assert_allclose(whole["explained"], 1, atol=1e-12)
    # The mean of the very vectors that are judged: 0 by the split's own mean, not by the one of another split.
    split = task.split("unseen_depth", 30)
    there = collect(Engine(subject), split, ("residual",)).at(Engine(subject).site(SITE))
    nothing = reconstruction(subject, task, MeanAblation().fit(there), sequences=30, resamples=200)
    assert row_of(nothing, "unseen_depth")["explained"] == pytest.approx(0, abs=1e-5)
    assert row_of(nothing, "iid")["explained"] < -1e-4


def test_loss_recovered_is_one_for_the_subject_and_zero_for_the_ablations(subject, task, at_site):
    options = {"sequences": 60, "fit_sequences": 200, "resamples": 300}
    own = loss_recovered(subject, task, Identity().fit(at_site), **options)
    measured = own[own["predictions"] > 0]
    np.testing.assert_allclose(measured["loss_added"], 0, atol=1e-6)
    for name in ("zeros", "means"):
        shares = measured[f"recovered_from_{name}"].dropna()
        np.testing.assert_allclose(shares, 1, atol=1e-5)
    means = loss_recovered(subject, task, MeanAblation().fit(at_site), **options)
    for _, row in means[means["predictions"] > 0].iterrows():
        assert row["loss_added"] == pytest.approx(row["loss_added_by_means"], abs=1e-6)
        share = row["recovered_from_means"]
        assert np.isnan(share) or share == pytest.approx(0, abs=1e-4)
        if np.isnan(share):
            assert "means" in row["reason"]


def test_loss_added_is_that_of_two_passes(subject, task, at_site):
    fitted = assay.SVD(rank=3).fit(at_site)
    found = loss_recovered(subject, task, fitted, sequences=25, resamples=200)
    split = task.split("iid", 25)
    tokens, valid = (torch.from_numpy(one.astype(np.int64)) for one in (split.tokens, split.valid))
    # Of predictions without a right answer there is no loss.
    scored = torch.from_numpy(np.isin(split.kinds, [i for i, kind in enumerate(task.kinds) if kind.determined]))
    right = torch.from_numpy(split.right.clip(min=0))[..., None]
    losses = [
        -model(tokens, valid).double().log_softmax(dim=-1).gather(-1, right)[..., 0][scored].mean().item()
        for model in (subject, fitted.apply(subject))
    ]
    row = row_of(found, "iid")
    assert row["loss_added"] == pytest.approx(losses[1] - losses[0], abs=1e-5)
    # This model is random: nothing that is taken from it is shown to add loss, and no share of nothing is told.
    assert row["loss_added_by_zeros"] < 0
    assert np.isnan(row["recovered_from_zeros"])
    assert "not shown to add loss" in row["reason"]


def test_what_changes_no_vectors_is_refused(subject, task, samples, engine):
    uniform = assay.UniformAttention().fit(samples.at(engine.site("all")))
    for ask in (reconstruction, loss_recovered):
        with pytest.raises(AssayError, match="replaces no vectors"):
            ask(subject, task, uniform)
        with pytest.raises(AssayError, match="not been fitted"):
            ask(subject, task, assay.SVD(rank=2))
