"""Discovery where the circuit is known: planted by hand, saturated, redundant, and not there at all."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from many_subjects import means, problem_of
from transformers import GPT2Config, GPT2LMHeadModel

from assay import AssayError
from assay.circuits import (
    Circuit,
    EdgeAttribution,
    ExactEdges,
    ExactNodes,
    IntegratedEdgeAttribution,
    Problem,
    measured,
)
from assay.circuits._circuit import random_paths
from assay.engine import Engine, collect
from assay.subjects import Subject
from assay.tasks import Split
from assay.testing import planted

GAIN = 10.0

METHODS = {
    "exact": ExactEdges(),
    "eap": EdgeAttribution(),
    "eap-ig": IntegratedEdgeAttribution(),
    "eap-ig-gauss": IntegratedEdgeAttribution(10, "gauss"),
}


def problem(known: planted.PlantedCircuit) -> Problem:
    return problem_of(known.subject, known.pairs)


def best(scores: np.ndarray, graph, count: int) -> tuple[set[str], float]:
    """The edges with the largest scores, and the largest score of another."""
    sizes = np.where(graph.exists, np.abs(scores), -1)
    order = np.argsort(-sizes, axis=None)
    places = [np.unravel_index(place, scores.shape) for place in order[: count + 1]]
    names = {f"{graph.senders[s]} -> {graph.receivers[r]}" for s, r in places[:count]}
    return names, float(sizes[places[count]])


@pytest.mark.parametrize("sharpness", [1.0, 3.0])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_planted_edges_alone(method, sharpness):
    known = planted.induction(sharpness)
    graph = problem(known).wiring.graph
    assert (graph.size, len(known.edges)) == (46, 5)
    scores = METHODS[method].scores(problem(known))
    found, next_best = best(scores, graph, 5)
    assert found == set(known.edges)
    assert next_best < 1e-12
    assert min(abs(scores[graph.place(edge)]) for edge in known.edges) > 0.1
    assert all(scores[graph.place(edge)] < 0 for edge in known.edges)


def test_exact_scores_are_those_of_a_calculation():
    """Attention to what was found is e^b / (e^b + 9); an edge of a third of the pairs swaps answer and foil there."""
    known = planted.induction(3.0)
    graph = problem(known).wiring.graph
    m = 10 * (np.exp(3) - 1) / (np.exp(3) + 9)
    assert problem(known).baseline[0] == pytest.approx(np.full(60, m), abs=1e-9)
    assert problem(known).baseline[1] == pytest.approx(np.full(60, -m), abs=1e-9)
    scores = ExactEdges().scores(problem(known))
    for edge in known.edges:
        assert scores[graph.place(edge)] == pytest.approx(-2 * m * (1 if edge.endswith("logits") else 1 / 3), abs=1e-9)


def test_the_planted_circuit_is_the_subject_on_its_pairs():
    known = planted.induction(3.0)
    here = problem(known)
    kept = here.wiring.graph.matrix(known.edges)
    assert np.array_equal(here.wiring.graph.pruned(kept), kept)
    m, nothing = here.baseline[0].mean(), here.baseline[1].mean()
    assert (means(here, kept) - nothing) / (m - nothing) == pytest.approx(1, abs=1e-9)
    for edge in known.edges:  # and none of them can go
        fewer = here.wiring.graph.matrix(set(known.edges) - {edge})
        assert (means(here, fewer) - nothing) / (m - nothing) < 0.7
    proxy = Circuit(list(known.edges)).apply(known.subject)
    tokens = torch.from_numpy(known.pairs.tokens)
    logits = proxy.on_pairs(tokens, torch.from_numpy(known.pairs.counterfactuals))
    answers = [known.pairs.answers[:, -1], known.pairs.foils[:, -1]]
    for token in answers:
        rows = np.arange(len(tokens))
        assert (logits - known.subject(tokens))[rows, -1, token].abs().max() < 1e-9


PARTS = {
    "first": {"embeddings -> layer0.head0.values", "layer0.head0 -> layer1.head0.keys", "layer1.head0 -> logits"},
    "answers": {"embeddings -> layer1.head0.values", "layer1.head0 -> logits"},
    "last": {"embeddings -> layer1.head0.queries", "layer1.head0 -> logits"},
}


@pytest.mark.parametrize("part", PARTS)
def test_a_circuit_is_of_the_pairs_and_not_of_the_task(part):
    known = planted.induction(3.0, changed=(part,))
    assert set(known.edges) == PARTS[part]
    for method in (ExactEdges(), EdgeAttribution()):
        found, next_best = best(method.scores(problem(known)), problem(known).wiring.graph, len(known.edges))
        assert found == PARTS[part]
        assert next_best < 1e-12


def test_attribution_at_the_subject_misses_what_is_saturated():
    known = planted.induction(20.0)
    graph = problem(known).wiring.graph
    place = graph.place("layer0.head0 -> layer1.head0.keys")
    exact, plain = ExactEdges().scores(problem(known)), EdgeAttribution().scores(problem(known))
    integrated = IntegratedEdgeAttribution(10, "left").scores(problem(known))
    assert exact[place] == pytest.approx(-20 / 3, abs=1e-4)
    assert 1e-8 < -plain[place] < 1e-5
    assert integrated[place] == pytest.approx(-20 / 3, rel=0.2)


def test_with_a_weak_edge_beside_attribution_keeps_the_wrong_five():
    known = planted.induction(20.0, weak=0.015)
    here, five = problem(known), set(known.edges) - {"embeddings -> logits"}
    graph = here.wiring.graph
    assert len(known.edges) == 6
    for method in (ExactEdges(), IntegratedEdgeAttribution()):
        scores = method.scores(here)
        assert best(scores, graph, 5)[0] == five
        assert scores[graph.place("embeddings -> logits")] == pytest.approx(-0.01, abs=1e-9)
    found, _ = best(EdgeAttribution().scores(here), graph, 5)
    assert "embeddings -> logits" in found
    assert five - found
    nothing, m = here.baseline[1].mean(), here.baseline[0].mean()
    assert (means(here, graph.matrix(found)) - nothing) / (m - nothing) == pytest.approx(2 / 3, abs=0.01)
    assert (means(here, graph.matrix(five)) - nothing) / (m - nothing) > 0.999


def test_what_is_redundant_has_no_effect_alone():
    known = planted.either()
    here = problem(known)
    graph = here.wiring.graph
    assert (graph.size, len(known.edges)) == (13, 5)
    last = graph.place("layer0.mlp -> logits")
    doubled = [edge for edge in known.edges if edge != "layer0.mlp -> logits"]
    for method in (ExactEdges(), EdgeAttribution()):
        scores = method.scores(here)
        assert scores[last] == pytest.approx(-GAIN, abs=1e-9)
        assert max(abs(scores[graph.place(edge)]) for edge in doubled) < 1e-9
    scores = IntegratedEdgeAttribution(40, "midpoint").scores(here)
    for edge in doubled:  # the line passes where both count: half each
        assert scores[graph.place(edge)] == pytest.approx(-GAIN / 2, abs=1e-9)
    m, nothing = here.baseline[0].mean(), here.baseline[1].mean()
    assert (m, nothing) == (pytest.approx(GAIN, abs=1e-9), pytest.approx(0, abs=1e-9))
    whole = graph.exists.copy()
    for kind in ("values", "mlp"):
        both = whole.copy()
        for head in range(2):
            name = f"layer0.head{head}"
            both[graph.place(f"embeddings -> {name}.values" if kind == "values" else f"{name} -> layer0.mlp")] = False
        assert means(here, both) == pytest.approx(0, abs=1e-9)


def test_nodes_of_the_planted_circuit():
    """All edges out of a sender at once: the two heads that matter and the embeddings have an effect."""
    known = planted.induction(3.0)
    graph = problem(known).wiring.graph
    totals = np.nansum(ExactNodes().scores(problem(known)), axis=1)
    m = problem(known).baseline[0].mean()
    named = dict(zip(graph.senders, totals, strict=True))
    assert named.pop("embeddings") == pytest.approx(-2 * m, abs=1e-9)
    assert named.pop("layer1.head0") == pytest.approx(-2 * m, abs=1e-9)
    assert named.pop("layer0.head0") == pytest.approx(-2 * m / 3, abs=1e-9)
    assert max(map(abs, named.values())) < 1e-12


def untrained(known: planted.PlantedCircuit, seed: int) -> Subject:
    config = GPT2Config.from_dict(known.subject.model.config.to_dict() | {"layer_norm_epsilon": 1e-5})
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.dim() > 1 else 1)
    return Subject(model, None, "untrained")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_without_a_mechanism_there_is_nothing_to_explain(seed):
    """An untrained model prefers answers to foils no more on the pairs than on their counterfactuals."""
    known = planted.induction(3.0, pairs=40)
    copy = untrained(known, seed)
    with pytest.raises(AssayError, match="nothing to explain on split 'train'"):
        Circuit(8, method="eap").fit(collect(Engine(copy), known.pairs, ()))


def swapped(split: Split, rows: np.ndarray) -> Split:
    """The pairs with answer and foil in each other's place in some rows."""
    answers, foils = split.answers.copy(), split.foils.copy()
    answers[rows], foils[rows] = split.foils[rows], split.answers[rows]
    return replace(split, answers=answers, foils=foils)


