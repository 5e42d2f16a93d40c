"""Integrated mask gradients: against autograd on a model written out edge by edge, and their sum."""

import numpy as np
import pytest
import torch
from naive import Naive
from small_subjects import assert_batches_do_not_matter, pairs, problem_of, subject_of

from assay import AssayError
from assay.circuits import IntegratedMaskGradients, discoveries


@pytest.mark.parametrize("measure", ["logit_difference", "kl"])
def test_scores_are_gradients_with_respect_to_the_masks_of_single_edges(measure) -> None:
    problem = problem_of(subject_of("gpt2"), pairs(3), measure=measure)
    naive, graph = Naive(problem), problem.wiring.graph
    expected = np.zeros(graph.shape)
    for point in (0.125, 0.375, 0.625, 0.875):
        masks = torch.full(graph.shape, point, dtype=torch.float64, requires_grad=True)
        naive.values(masks, measure).mean().backward()
        expected += masks.grad.numpy() / 4
    found = IntegratedMaskGradients(steps=4).scores(problem)
    np.testing.assert_allclose(found[graph.exists], expected[graph.exists], atol=1e-11)
    assert np.abs(expected).max() > 0.01


@pytest.mark.parametrize(("kind", "ablation"), [("gpt2", "counterfactual"), ("llama", "mean"), ("neox", "position")])
def test_they_sum_to_the_effect_of_ablating_everything(kind, ablation) -> None:
    problem = problem_of(subject_of(kind, spread=0.3), ablation=ablation)
    subject, ablated = problem.baseline
    total = float(ablated.mean() - subject.mean())
    found = float(np.nansum(IntegratedMaskGradients(steps=24, rule="gauss").scores(problem)))
    assert found == pytest.approx(total, abs=1e-5)
    assert abs(total) > 0.01


def test_neither_batches_nor_the_order_of_pairs_matter(monkeypatch) -> None:
    problem = problem_of(subject_of("llama"), measure="kl")
    # Llama's norms compute in single precision.
    assert_batches_do_not_matter(IntegratedMaskGradients(steps=2, rule="left"), problem, monkeypatch, atol=1e-5)


def test_bad_parameters_are_refused() -> None:
    problem = problem_of(subject_of("gpt2"), pairs(2))
    with pytest.raises(AssayError, match="steps=0"):
        IntegratedMaskGradients(steps=0).scores(problem)
    method = IntegratedMaskGradients()
    method.rule = "right"  # type: ignore[assignment]
    with pytest.raises(AssayError, match="right"):
        method.scores(problem)


def test_it_is_known_by_name() -> None:
    assert discoveries.get("mask-ig") is IntegratedMaskGradients
