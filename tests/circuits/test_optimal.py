"""Optimal ablation: constants that are never worse than means, known where they can be calculated, and kept."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from many_subjects import in_double
from planted_task import FOUND_ON_TRAIN, Induction
from small_subjects import pairs, subject_of

import assay
from assay import AssayError
from assay.circuits import AllAblated, Circuit, Problem, RandomCircuit, Reference, learn_constants, measured
from assay.circuits._circuit import random_paths
from assay.circuits._optimal import _Learning
from assay.diagnostics import areas
from assay.engine import Engine, Samples
from assay.testing import planted

KINDS = ("gpt2", "llama", "neox")


@pytest.fixture(scope="module", params=KINDS)
def subject(request):
    subject = subject_of(request.param)
    for module in subject.model.modules():
        in_double(module)
    return subject


@pytest.fixture(scope="module")
def split():
    return replace(pairs(8), name="train", role="train")


def problem_of(subject, split):
    engine = Engine(subject)
    return Problem(engine, split, Reference.fitted(engine, "optimal", split), "kl")


def circuit_of(problem, edges=12, seed=0):
    return random_paths(problem.wiring.graph, edges, np.random.default_rng(seed))


@pytest.fixture
def few(monkeypatch):
    """Learning that stops early."""
    monkeypatch.setattr("assay.circuits._optimal.PASSES", 4)


def samples(subject, split):
    return Samples((), subject=subject, split=split)


# -- what is learned ------------------------------------------------------------------------------------------------


def test_the_best_constant_answer_is_the_mean_prediction():
    """With every edge ablated logits are one vector, and mean KL(p || q) is least at q = mean p: a calculation."""
    known = planted.induction(3.0, pairs=30)
    ablated = AllAblated("optimal").fit(samples(known.subject, known.pairs))
    tokens = torch.from_numpy(known.pairs.tokens)
    p = known.subject(tokens)[:, -1].softmax(dim=-1)
    mean = p.mean(dim=0)
    least = float((p * (p / mean).log()).sum(dim=-1).mean())
    assert ablated.learned_.kl == pytest.approx(least, abs=1e-4)
    assert ablated.learned_.kl_of_means > least + 0.1
    q = ablated.apply(known.subject)(tokens)[:, -1].softmax(dim=-1)
    torch.testing.assert_close(q, mean.expand_as(q), atol=3e-3, rtol=0)


def test_what_nobody_reads_needs_no_constant(few):
    """Where the circuit has all that matters, and ablated edges carry junk, nothing is left to be learned."""
    known = planted.induction(3.0, pairs=30)
    graph = Circuit(list(known.edges)).apply(known.subject).graph
    junk = [str(edge) for edge in graph.edges(graph.exists) if edge.receiver.startswith("layer1.head1.")]
    whole = [str(edge) for edge in graph.edges(graph.exists) if str(edge) not in junk]
    circuit = Circuit(whole, ablation="optimal").fit(samples(known.subject, known.pairs))
    assert circuit.learned_.kl_of_means == pytest.approx(0, abs=1e-12)
    assert circuit.learned_.kl == pytest.approx(0, abs=1e-12)


def test_it_is_never_worse_than_means_and_is_what_was_measured(subject, split, monkeypatch):
    """The same objective by the fast passes that circuits are judged with."""
    monkeypatch.setattr("assay.circuits._optimal.PASSES", 20)
    problem = problem_of(subject, split)
    kept = circuit_of(problem)
    reference, learned = learn_constants(problem, kept)
    of_means = measured(problem, [kept])[0].mean()
    own = measured(replace(problem, reference=reference), [kept])[0].mean()
    assert learned.kl_of_means == pytest.approx(of_means, rel=1e-9)
    assert learned.kl == pytest.approx(own, rel=1e-9)
    assert own < 0.9 * of_means


def test_in_single_precision_too(split, few):
    subject = subject_of("gpt2")
    subject.model.float()
    problem = problem_of(subject, split)
    kept = circuit_of(problem)
    reference, learned = learn_constants(problem, kept)
    assert reference.means.embeddings.dtype == torch.float32
    assert learned.kl < learned.kl_of_means
    own = measured(replace(problem, reference=reference), [kept])[0].mean()
    assert own == pytest.approx(learned.kl, rel=1e-4)


def test_gradients_are_those_of_the_fast_pass(subject, split):
    """By differences of what the passes measure that circuits are judged with."""
    problem = problem_of(subject, split)
    kept = circuit_of(problem)
    learning = _Learning(problem, kept)
    learning.step()
    rng = np.random.default_rng(0)
    found, expected = [], []
    for constant in learning.constants:
        flat = constant.grad.flatten()
        for place in {int(rng.integers(len(flat))), int(flat.abs().argmax())}:
            ends = []
            for sign in (1, -1):
                moved = [one.detach().clone() for one in learning.constants]
                index = next(i for i, one in enumerate(learning.constants) if one is constant)
                moved[index].flatten()[place] += sign * 1e-5
                other = replace(problem, reference=replace(problem.reference, means=learning.trace(moved)))
                ends.append(measured(other, [kept])[0].mean())
            found.append(float(flat[place]))
            expected.append((ends[0] - ends[1]) / 2e-5)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert np.abs(expected).max() > 1e-3


def test_batches_and_repetition_change_nothing(subject, split, few, monkeypatch):
    problem = problem_of(subject, split.take(np.arange(3)))
    kept = circuit_of(problem)
    reference, learned = learn_constants(problem, kept)
    again, same = learn_constants(problem, kept)
    assert same == learned
    for layer, heads in reference.means.heads.items():
        assert torch.equal(heads, again.means.heads[layer])
    monkeypatch.setattr("assay.circuits._problem.rows_at_a_time", lambda *_: 1)
    _, cut = learn_constants(problem, kept)
    assert cut.kl == pytest.approx(learned.kl, rel=1e-6)


def test_the_subject_is_left_as_it_was(subject, split, few):
    asked = [parameter.requires_grad for parameter in subject.model.parameters()]
    before = subject.weights_sha256, subject.alterations
    problem = problem_of(subject, split)
    reference, _ = learn_constants(problem, circuit_of(problem))
    assert (subject.weights_sha256, subject.alterations) == before
    assert [parameter.requires_grad for parameter in subject.model.parameters()] == asked
    assert all(parameter.grad is None for parameter in subject.model.parameters())
    assert not any(part.requires_grad for part in (reference.means.embeddings, reference.means.final))


# -- circuits -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def induction():
    return samples(Induction.subject(), Induction().split("train", 30))


def test_a_circuit_is_found_with_means_and_then_learned_for(induction, few):
    circuit = Circuit(5, method="exact", ablation="optimal").fit(induction)
    with_means = Circuit(5, method="exact", ablation="mean").fit(induction)
    assert np.array_equal(circuit.kept_, with_means.kept_)
    np.testing.assert_allclose(circuit.scores_, with_means.scores_)
    assert circuit.learned_.kl < circuit.learned_.kl_of_means
    assert circuit.bits_ == with_means.bits_, "as many numbers"
    described = circuit.describe()
    assert {name: described[name] for name in asdict(circuit.learned_)} == asdict(circuit.learned_)
    assert "L-BFGS" in described["constants"]
    assert "constants" not in with_means.describe()
    assert with_means.learned_ is None


def test_each_control_has_constants_of_its_own(induction, few):
    circuit = Circuit(list(FOUND_ON_TRAIN), ablation="optimal").fit(induction)
    own = circuit.reference_
    control = circuit.control().fit(induction)
    assert circuit.reference_ is own, "the circuit stays as it was"
    problem = Problem(Engine(induction.subject), induction.split, control.reference_, "kl")
    assert measured(problem, [control.kept_])[0].mean() == pytest.approx(control.learned_.kl, rel=1e-9)
    parts = [(*means.heads.values(), *means.mlp.values()) for means in (own.means, control.reference_.means)]
    assert not all(torch.equal(one, other) for one, other in zip(*parts, strict=True))
    assert control.apply(induction.subject).reference is control.reference_
    ablated = circuit.ablated().fit(induction)
    assert ablated.learned_.kl <= ablated.learned_.kl_of_means
    assert isinstance(control, RandomCircuit)


def test_other_sizes_are_fitted_for_themselves(induction, few):
    circuit = Circuit(5, method="exact", ablation="optimal").fit(induction)
    with pytest.raises(AssayError, match="was learned for this circuit alone; fit a circuit of each size"):
        circuit.of_size(6)
    with pytest.raises(AssayError, match="was learned for this circuit alone"):
        areas(circuit, induction.subject, induction.split, resamples=20)
    with pytest.raises(AssayError, match="method 'eap-ig' with ablation='optimal': it needs another input"):
        Circuit(5, ablation="optimal").fit(induction)


def test_constants_are_saved_with_the_circuit(induction, few, tmp_path):
    circuit = Circuit(5, method="exact", ablation="optimal").fit(induction)
    proxy = circuit.apply(induction.subject)
    found = assay.load_proxy(proxy.save(tmp_path), induction.subject)
    tokens = torch.from_numpy(induction.split.tokens)
    assert torch.equal(found(tokens), proxy(tokens))
    assert found.simplification.ablation == "optimal"
    assert found.simplification.bits_ == circuit.bits_


@pytest.mark.slow
def test_a_comparison_judges_it_and_keeps_how_it_was_learned(few):
    task, subject = Induction(), Induction.subject()
    recipe = Circuit(list(FOUND_ON_TRAIN), name="given", ablation="optimal")
    comparison = assay.compare(subject, task, [recipe], sequences=40, fit_sequences=30, resamples=50, refit=False)
    label = "Circuit(given, 3 edges, ablation='optimal')"
    effects = comparison.effects().set_index(["proxy", "split"])
    assert effects.loc[(label, "iid"), "ablation"] == "AllAblated(ablation='optimal')"
    assert np.isfinite(effects.loc[(label, "iid"), "proxy_difference"])
    about = {proxy.proxy: proxy.about for proxy in comparison.record.proxies}
    assert "KL(subject || circuit) on the train split" in about[label]["constants"]
    verdict = next(verdict for verdict in comparison.verdicts() if verdict.proxy == label)
    assert verdict.judgement != "identical"


def test_it_needs_no_pairs(induction, few):
    """A given circuit is learned for on whatever predictions are scored."""
    split = replace(induction.split, counterfactuals=None, answers=None, foils=None)
    recipe = Circuit(list(FOUND_ON_TRAIN), ablation="optimal")
    recipe.check(induction.subject, [replace(split, role="train"), replace(split, name="iid", role="iid")])
    with_pairs = Circuit(list(FOUND_ON_TRAIN), ablation="optimal").fit(induction)
    assert recipe.fit(samples(induction.subject, split)).learned_ == with_pairs.learned_
