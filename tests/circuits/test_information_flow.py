"""Information flow: shares by hand, by a model written out, and what they must add up to."""

import numpy as np
import pytest
import torch
from naive import Naive
from small_subjects import assert_batches_do_not_matter, pairs, problem_of, subject_of

from assay.circuits import InformationFlow, discoveries
from assay.circuits._information_flow import shares


def test_shares_by_hand() -> None:
    # |x| = 4; without the first part 1 is left, without the second 3, and the third is farther than nothing.
    parts = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert shares(parts, torch.tensor([3.0, 1.0])).tolist() == [0.75, 0.25, 0.0]
    assert shares(parts, torch.tensor([0.0, 0.0])).tolist() == [0.0, 0.0, 0.0]


def test_scores_are_the_formula_position_by_position() -> None:
    problem = problem_of(subject_of("gpt2"), pairs(3))
    naive, graph, split = Naive(problem), problem.wiring.graph, problem.split
    none = torch.zeros(graph.shape, dtype=torch.float64)
    with torch.no_grad():
        written = naive._senders(naive.tokens, none, None)
        blocks = problem.engine.subject.model.transformer.h
        expected = np.full(graph.shape, np.nan)
        for receiver, name in enumerate(graph.receivers):
            layer = len(blocks) if name == "logits" else int(name[5 : name.index(".")])
            biases = sum(block.attn.c_proj.bias for block in blocks[: layer + name.endswith("mlp")])
            stream = sum(written[: graph.heard[receiver]]) + biases
            for sender in range(graph.heard[receiver]):
                means = []
                for row in range(len(split)):
                    scored = np.flatnonzero(split.kinds[row] >= 0)
                    places = scored if name == "logits" else range(scored.max() + 1)
                    found = []
                    for place in places:
                        x = stream[row, place]
                        near = [float(x.abs().sum() - (x - c[row, place]).abs().sum()) for c in written]
                        near = [max(0.0, value) for value in near[: graph.heard[receiver]]]
                        found.append(near[sender] / sum(near) if sum(near) else 0.0)
                    means.append(np.mean(found))
                expected[sender, receiver] = np.mean(means)
    np.testing.assert_allclose(InformationFlow().scores(problem), expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["llama", "neox"])
def test_shares_in_a_receiver_add_up_to_one_and_readers_of_one_stream_agree(kind) -> None:
    problem = problem_of(subject_of(kind))
    graph = problem.wiring.graph
    found = InformationFlow().scores(problem)
    assert np.nanmin(found) >= 0
    assert np.all(np.nansum(found, axis=0) <= 1 + 1e-12)
    assert np.all(np.nansum(found, axis=0)[: graph.mlp(0) + 1] > 0.99)
    reading = found[:, graph.reading(1)]
    np.testing.assert_array_equal(reading, np.repeat(reading[:, :1], graph.readers, axis=1))


def test_neither_the_counterfactual_nor_batches_matter(monkeypatch) -> None:
    problem, other = (problem_of(subject_of("llama"), ablation=ablation) for ablation in ("counterfactual", "mean"))
    np.testing.assert_array_equal(InformationFlow().scores(problem), InformationFlow().scores(other))
    assert_batches_do_not_matter(InformationFlow(), problem, monkeypatch)


def test_it_is_known_by_name() -> None:
    assert discoveries.get("information-flow") is InformationFlow
