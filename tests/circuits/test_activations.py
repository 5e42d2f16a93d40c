"""EAP-IG on activations: complete for what moves together, and against a path taken by hand."""

import numpy as np
import pytest
import torch
from naive import Naive
from small_subjects import assert_batches_do_not_matter, pairs, problem_of, subject_of

from assay import AssayError
from assay.circuits import ExactNodes, IntegratedActivationAttribution, discoveries


def by_hand(problem, points) -> np.ndarray:
    """The formula, from gradients of a model written out edge by edge with the edges of a group ablated in part.

    To ablate all edges out of a group by t is to move what it writes, while everything before it stays; the gradient
    with respect to one mask is then (reference - what is written there) times that at the receiver.
    """
    naive, graph = Naive(problem), problem.wiring.graph
    found = np.zeros(graph.shape)
    groups = [[0]]
    for layer in range(graph.layers):
        groups += [[graph.sender(layer, head) for head in range(graph.heads)], [graph.sender(layer)]]
    for group in groups:
        for point, weight in points:
            masks = torch.zeros(graph.shape, dtype=torch.float64)
            masks[group] = point
            masks.requires_grad_(True)
            naive.values(masks, problem.measure).mean().backward()
            found[group] += weight * masks.grad.numpy()[group]
    return found


@pytest.mark.parametrize("measure", ["logit_difference", "kl"])
def test_scores_are_the_formula(measure) -> None:
    problem = problem_of(subject_of("gpt2"), pairs(3), measure=measure)
    exists = problem.wiring.graph.exists
    found = IntegratedActivationAttribution(steps=3).scores(problem)
    expected = by_hand(problem, [(1 / 6, 1 / 3), (1 / 2, 1 / 3), (5 / 6, 1 / 3)])
    np.testing.assert_allclose(found[exists], expected[exists], atol=1e-11)
    assert np.abs(expected).max() > 0.01


@pytest.mark.parametrize(("kind", "ablation"), [("gpt2", "mean"), ("llama", "counterfactual"), ("neox", "mean")])
def test_edges_out_of_a_sender_that_moves_alone_sum_to_its_effect(kind, ablation) -> None:
    problem = problem_of(subject_of(kind, spread=0.3), ablation=ablation)
    graph = problem.wiring.graph
    alone = [0, *(graph.sender(layer) for layer in range(graph.layers))]
    exact = np.nansum(ExactNodes().scores(problem), axis=1)[alone]
    found = np.nansum(IntegratedActivationAttribution(steps=20, rule="gauss").scores(problem), axis=1)[alone]
    np.testing.assert_allclose(found, exact, atol=2e-3)
    assert np.abs(exact).max() > 0.05


def test_neither_batches_nor_the_order_of_pairs_matter(monkeypatch) -> None:
    problem = problem_of(subject_of("gpt2"), pairs(3))
    assert_batches_do_not_matter(IntegratedActivationAttribution(steps=2), problem, monkeypatch)


def test_bad_parameters_are_refused() -> None:
    problem = problem_of(subject_of("gpt2"), pairs(2))
    with pytest.raises(AssayError, match="steps=True"):
        IntegratedActivationAttribution(steps=True).scores(problem)


def test_it_is_known_by_name() -> None:
    assert discoveries.get("eap-ig-activations") is IntegratedActivationAttribution
