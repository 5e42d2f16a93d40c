"""Certificates about linear models hold: tiny models against enumeration in exact arithmetic."""

import itertools
import math

import numpy as np
import pytest
import torch
from flint import arb, ctx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import table_subject, tiny_inputs, tiny_linear_models

import assay
from assay.proofs import LINEAR_STRATEGIES, certify
from assay.proofs.linear import _proof, _sums
from assay.proofs.linear._exponential import EXPONENTIAL_ERROR, LOWEST, exponential
from assay.tasks import InputSet
from assay.testing.fuzz._models import linear_subject
from assay.testing.fuzz._truth import LinearTruth

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
EXACT = ("brute-force", "symmetry", "gemm")


def certified(subject, **keywords):
    """A certificate, or None where sums leave the range of float64."""
    try:
        return certify(subject, **keywords)
    except assay.AssayError as error:
        if "lost to underflow" in str(error):
            return None
        raise


def encloses(certificate, loss):
    """Whether the true loss, a ball of Arb of a width far below one unit, is within the certificate's bounds."""
    with ctx.workprec(2000):
        units = loss * arb(2) ** 50
        return not bool(units < certificate.at_least) and not bool(units > certificate.at_most)


def never_beyond_the_truth(subject, data):
    inputs = data.draw(tiny_inputs(subject))
    truth = LinearTruth(subject)
    right, loss = truth.count(inputs), truth.loss(inputs)
    for strategy in LINEAR_STRATEGIES:
        options = {"width": data.draw(st.integers(1, 6)), "top": data.draw(st.integers(0, 6))}
        options["refine"] = data.draw(st.sampled_from([0, 1, 5, 10_000]))
        if strategy != "blocks":
            options = {}
        accuracy = certified(subject, strategy=strategy, inputs=inputs, **options)
        if accuracy is not None:
            assert accuracy.at_least <= right <= accuracy.at_most, (strategy, right, accuracy)
            assert strategy not in EXACT or accuracy.at_least == accuracy.at_most
            accuracy.verify(subject)
        bound = certified(subject, strategy=strategy, quantity="loss", inputs=inputs, **options)
        if bound is not None:
            assert encloses(bound, loss), (strategy, loss, bound)
            bound.verify(subject)


@settings(max_examples=25, deadline=None, suppress_health_check=QUIET)
@given(subject=tiny_linear_models(), data=st.data())
def test_a_certificate_is_never_beyond_the_truth(subject, data):
    never_beyond_the_truth(subject, data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=1000, deadline=None, suppress_health_check=QUIET)
@given(subject=tiny_linear_models(), data=st.data())
def test_a_certificate_is_never_beyond_the_truth_at_length(subject, data):
    never_beyond_the_truth(subject, data)


def test_a_model_without_weights_guesses_uniformly_and_ties_everywhere():
    subject = table_subject(np.zeros((5, 5)), 2)
    for strategy in LINEAR_STRATEGIES:
        assert certify(subject, strategy=strategy).at_least == 0
        bound = certify(subject, strategy=strategy, quantity="loss")
        assert bound.high == pytest.approx(math.log(5), abs=1e-11)
    for strategy in EXACT:
        assert certify(subject, strategy=strategy, quantity="loss").low == pytest.approx(math.log(5), abs=1e-11)


def test_a_model_that_counts_its_tokens():
    # The logit of x is 2 copies(x): pairs of equal tokens are right, the other v (v - 1) tie.
    v = 5
    subject = table_subject(2 * np.eye(v), 2)
    equal, tied = math.log(1 + (v - 1) * math.exp(-4)), math.log(2 + (v - 2) * math.exp(-2))
    for strategy in EXACT:
        assert certify(subject, strategy=strategy).at_least == v
        bound = certify(subject, strategy=strategy, quantity="loss")
        assert bound.low == pytest.approx(equal / v + tied * (v - 1) / v, abs=1e-11)
        assert bound.high - bound.low < 1e-11


def test_convexity_of_pairs_by_hand():
    # Each sum is at most the root of Z(s, s) Z(t, t), which is the same for all pairs: (e^4 + 4). The logits of the
    # answers are 4 for equal tokens, 2 otherwise.
    v = 5
    subject = table_subject(2 * np.eye(v), 2)
    whole = math.log(math.exp(4) + v - 1)
    answers = 4 / v + 2 * (v - 1) / v
    assert certify(subject, strategy="convexity", quantity="loss").high == pytest.approx(whole - answers, abs=1e-11)


def test_three_tokens_of_which_two_agree():
    # Row t of the table is (0, 3 t): answer 1 has logit 3 copies(1), answer 0 has logit 0.
    subject = table_subject(np.array([[0.0, 0.0], [0.0, 3.0]]), 3)
    loss = (math.log(2) + sum(n * math.log(1 + math.exp(-3 * c)) for c, n in ((1, 3), (2, 3), (3, 1)))) / 8
    for strategy in EXACT:
        bound = certify(subject, strategy=strategy, quantity="loss")
        assert bound.low == pytest.approx(loss, abs=1e-11)
        assert certify(subject, strategy=strategy).at_least == 7


