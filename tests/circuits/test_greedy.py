"""Greedy pruning: against itself written out, and what it does about redundancy."""

import numpy as np
import pytest
import torch
from naive import Naive
from small_subjects import assert_batches_do_not_matter, pairs, problem_of, subject_of
from transformers import GPT2Config, GPT2LMHeadModel

from assay import AssayError
from assay.circuits import Circuit, ExactEdges, GreedyEdges, Problem, discoveries
from assay.engine import Samples
from assay.subjects import Subject
from assay.tasks import Split


def naive_greedy(problem: Problem, threshold: float) -> np.ndarray:
    """The algorithm on every edge, whether on a path or not, each circuit computed edge by edge."""
    naive, graph = Naive(problem), problem.wiring.graph
    found = np.where(graph.exists, 0.0, np.nan)
    ablated = torch.zeros(graph.shape, dtype=torch.float64)
    with torch.no_grad():
        whole, now = naive.values(ablated, problem.measure), 0.0
        for receiver in reversed(range(graph.shape[1])):
            for sender in reversed(range(graph.heard[receiver])):
                ablated[sender, receiver] = 1
                then = float((naive.values(ablated, problem.measure) - whole).abs().mean())
                found[sender, receiver] = max(0.0, then - now)
                if then - now < threshold:
                    now = then
                else:
                    ablated[sender, receiver] = 0
    return found


@pytest.mark.parametrize(("measure", "threshold"), [("kl", 0.02), ("logit_difference", 0.1)])
def test_scores_are_those_of_the_algorithm_written_out(measure, threshold) -> None:
    problem = problem_of(subject_of("gpt2"), pairs(3, length=5), measure=measure)
    method = GreedyEdges(threshold)
    scores = method.scores(problem)
    np.testing.assert_allclose(scores, naive_greedy(problem, threshold), atol=1e-11)
    kept = method.kept(scores)
    assert 0 < kept.sum() < problem.wiring.graph.size
    assert scores[kept].min() >= threshold > scores[problem.wiring.graph.exists & ~kept].max()


def or_pair() -> tuple[Subject, Split]:
    """A GPT-2 of one layer in which either of two heads is enough.

    Odd tokens carry a feature, even ones its opposite; both heads copy it to one direction u, and the MLP gives
    relu(u + 2) - relu(u): 2 where a head or both have written 1, 0 where both have written -1. The logit of token 1 is
    five times that, all others are 0. The norms are the identity: epsilon is 1e12, weights are 1e6, and every direction
    adds up to 0.
    """
    config = GPT2Config(
        n_embd=8,
        n_layer=1,
        n_head=2,
        n_inner=2,
        vocab_size=16,
        n_positions=2,
        layer_norm_epsilon=1e12,
        activation_function="relu",
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).double().eval()
    directions = torch.zeros(3, 8, dtype=torch.float64)
    for place in range(3):
        directions[place, 2 * place], directions[place, 2 * place + 1] = 0.5**0.5, -(0.5**0.5)
    feature, u, out = directions
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1e6 if "ln_" in name and name.endswith("weight") else 0.0)
        block = model.transformer.h[0]
        model.transformer.wte.weight[1::2] = feature
        model.transformer.wte.weight[::2] = -feature
        for head in range(2):
            block.attn.c_attn.weight[:, 16 + 4 * head] = feature
            block.attn.c_proj.weight[4 * head] = u
        block.mlp.c_fc.weight[:] = torch.stack((u, u), dim=1)
        block.mlp.c_fc.bias[0] = 2
        block.mlp.c_proj.weight[:] = torch.stack((out, -out))
        model.lm_head.weight[1] = 5 * out
    ones = np.ones((30, 1), dtype=np.int64)
    split = Split(
        "train",
        "train",
        "one token",
        ones,
        ones[:, 0],
        0 * ones,
        counterfactuals=2 * ones,
        answers=ones,
        foils=0 * ones,
    )
    return Subject(model, None, "or-pair", seed=0), split


def test_of_two_edges_either_of_which_is_enough_one_is_found() -> None:
    subject, split = or_pair()
    problem = problem_of(subject, split)
    graph = problem.wiring.graph
    exact = ExactEdges().scores(problem)
    both = [graph.place(f"layer0.head{head} -> layer0.mlp") for head in range(2)]
    assert np.abs([exact[place] for place in both]).max() < 1e-6
    method = GreedyEdges()
    kept = method.kept(method.scores(problem))
    assert {str(edge) for edge in graph.edges(kept)} == {
        "embeddings -> layer0.head0.values",
        "layer0.head0 -> layer0.mlp",
        "layer0.mlp -> logits",
    }


def test_a_circuit_with_as_many_edges_as_were_kept_is_the_greedy_one() -> None:
    subject, split = or_pair()
    circuit = Circuit(edges=3, method=GreedyEdges(), measure="kl").fit(Samples((), subject=subject, split=split))
    assert circuit.pruned_ == 3
    assert int(GreedyEdges().kept(circuit.scores_).sum()) == 3


def test_neither_batches_nor_the_order_of_pairs_matter(monkeypatch) -> None:
    problem = problem_of(subject_of("neox"), pairs(2, length=4), ablation="mean", measure="kl")
    assert_batches_do_not_matter(GreedyEdges(0.05), problem, monkeypatch)


def test_a_threshold_above_everything_keeps_nothing() -> None:
    problem = problem_of(subject_of("llama"), pairs(2, length=4), measure="kl")
    assert not GreedyEdges(1e6).kept(GreedyEdges(1e6).scores(problem)).any()


@pytest.mark.parametrize("threshold", [0, -1.0, float("inf"), float("nan"), True, "0.1"])
def test_thresholds_that_are_none(threshold) -> None:
    method = GreedyEdges()
    method.threshold = threshold
    with pytest.raises(AssayError, match="threshold="):
        method.check(problem_of(subject_of("gpt2"), pairs(2)))


def test_it_is_known_by_name() -> None:
    assert discoveries.get("greedy") is GreedyEdges
