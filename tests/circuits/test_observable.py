import numpy as np
import pytest
import torch

from assay import AssayError
from assay.circuits import EdgeAttribution, ExactEdges, ObservablePropagation, Problem, Reference
from assay.engine import Engine
from small_decoder import pairs_of, random_decoder


def problem_of(subject, **options):
    return Problem(Engine(subject), pairs_of(subject, count=30), Reference("counterfactual"), **options)


def patterns(graph):
    return [number for number, name in enumerate(graph.receivers) if name.endswith(("queries", "keys"))]


def test_it_is_exact_where_attention_does_not_move_and_all_else_is_linear():
    subject = random_decoder(scale=8.0)
    with torch.no_grad():
        for name, parameter in subject.model.named_parameters():
            if "ln_" in name:
                parameter.fill_(1e6 if name.endswith("weight") else 0)
            if "mlp.c_proj" in name:
                parameter.zero_()
            if "c_attn" in name:
                parameter[..., :32] = 0
    for module in subject.model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e12
    problem = problem_of(subject)
    found, exact = (method.scores(problem) for method in (ObservablePropagation(), ExactEdges()))
    graph = problem.wiring.graph
    others = np.setdiff1d(np.arange(graph.shape[1]), patterns(graph))
    assert np.abs(np.nan_to_num(exact)).max() > 0.01
    assert np.nan_to_num(found[:, others]) == pytest.approx(np.nan_to_num(exact[:, others]), rel=1e-6, abs=1e-9)
    assert ObservablePropagation.unseen(graph, exact) == pytest.approx(0, abs=1e-9)


def test_queries_and_keys_have_no_score():
    problem = problem_of(random_decoder(scale=15.0))
    found, whole = (method.scores(problem) for method in (ObservablePropagation(), EdgeAttribution()))
    graph = problem.wiring.graph
    assert np.isnan(found[:, patterns(graph)]).all()
    last = graph.reading(1).start
    kept = [one for one in range(last, graph.shape[1]) if one not in patterns(graph)]
    # No attention comes after the last layer's.
    assert np.nan_to_num(found[:, kept]) == pytest.approx(np.nan_to_num(whole[:, kept]))
    first = [number for number, name in enumerate(graph.receivers) if name.startswith("layer0") and "values" in name]
    assert np.abs(found[0, first] - whole[0, first]).max() > 0.01 * np.abs(whole[0, first]).max()
    exact = np.abs(np.nan_to_num(whole))
    share = exact[:, patterns(graph)].sum() / exact.sum()
    assert 0 < share < 1
    assert ObservablePropagation.unseen(graph, whole) == pytest.approx(share)


def test_kl_is_no_observable():
    with pytest.raises(AssayError, match="kl"):
        ObservablePropagation().scores(problem_of(random_decoder(), measure="kl"))
