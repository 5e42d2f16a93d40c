"""Scores from gradients: finite differences of the intervention itself, and gradients of a reimplementation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from many_subjects import ARCHITECTURES, by_hand, means, problem_of, random_pairs, some_edges, tiny, without

from assay import AssayError
from assay.circuits import EdgeAttribution, IntegratedEdgeAttribution, _alike
from assay.circuits._attribution import nodes
from assay.circuits._wiring import Norm
from assay.tasks import NO_TOKEN, UNSCORED

ROUNDED = ("cohere", "mixtral", "vaultgemma", "gemma2", "olmoe", "deepseek_v3", "sarvam_mla")
"""What computes in float32 whatever its weights are: rotary positions, the choice of experts, attention weights."""


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def problem(request):
    subject = tiny(request.param, scale=1.2)
    return problem_of(subject, random_pairs(subject, 3))


def tolerance(problem, scores):
    return (1e-3 if problem.engine.subject.name in ROUNDED else 1e-4) * np.nanmax(np.abs(scores))


def slope(problem, *edges):
    """The derivative of m as edges move towards the reference, at the subject itself."""
    kept, step = without(problem, *edges), 1e-3 if problem.engine.subject.name in ROUNDED else 1e-5
    return (means(problem, kept, moved=step) - means(problem, kept, moved=-step)) / (2 * step)


def test_plain_scores_are_slopes_of_the_intervention(problem):
    scores = EdgeAttribution().scores(problem)
    assert np.array_equal(np.isnan(scores), ~problem.wiring.graph.exists)
    assert np.nanmax(np.abs(scores)) > 0.01
    for edge in some_edges(problem, 1):
        assert scores[edge] == pytest.approx(slope(problem, edge), abs=tolerance(problem, scores))


def test_scores_of_a_sender_sum_to_the_slope_of_the_sender(problem):
    scores, graph = EdgeAttribution().scores(problem), problem.wiring.graph
    for sender in (0, 2, graph.sender(0)):
        edges = [(sender, receiver) for receiver in np.flatnonzero(graph.exists[sender])]
        expected = slope(problem, *edges)
        assert np.nansum(scores[sender]) == pytest.approx(expected, abs=tolerance(problem, scores))


SMOOTH = ["gpt2", "gpt_neox", "gpt_neox-sequential", "gptj", "phi", "cohere", "gpt_bigcode", "starcoder2"]
"""Architectures whose integrand 30 nodes are enough for, with these weights."""


@pytest.mark.parametrize("name", SMOOTH)
def test_integrated_scores_of_the_embeddings_sum_to_the_whole_change(name):
    subject = tiny(name, scale=1.2)
    problem = problem_of(subject, random_pairs(subject, 3))
    whole = float(np.mean(problem.baseline[1] - problem.baseline[0]))
    scores = IntegratedEdgeAttribution(steps=30, rule="gauss").scores(problem)
    assert abs(whole) > 0.01
    assert np.nansum(scores[0]) == pytest.approx(whole, abs=1e-4)
    # What is complete for embeddings is not for other senders, and plain scores are not for any.
    assert abs(np.nansum(scores) - whole) > 1e-2
    assert abs(np.nansum(EdgeAttribution().scores(problem)[0]) - whole) > 1e-4


def gradients(model, split, tokens, embeddings):
    """dm / d input of every receiver of a GPT-2, by name, at some embeddings; m summed over predictions."""
    names = {}
    layers, heads = model.config.n_layer, model.config.n_head
    for layer in range(layers):
        for head in range(heads):
            names |= {f"layer{layer}.head{head}.{part}": None for part in ("queries", "keys", "values")}
        names[f"layer{layer}.mlp"] = None
    names["logits"] = None
    added = {name: torch.zeros_like(embeddings).requires_grad_(True) for name in names}
    _, logits = by_hand(model, tokens, None, added=added, embeddings=embeddings)
    total = logits.new_zeros(())
    for row, place in np.argwhere(split.kinds != UNSCORED):
        foils = [token for token in split.foils[row, place] if token != NO_TOKEN]
        total = total + logits[row, place, split.answers[row, place]] - logits[row, place, foils].mean()
    return dict(zip(added, torch.autograd.grad(total, list(added.values())), strict=True))


@pytest.mark.parametrize(
    ("method", "points"),
    [
        (EdgeAttribution(), [(1.0, 1.0)]),
        (IntegratedEdgeAttribution(4, "left"), [(0.0, 0.25), (0.25, 0.25), (0.5, 0.25), (0.75, 0.25)]),
        (IntegratedEdgeAttribution(), [(0.1, 0.2), (0.3, 0.2), (0.5, 0.2), (0.7, 0.2), (0.9, 0.2)]),
        (IntegratedEdgeAttribution(2, "gauss"), [(0.5 - 12**-0.5, 0.5), (0.5 + 12**-0.5, 0.5)]),
    ],
    ids=["eap", "left", "midpoint", "gauss"],
)
def test_scores_are_those_of_gradients_by_hand(method, points):
    subject = tiny("gpt2", scale=2)
    split = random_pairs(subject, 4)
    problem = problem_of(subject, split)
    graph, model = problem.wiring.graph, subject.model
    tokens, other = torch.from_numpy(split.tokens), torch.from_numpy(split.counterfactuals)
    own, reference = by_hand(model, tokens, None)[0], by_hand(model, other, None)[0]
    expected = np.where(graph.exists, 0.0, np.nan)
    for point, weight in points:
        start = reference["embeddings"] + point * (own["embeddings"] - reference["embeddings"])
        found = gradients(model, split, tokens, start.detach())
        for sender, receiver in np.argwhere(graph.exists):
            name = graph.senders[sender]
            change = (reference[name] - own[name]) * found[graph.receivers[receiver]]
            valid = torch.from_numpy(split.valid)[..., None]
            expected[sender, receiver] += weight * float((change * valid).sum().detach()) / len(split)
    assert np.allclose(method.scores(problem), expected, atol=1e-10, rtol=1e-9, equal_nan=True)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "mixtral", "opt"])
@pytest.mark.parametrize("method", [EdgeAttribution(), IntegratedEdgeAttribution(3)], ids=["eap", "eap-ig"])
def test_nothing_is_asked_where_a_pairs_inputs_are_the_same(name, method, monkeypatch):
    """Scores are those of whole passes; the output projection sees the positions from the first difference on."""
    subject = tiny(name)
    split = random_pairs(subject, 4)
    others = split.tokens.copy()
    for row, length in enumerate(split.lengths):
        others[row, length - 2] = 5 + (others[row, length - 2] - 4) % 85
    early = np.arange(others.shape[1]) < split.lengths[:, None] - 2
    scored = {
        "kinds": np.where(early, UNSCORED, split.kinds),
        "answers": np.where(early, NO_TOKEN, split.answers),
        "foils": np.where(early[..., None], NO_TOKEN, split.foils),
    }
    problem = problem_of(subject, replace(split, counterfactuals=others, **scored))
    start = min(int(length) for length in split.lengths) - 2
    assert start >= 2
    seen = []
    layer = problem.wiring.layers[0].output
    handle = layer.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0].shape[-2]))
    found = method.scores(problem)
    trimmed = sum(seen)
    seen.clear()
    monkeypatch.setattr(_alike, "_length", lambda problem, batch: 0)
    expected = method.scores(problem)
    handle.remove()
    assert trimmed < sum(seen)
    near = 1e-5 if name in ROUNDED else 1e-10
    assert np.allclose(found, expected, atol=near * np.nanmax(np.abs(expected)), equal_nan=True)


@pytest.mark.parametrize("rule", ["midpoint", "left", "gauss"])
@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_rules_integrate_polynomials(rule, steps):
    """Weights sum to 1; midpoints are exact up to degree 1, Gauss up to 2 steps - 1, left ends for constants alone."""
    found = nodes(rule, steps)
    degree = {"midpoint": 1, "left": 0, "gauss": 2 * steps - 1}[rule]
    for power in range(degree + 1):
        assert sum(weight * point**power for point, weight in found) == pytest.approx(1 / (power + 1))
    assert sum(weight * point ** (degree + 1) for point, weight in found) != pytest.approx(1 / (degree + 2), rel=1e-13)


@pytest.mark.parametrize("method", [EdgeAttribution(), IntegratedEdgeAttribution(3)])
@pytest.mark.parametrize("ablation", ["mean", "zero", "position"])
def test_plain_scores_under_other_ablations_are_slopes_too(method, ablation):
    subject = tiny("mistral", scale=1.2)
    problem = problem_of(subject, random_pairs(subject, 4), ablation)
    if isinstance(method, IntegratedEdgeAttribution):
        with pytest.raises(AssayError, match="needs another input to integrate"):
            method.scores(problem)
        return
    scores = method.scores(problem)
    for edge in some_edges(problem, 1):
        assert scores[edge] == pytest.approx(slope(problem, edge), abs=tolerance(problem, scores))


def test_integrated_scores_of_kl_are_complete_too():
    """From the counterfactual to the subject KL falls to 0: over the embeddings' edges, scores sum to all of it."""
    subject = tiny("gpt2", scale=1.2)
    problem = problem_of(subject, random_pairs(subject, 3), measure="kl")
    scores = IntegratedEdgeAttribution(20, "gauss").scores(problem)
    nothing = means(problem, np.zeros_like(problem.wiring.graph.exists))
    assert nothing > 0.01
    assert np.nansum(scores[0]) == pytest.approx(nothing, abs=1e-6)


