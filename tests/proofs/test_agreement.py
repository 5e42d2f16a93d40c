"""Certified agreement is about the very proxies that are judged empirically, and never above the truth."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import extreme_models, tiny_inputs, tiny_models

import assay
from assay.engine import Engine, Head, Samples, collect
from assay.proofs import Proxy, certify
from assay.subjects import Subject
from assay.tasks import InputSet, MaxOfK
from assay.testing.fuzz._models import attention_subject
from assay.testing.fuzz._truth import agreement, sequences

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

AGAINST = {
    "rank 1": Proxy(rank=1),
    "mean positions": Proxy(rank=None, average_positions=True),
    "svd": assay.SVD(rank=1),
    "svd, own bases, centred": assay.SVD(rank=2, joint=False, centred=True),
    "random": assay.RandomProjection(rank=2),
    "uniform": assay.UniformAttention(),
    "one-hot": assay.OneHotAttention(),
}

OUT_OF_RANGE = ("2^40", "span a factor", "the logits differ")


def strategies_for(against):
    return ("separable", "brute-force") if isinstance(against, assay.OneHotAttention) else ("separable", "exact")


def within_the_truth(subject, data):
    against = AGAINST[data.draw(st.sampled_from(sorted(AGAINST)))]
    inputs = data.draw(tiny_inputs(subject))
    for strategy in sorted({*strategies_for(against), "brute-force"}):
        options = {"grid": data.draw(st.sampled_from([8, 1024])), "search": data.draw(st.sampled_from([0, 2**18]))}
        try:
            certificate = certify(
                subject,
                strategy=strategy,
                inputs=inputs,
                against=against,
                **(options if strategy == "separable" else {}),
            )
        except assay.AssayError as error:
            if any(reason in str(error) for reason in OUT_OF_RANGE):
                return
            raise
        truth = agreement(subject, certificate.model_dump(mode="json")["proxy"], inputs)
        assert certificate.at_least <= truth <= certificate.at_most, (strategy, against, truth, certificate)
        certificate.verify(subject)


@settings(max_examples=30, deadline=None, suppress_health_check=QUIET)
@given(subject=st.one_of(tiny_models(head=4), extreme_models()), data=st.data())
def test_certified_agreement_is_within_the_truth(subject, data):
    within_the_truth(subject, data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=2000, deadline=None, suppress_health_check=QUIET)
@given(subject=st.one_of(tiny_models(head=4), extreme_models()), data=st.data())
def test_certified_agreement_is_within_the_truth_at_length(subject, data):
    within_the_truth(subject, data)


def random_subject(seed):
    """A model that is often right and often wrong, in float64 so that running it decides every input."""
    rng = np.random.default_rng(seed)
    size = np.arange(6)[:, None]
    subject = attention_subject(
        {
            "W_E": np.hstack([size / 3, rng.normal(0, 1, (6, 7))]),
            "W_pos": rng.normal(0, 0.3, (3, 8)),
            **{f"W_{name}": rng.normal(0, 0.7, (8, 4)) for name in "QKV"},
            "W_O": rng.normal(0, 1, (4, 8)),
            "W_U": rng.normal(0, 1, (8, 6)),
        },
        3,
    )
    return Subject(subject.model.double(), None, "tiny", seed=None)


def run(model, tokens):
    return model(torch.tensor(tokens))[:, -1].argmax(dim=1).numpy()


@pytest.mark.parametrize("name", sorted(set(AGAINST) - {"rank 1", "mean positions"}))
def test_what_is_proved_is_what_the_simplification_computes(name):
    """All 216 inputs through the real proxy: the same number of agreements as the certificate states."""
    for seed in range(3):
        subject = random_subject(seed)
        samples = collect(Engine(subject), MaxOfK(3, 6).split("train", 200), ("queries", "keys"))
        simplification = AGAINST[name].fit(samples)
        inputs = sequences(InputSet(3, 6))
        agreed = int((run(subject, inputs) == run(simplification.apply(subject), inputs)).sum())
        certificate = certify(subject, strategy="brute-force", against=simplification)
        assert certificate.at_least == certificate.at_most == agreed
        assert 0 < agreed < 216
        bound = certify(subject, strategy="separable", against=simplification)
        assert bound.at_least <= agreed <= bound.at_most
        bound.verify(subject)


@pytest.mark.parametrize("against", [assay.SVD(rank=1), assay.OneHotAttention()], ids=["svd", "one-hot"])
def test_near_ties_of_a_shipped_model(against):
    """All 3,782 near ties of the shipped model, run in float32 as `compare` runs them."""
    subject, inputs = assay.load("max-of-4"), InputSet(4, 64, minimum_maximum=4, within=2)
    samples = collect(Engine(subject), MaxOfK(4).split("train", 1000), ("queries", "keys"))
    proxy = against.fit(samples).apply(subject)
    near = [(m - np.array(list(np.ndindex(3, 3, 3, 3)))) for m in range(4, 64)]
    tokens = np.concatenate(near)
    tokens = tokens[inputs.contains(tokens)]
    tokens = tokens[(tokens.max(axis=1) >= 4)]
    tokens = np.unique(tokens, axis=0)
    assert len(tokens) == inputs.size
    agreed = int((run(subject, tokens.tolist()) == run(proxy, tokens.tolist())).sum())
    certificate = certify(subject, strategy=strategies_for(against)[1], inputs=inputs, against=against)
    assert certificate.at_least == certificate.at_most
    # A logit difference below float32's rounding may turn out either way.
    assert abs(agreed - certificate.at_least) <= 2


def test_an_unfitted_simplification_is_fitted_as_compare_fits_it():
    subject, inputs = assay.load("max-of-4"), InputSet(4, 64, minimum_maximum=60, within=1)
    unfitted = assay.SVD(rank=1)
    certificate = certify(subject, against=unfitted, inputs=inputs)
    assert unfitted.subspaces_ is None
    fitted = assay.SVD(rank=1).fit(collect(Engine(subject), MaxOfK(4).split("train", 1000), ("queries", "keys")))
    assert certify(subject, against=fitted, inputs=inputs).proxy == certificate.proxy


def test_equal_errors_are_credited():
    """A model and a proxy that is the same model agree everywhere, however often they are wrong."""
    subject = random_subject(0)
    basis = torch.eye(4, dtype=torch.float64)
    subspace = assay.simplify._subspace.Subspace(basis, torch.zeros(4, dtype=torch.float64))
    whole = assay.SVD(rank=4)
    whole.subspaces_ = {Head(0, 0): (subspace, subspace)}
    accuracy = certify(subject, strategy="exact").at_least
    assert accuracy < 200
    certificate = certify(subject, strategy="exact", against=whole)
    assert certificate.at_least == 216
    counted = certify(subject, strategy="separable", against=whole, grid=4096)
    assert counted.at_least > accuracy
    counted.verify(subject)


def test_simplifications_without_a_proof_are_refused():
    subject = assay.load("max-of-4")
    with pytest.raises(assay.AssayError, match=r"KMeans.* has no proof"):
        certify(subject, against=assay.KMeans(clusters=4))
    with pytest.raises(assay.AssayError, match="hard attention"):
        certify(subject, strategy="exact", against=assay.OneHotAttention())
    elsewhere = assay.SVD(rank=1).fit(
        Samples((Head(0, 0),), {Head(0, 0): torch.randn(9, 5)}, {Head(0, 0): torch.randn(9, 5)})
    )
    with pytest.raises(assay.AssayError, match="width 5"):
        certify(subject, against=elsewhere)