def test_labels_by_chance_are_seldom_taken_for_an_effect():
    """A model with a mechanism, and which token is called right is drawn: m is 0 in the mean, at a level of 99%."""
    known = planted.induction(3.0, pairs=40)
    engine = Engine(known.subject)
    refused = []
    for seed in range(40):
        rows = np.random.default_rng(seed).random(40) < 0.5
        try:
            Circuit(5, method="eap").fit(collect(engine, swapped(known.pairs, rows), ()))
        except AssayError as error:
            refused.append(str(error))
    assert len(refused) >= 37, "more than chance is taken: of 40 draws 0.4 are expected"
    assert all("nothing to explain on split 'train'" in why for why in refused)
    Circuit(5, method="eap").fit(collect(engine, known.pairs, ()))


def beaten(subject: Subject, seed: int) -> tuple[float, float]:
    """The share of random circuits that a discovered one beats on fresh pairs, and its m less their mean.

    Discovered are the twelve edges that raise m most, by exact scores; the random ones have as many on paths.
    """
    scores = ExactEdges().scores(problem_of(subject, planted.induction(3.0, pairs=40, seed=seed).pairs))
    here = problem_of(subject, planted.induction(3.0, pairs=40, seed=100 + seed).pairs)
    graph = here.wiring.graph
    kept = np.zeros(graph.shape, dtype=bool)
    kept[np.unravel_index(np.argsort(scores, axis=None)[:12], graph.shape)] = True  # NaN comes last
    size = int(graph.pruned(kept).sum())
    assert size
    rng = np.random.default_rng(seed)
    random = measured(here, [random_paths(graph, size, rng) for _ in range(20)]).mean(axis=1)
    m = means(here, kept)
    return float((random < m).mean()), float(m - random.mean())