def test_kl_has_no_slope_at_the_subject():
    subject = tiny("gpt2")
    problem = problem_of(subject, random_pairs(subject, 3), measure="kl")
    with pytest.raises(AssayError, match="gradient of KL is 0"):
        EdgeAttribution().scores(problem)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 0, "steps=0: must be a whole number"),
        ("steps", 2.5, r"steps=2\.5"),
        ("steps", True, "steps=True"),
        ("rule", "simpson", "simpson"),
    ],
)
def test_bad_parameters_are_refused(name, value, message):
    subject, method = tiny("gpt2"), IntegratedEdgeAttribution()
    setattr(method, name, value)
    with pytest.raises(AssayError, match=message):
        method.scores(problem_of(subject, random_pairs(subject, 3)))


def test_parameters_ask_for_gradients_as_before_and_have_none():
    subject = tiny("gpt2")
    problem = problem_of(subject, random_pairs(subject, 3))
    first = next(subject.model.parameters())
    first.requires_grad_(False)
    asked = [parameter.requires_grad for parameter in subject.model.parameters()]
    EdgeAttribution().scores(problem)
    assert [parameter.requires_grad for parameter in subject.model.parameters()] == asked
    assert all(parameter.grad is None for parameter in subject.model.parameters())


def test_a_norm_of_an_unknown_kind_is_differentiated_by_autograd():
    subject = tiny("llama", scale=1.2)
    problem = problem_of(subject, random_pairs(subject, 3))
    expected = EdgeAttribution().scores(problem)
    wiring = problem.wiring
    unknown = [
        replace(layer, norm=Norm(layer.norm.module, False, None, 0.0),
                mlp_norm=Norm(layer.mlp_norm.module, False, None, 0.0))
        for layer in wiring.layers
    ]  # fmt: skip
    assert all(layer.norm.weight is not None for layer in wiring.layers)
    problem.__dict__["wiring"] = replace(wiring, layers=tuple(unknown))
    assert np.allclose(EdgeAttribution().scores(problem), expected, atol=1e-9, equal_nan=True)