def test_large_numbers_that_cancel_are_decided_exactly():
    # Logits 2^24 + 1, 2^24 and 2^24 + 1/2 differ where float32 sums of tokens could not tell.
    E = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
    U = np.array([[2.0**24, 2.0**24, 2.0**24], [-(2.0**-20), 0.0, 2.0**-20]])
    subject = linear_subject(E, np.eye(2), U, 2)
    truth = LinearTruth(subject)
    for strategy in EXACT:
        assert certify(subject, strategy=strategy).at_least == truth.count(InputSet(2, 3))
        assert encloses(certify(subject, strategy=strategy, quantity="loss"), truth.loss(InputSet(2, 3)))


def random_subject(seed=0, v=12, length=2, scale=2.0):
    rng = np.random.default_rng(seed)
    return table_subject(rng.normal(0, 1, (v, v)) + scale * np.eye(v) * np.arange(v), length)


@pytest.mark.parametrize("length", [2, 3])
def test_parity_with_an_ordinary_forward_pass(length):
    subject = random_subject(length=length, v=8)
    tokens = torch.cartesian_prod(*[torch.arange(8)] * length)
    with torch.inference_mode():
        logits = subject(tokens)[:, -1].double()
    answers = tokens.max(dim=1).values
    loss = torch.nn.functional.cross_entropy(logits, answers).item()
    own = logits.gather(1, answers[:, None])
    right = int(((logits >= own).sum(dim=1) == 1).sum())
    for strategy in EXACT:
        assert certify(subject, strategy=strategy).at_least == right
        assert certify(subject, strategy=strategy, quantity="loss").low == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("length", [2, 3])
def test_more_work_never_loosens_a_bound(length):
    subject = random_subject(length=length)

    def high(**options):
        return certify(subject, strategy="blocks", quantity="loss", **options).high

    def right(**options):
        return certify(subject, strategy="blocks", **options).at_least

    exact, convexity = (certify(subject, strategy=name, quantity="loss").high for name in ("gemm", "convexity"))
    by_width = [high(width=width, top=0, refine=0) for width in (12, 6, 3, 1)]
    by_top = [high(width=12, top=top, refine=0) for top in (0, 2, 4, 12)]
    by_refine = [high(width=12, top=0, refine=refine) for refine in (0, 10, 10_000)]
    for chain in (by_width, by_top, by_refine):
        assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(chain)), chain
    assert by_width[0] <= convexity + 1e-12
    assert by_width[-1] == pytest.approx(exact, abs=1e-11)
    assert by_top[-1] == pytest.approx(exact, abs=1e-11)
    assert by_refine[-1] == pytest.approx(exact, abs=1e-11)
    assert right(width=12, top=0, refine=0) <= right(width=3, top=0, refine=0) <= right(width=3, top=4, refine=20)
    assert certify(subject, strategy="convexity").at_least <= right(width=12, top=0, refine=0)


def test_scales_that_cancel_and_permuted_hidden_units_change_nothing():
    rng = np.random.default_rng(1)
    E, W, U = rng.normal(size=(6, 4)), rng.normal(size=(4, 4)), rng.normal(size=(4, 6))
    order = rng.permutation(4)
    subjects = [
        linear_subject(E, W, U, 3),
        linear_subject(4 * E, W / 2, U / 2, 3),
        linear_subject(E[:, order], W[order][:, order], U[order], 3),
    ]
    counts = [certify(subject).at_least for subject in subjects]
    assert counts == counts[:1] * 3
    losses = [certify(subject, quantity="loss") for subject in subjects]
    assert losses[0].at_least == losses[1].at_least
    assert losses[0].at_most == losses[1].at_most
    assert losses[0].low == pytest.approx(losses[2].low, abs=1e-11)


def test_restricted_sets_add_up_to_the_whole():
    subject = random_subject(v=6, length=3)
    parts = [certify(subject, inputs=InputSet(3, 6, copies=copies)) for copies in (1, 2, 3)]
    assert sum(part.at_least for part in parts) == certify(subject).at_least
    losses = [certify(subject, quantity="loss", inputs=InputSet(3, 6, copies=copies)) for copies in (1, 2, 3)]
    total = sum(part.low * part.inputs.size for part in losses) / 216
    assert certify(subject, quantity="loss").low == pytest.approx(total, abs=1e-11)


@given(st.lists(st.floats(-800, 0), min_size=1, max_size=20))
def test_the_exponential_is_within_its_bound(values):
    result = exponential(np.array(values))
    with ctx.workprec(200):
        for value, found in zip(values, result.tolist(), strict=True):
            exact = arb(max(value, LOWEST)).exp()
            assert bool(abs(arb(found) - exact) <= EXPONENTIAL_ERROR * exact)


