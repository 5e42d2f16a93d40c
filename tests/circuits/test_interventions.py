import numpy as np
import pytest
import torch
from scipy import stats

from assay import AssayError
from assay.circuits import ExactEdges, PathInterventions, Problem, Reference
from assay.engine import Engine
from small_decoder import m_of, pairs_of, random_decoder


def test_shown_edges_have_their_exact_effect_and_idle_ones_none():
    subject = random_decoder()
    with torch.no_grad():
        subject.model.transformer.h[0].mlp.c_proj.weight.zero_()
    pairs = pairs_of(subject, count=30)
    problem = Problem(Engine(subject), pairs, Reference("counterfactual"))
    found, exact = (method.scores(problem) for method in (PathInterventions(), ExactEdges()))
    graph = problem.wiring.graph
    shown = np.nan_to_num(found) != 0
    assert found[shown] == pytest.approx(exact[shown])
    assert 3 < shown.sum() < graph.size
    mlp = graph.sender(0)
    assert not shown[mlp].any()
    assert not shown[:, graph.mlp(0)].any()
    # By hand: Benjamini and Hochberg, of t-tests by another package.
    whole = m_of(subject, pairs, graph.exists)
    p = []
    for place in np.argwhere(graph.exists):
        without = graph.exists.copy()
        without[tuple(place)] = False
        change = m_of(subject, pairs, without) - whole
        p.append(1.0 if np.abs(change).max() < 1e-9 else stats.ttest_1samp(change, 0).pvalue)
    order = np.argsort(p)
    passed = np.flatnonzero(np.sort(p) <= 0.05 * np.arange(1, len(p) + 1) / len(p))
    expected = np.zeros(len(p), dtype=bool)
    expected[order[: passed.max() + 1]] = True
    assert np.array_equal(shown[graph.exists], expected)
    with pytest.raises(AssayError, match="rate=2"):
        PathInterventions(rate=2.0).scores(problem)