def test_what_is_found_where_nothing_is_is_one_random_circuit_among_others():
    """Over untrained models, the rank of what was found among random circuits is as often low as high."""
    known = planted.induction(3.0, pairs=40)
    ranks = [beaten(untrained(known, seed), seed)[0] for seed in range(12)]
    # Ranks are uniform where nothing is: the mean of twelve has a standard error of 0.084.
    assert abs(np.mean(ranks) - 0.5) < 2.5 * 0.084
    assert min(ranks) < 0.4
    assert max(ranks) > 0.6


def test_by_the_same_rank_a_mechanism_is_found_every_time():
    known = planted.induction(3.0, pairs=40)
    for seed in range(2):
        rank, more = beaten(known.subject, seed)
        assert rank == 1
        assert more > 5


@pytest.mark.parametrize("options", [{"changed": ()}, {"pairs": 0}])
def test_what_cannot_be_planted_is_refused(options):
    with pytest.raises(AssayError, match="give at least one"):
        planted.induction(**options)
    with pytest.raises(AssayError, match="give at least one"):
        planted.either(pairs=0)


def test_pairs_are_as_described():
    known = planted.induction(pairs=9, seed=3)
    split = known.pairs
    differing = split.tokens != split.counterfactuals
    assert differing.sum(axis=1).tolist() == [2, 2, 1] * 3
    for row in range(9):
        tokens = split.tokens[row]
        found = int(np.flatnonzero(tokens[:-1] == tokens[-1])[0])
        assert tokens[found + 1] == split.answers[row, -1]
        other = split.counterfactuals[row]
        assert other[int(np.flatnonzero(other[:-1] == other[-1])[0]) + 1] == split.foils[row, -1]
        assert (known.subject(torch.from_numpy(tokens)[None])[0, -1].argmax()) == split.answers[row, -1]
    assert np.array_equal(planted.induction(pairs=9, seed=3).pairs.tokens, split.tokens)
    assert not np.array_equal(planted.induction(pairs=9, seed=4).pairs.tokens, split.tokens)