def test_the_exponential_does_not_depend_on_the_shape():
    values = -np.random.default_rng(0).exponential(20, (3, 7000))
    assert (exponential(values).ravel() == exponential(values.ravel())).all()
    assert (exponential(values[:, ::2]) == exponential(values)[:, ::2]).all()


@pytest.mark.parametrize(
    ("mutant", "strategy", "quantity"),
    [
        ("norms of half the blocks", "blocks", "loss"),
        ("norms of half the blocks", "blocks", "accuracy"),
        ("ties are right", "symmetry", "accuracy"),
        ("ties are right", "brute-force", "accuracy"),
        ("ties are right", "gemm", "accuracy"),
        ("orders forgotten", "symmetry", "loss"),
        ("orders forgotten", "gemm", "accuracy"),
        ("mean instead of largest", "convexity", "loss"),
    ],
)
def test_mutants_of_the_proof_are_refuted(monkeypatch, mutant, strategy, quantity):
    logits = np.random.default_rng(2).normal(0, 2, (8, 8))
    logits[:, 3] = logits[:, 5]
    subject = table_subject(logits, 2)
    if mutant == "norms of half the blocks":
        blocks = _sums._blocks
        monkeypatch.setattr(_sums, "_blocks", lambda squares, width: blocks(squares, width)[:, ::2])
    elif mutant == "ties are right":

        def lenient(table, tokens):
            sums = _sums.add_up(table, tokens)
            return sums[np.arange(len(tokens)), tokens.max(axis=1)] >= sums.max(axis=1)

        monkeypatch.setattr(_proof, "right", lenient)
    elif mutant == "orders forgotten":
        whole = _proof.multisets
        monkeypatch.setattr(
            _proof,
            "multisets",
            lambda inputs: _proof.Multisets(whole(inputs).tokens, np.ones_like(whole(inputs).orders)),
        )
    else:
        monkeypatch.setattr(_proof, "doubled", lambda powers, n, operations: (powers.values**2).mean(axis=1))
    options = {"width": 2, "top": 1, "refine": 0} if strategy == "blocks" else {}
    certificate = certify(subject, strategy=strategy, quantity=quantity, **options)
    with pytest.raises(assay.AssayError, match="refuted"):
        certificate.verify(subject)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"strategy": "cubic"}, "unknown proof strategy for linear models 'cubic'"),
        ({"strategy": "blocks", "width": 0}, "width must be at least 1"),
        ({"strategy": "blocks", "refine": -1}, "at least 0"),
        ({"inputs": InputSet(3, 5)}, "sizes"),
        ({"against": assay.proofs.Proxy(rank=1)}, "attention models"),
    ],
)
def test_wrong_calls(keywords, message):
    with pytest.raises(assay.AssayError, match=message):
        certify(table_subject(np.eye(5), 2), **keywords)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(value):
    logits = np.eye(4)
    logits[2, 1] = value
    for strategy in LINEAR_STRATEGIES:
        with pytest.raises(assay.AssayError, match="not finite"):
            certify(table_subject(logits, 2), strategy=strategy)


def test_peaks_too_far_apart_are_refused_or_summed_directly():
    # A token's logits are 0 at itself and -400 elsewhere: for the sums of products, e^-400 is all that is left.
    subject = table_subject(400 * np.eye(3) - 400, 2)
    for strategy in ("gemm", "convexity", "blocks"):
        if strategy != "convexity":
            with pytest.raises(assay.AssayError, match="lost to underflow"):
                certify(subject, strategy=strategy, quantity="loss")
    bound = certify(subject, strategy="symmetry", quantity="loss")
    assert encloses(bound, LinearTruth(subject).loss(InputSet(2, 3)))
    bound.verify(subject)


@pytest.mark.parametrize(("tokens", "length"), [(2, 21), (9, 20)])
def test_more_inputs_than_63_bits_count_are_refused(tokens, length):
    with pytest.raises(assay.AssayError, match=r"less than 2\^63"):
        certify(table_subject(np.eye(tokens), length), strategy="symmetry")


def test_precision_and_length_are_refused_by_name():
    subject = table_subject(np.eye(4), 4)
    with pytest.raises(assay.AssayError, match="2 or 3 tokens"):
        certify(subject)
    assert certify(subject, strategy="symmetry").at_least == LinearTruth(subject).count(InputSet(4, 4))
    subject.model.to(torch.bfloat16)
    with pytest.raises(assay.AssayError, match="bfloat16"):
        certify(subject, strategy="symmetry")
    with pytest.raises(assay.AssayError, match="for linear models"):
        certify(assay.load("max-of-4"), quantity="loss")
