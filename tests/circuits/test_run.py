"""The intervention, against a reimplementation by loops and against what follows from its definition."""

import numpy as np
import pytest
import torch
from many_subjects import (
    ARCHITECTURES,
    by_hand,
    means,
    of_logits,
    problem_of,
    random_pairs,
    some_edges,
    tiny,
    without,
)

from assay import AssayError
from assay.circuits import Circuit, ExactEdges
from assay.circuits import _run as run_module
from assay.circuits._run import run_circuit, traced
from assay.engine import Engine, collect, tensors


@pytest.fixture(scope="module")
def gpt2():
    return tiny("gpt2", scale=2.0)


@pytest.fixture(scope="module")
def pairs(gpt2):
    return random_pairs(gpt2, 4)


def references(model, split, ablation):
    """What senders write under an ablation, by hand."""
    tokens, valid = torch.from_numpy(split.tokens), torch.from_numpy(split.valid)
    if ablation == "counterfactual":
        return by_hand(model, torch.from_numpy(split.counterfactuals), None)[0]
    own, _ = by_hand(model, tokens, None)
    if ablation == "zero":
        return {name: torch.zeros_like(tensor) for name, tensor in own.items()}
    if ablation == "mean":
        return {name: tensor[valid].mean(dim=0).expand_as(tensor) for name, tensor in own.items()}
    found = {}
    for name, tensor in own.items():
        by_position = [tensor[valid[:, place], place].mean(dim=0) for place in range(tokens.shape[1])]
        found[name] = torch.stack(by_position).expand_as(tensor)
    return found


@pytest.mark.parametrize("ablation", ["counterfactual", "mean", "position", "zero"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.8, 1.0])
@torch.no_grad()
def test_a_run_is_what_loops_over_receivers_give(gpt2, pairs, ablation, share):
    problem = problem_of(gpt2, pairs, ablation)
    graph = problem.wiring.graph
    kept = graph.exists & (np.random.default_rng(3).random(graph.shape) < share)
    names = {(edge.sender, edge.receiver) for edge in graph.edges(kept)}
    _, expected = by_hand(gpt2.model, torch.from_numpy(pairs.tokens), names, references(gpt2.model, pairs, ablation))
    tokens, valid = tensors(pairs, gpt2.device)
    batch = next(iter(problem.batches()))
    reference = problem.reference.trace(problem.wiring, batch)
    # Its pairs are in another order.
    run = run_circuit(problem.engine, problem.wiring, kept, reference, batch.tokens, batch.valid)
    logits = torch.empty_like(expected)
    logits[batch.index] = problem.engine.logits(run, slice(None))
    assert torch.equal(batch.tokens, tokens[batch.index])
    real = valid.bool()
    assert (logits[real] - expected[real]).abs().max() < 1e-10 * expected.std()
    if 0 < share < 1:
        assert (gpt2(tokens, valid)[real] - expected[real]).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("start", [0, 3, 5])
def test_nothing_is_computed_where_both_inputs_are_the_same(gpt2, start):
    """Before the first difference every sender writes what it writes in the reference: no MLP is asked there."""
    generator = torch.Generator().manual_seed(4)
    tokens, others = (torch.randint(5, 90, (3, 8), generator=generator) for _ in range(2))
    others[:, :start] = tokens[:, :start]
    others[0, : start + 1] = tokens[0, : start + 1]  # one pair differs later than the others
    others[1, start] = 5 + (tokens[1, start] - 4) % 85
    engine = Engine(gpt2)
    wiring = run_module.wiring_of(engine)
    kept = wiring.graph.exists & (np.random.default_rng(3).random(wiring.graph.shape) < 0.5)
    for layer in range(2):  # both MLPs are heard, or they would not be run at all
        kept[wiring.graph.place(f"layer{layer}.mlp -> logits")] = True
    names = {(edge.sender, edge.receiver) for edge in wiring.graph.edges(kept)}
    _, expected = by_hand(gpt2.model, tokens, names, by_hand(gpt2.model, others, None)[0])
    valid, asked = torch.ones_like(tokens), []
    reference = traced(wiring, others, valid)
    handles = [
        layer.mlp.register_forward_hook(lambda _, inputs, __: asked.append(inputs[0].shape[1]))
        for layer in wiring.layers
    ]
    run = run_circuit(engine, wiring, kept, reference, tokens, valid)
    for handle in handles:
        handle.remove()
    assert asked == [8 - start] * 2
    assert (engine.logits(run, slice(None)) - expected).abs().max() < 1e-10 * expected.std()
    # And where they are the same altogether, the circuit is the subject.
    same = run_circuit(engine, wiring, kept, traced(wiring, tokens, valid), tokens, valid)
    assert (engine.logits(same, slice(None)) - gpt2(tokens)).abs().max() < 1e-10 * expected.std()


@torch.no_grad()
def test_the_trace_is_what_every_sender_writes(gpt2, pairs):
    engine = Engine(gpt2)
    wiring = run_module.wiring_of(engine)
    tokens, valid = tensors(pairs, gpt2.device)
    trace = traced(wiring, tokens, valid)
    wrote, _ = by_hand(gpt2.model, tokens, None)
    nothing = trace.senders_only(torch.zeros_like)
    more = run_module.differences(wiring, trace, nothing)
    real = valid.bool()
    for number, name in enumerate(wiring.graph.senders):
        assert (more[number][real] - wrote[name][real]).abs().max() < 1e-12
    some = [0, 2, wiring.graph.sender(0), wiring.graph.sender(1, 1), wiring.graph.sender(1, 3)]
    assert torch.equal(run_module.differences(wiring, trace, nothing, some), more[some])


ALL = list(ARCHITECTURES)


@pytest.fixture(scope="module", params=ALL)
def problem(request):
    subject = tiny(request.param)
    return problem_of(subject, random_pairs(subject, 3))


def test_all_edges_give_the_subject_and_none_the_counterfactual_run(problem):
    split, engine = problem.split, problem.engine
    tokens, valid = tensors(split, engine.subject.device)
    other = torch.from_numpy(split.counterfactuals)
    real, wiring = valid.bool(), problem.wiring
    reference = traced(wiring, other, valid)
    for kept, of in ((wiring.graph.exists, tokens), (np.zeros_like(wiring.graph.exists), other)):
        run = run_circuit(engine, wiring, kept, reference, tokens, valid)
        expected = engine.subject(of, valid)
        tolerance = 1e-12 if expected.dtype == torch.float64 else 1e-5
        assert (engine.logits(run, slice(None))[real] - expected[real]).abs().max() < tolerance * expected.std()


def test_baselines_are_m_of_the_subject_and_of_the_counterfactual(problem):
    split, subject = problem.split, problem.engine.subject
    tokens, valid = tensors(split, subject.device)
    found = [values.mean() for values in problem.baseline]
    for value, given in zip(found, (tokens, torch.from_numpy(split.counterfactuals)), strict=True):
        logits = subject(given, valid)
        assert value == pytest.approx(of_logits(problem, logits, logits) / len(split), abs=1e-6)


ROUNDED = ("deepseek_v3", "sarvam_mla")
"""What computes rotary positions and the choice of experts in float32 whatever its weights are."""


def tolerance(subject):
    return 1e-12 if subject.model.dtype == torch.float64 and subject.name not in ROUNDED else 1e-5


def test_a_run_without_one_edge_is_exact_patching(problem):
    scores = ExactEdges().scores(problem)
    whole = means(problem, problem.wiring.graph.exists)
    largest = np.nanmax(np.abs(scores))
    assert largest > 0.01
    for edge in some_edges(problem, 3):
        expected = means(problem, without(problem, edge)) - whole
        assert scores[edge] == pytest.approx(expected, abs=tolerance(problem.engine.subject))


def test_pruning_changes_nothing_under_the_counterfactual(problem):
    graph, rng, pruned_some = problem.wiring.graph, np.random.default_rng(2), 0
    # Where all heads of a layer hear of each other, few edges are on no path, unless there are few edges.
    share = 0.06 if graph.joint else 0.3
    for _ in range(4):
        kept = graph.exists & (rng.random(graph.shape) < share)
        pruned = graph.pruned(kept)
        pruned_some += int(kept.sum() > pruned.sum() > 0)
        assert means(problem, kept) == pytest.approx(means(problem, pruned), abs=tolerance(problem.engine.subject))
    assert pruned_some


def test_pruning_changes_something_under_zero_ablation(gpt2, pairs):
    problem = problem_of(gpt2, pairs, "zero")
    graph, rng, largest = problem.wiring.graph, np.random.default_rng(2), 0.0
    for _ in range(8):
        kept = graph.exists & (rng.random(graph.shape) < 0.3)
        largest = max(largest, abs(means(problem, kept) - means(problem, graph.pruned(kept))))
    assert largest > 0.01


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gptj"])
def test_pieces_of_a_batch_and_padding_change_no_answer(name, monkeypatch):
    subject = tiny(name)
    split = random_pairs(subject, 6)
    circuit = Circuit(["embeddings -> layer0.mlp", "layer0.mlp -> layer1.head1.queries", "layer0.head0 -> logits",
                       "layer1.head1 -> logits", "embeddings -> layer1.mlp", "layer1.mlp -> logits"])  # fmt: skip
    proxy = circuit.apply(subject)
    tokens, valid = tensors(split, subject.device)
    other = torch.from_numpy(split.counterfactuals)
    whole = proxy.on_pairs(tokens, other, valid)
    monkeypatch.setattr(run_module, "BUDGET", 1)
    assert (proxy.on_pairs(tokens, other, valid) - whole).abs().max() < 1e-12
    for row, length in enumerate(split.lengths):
        here = slice(row, row + 1), slice(0, length)
        alone = proxy.on_pairs(tokens[here], other[here])
        assert (alone[0] - whole[row, :length]).abs().max() < 1e-12


def test_the_whole_graph_explains_everything(gpt2):
    """Largest and smallest circuits through fit and apply: f = 1, and 0 where nothing is kept."""
    split = random_pairs(gpt2, 40, seed=3)
    split.foils[..., 1] = -1
    samples = collect(Engine(gpt2), split, ())
    size = run_module.wiring_of(Engine(gpt2)).graph.size
    recipe = Circuit(edges=size, method="eap")
    tokens, valid = tensors(split, gpt2.device)
    other = torch.from_numpy(split.counterfactuals)
    # Random pairs have no effect that is clear of 0: the answer is what the subject likes best there, the foil there.
    place = split.lengths - 1
    rows = np.arange(len(split))
    split.kinds[:] = -1
    split.answers[:] = -1
    split.foils[:] = -1
    split.kinds[rows, place] = 0
    gain = (gpt2(tokens, valid) - gpt2(other, valid))[rows, place]
    split.answers[rows, place] = gain.argmax(dim=-1).numpy()
    split.foils[rows, place, 0] = gain.argmin(dim=-1).numpy()
    fitted = recipe.fit(samples)
    assert fitted.pruned_ == size
    subject, nothing = fitted.baseline_
    problem = problem_of(gpt2, split)
    whole = of_logits(problem, fitted.apply(gpt2).on_pairs(tokens, other, valid), gpt2(tokens, valid)) / len(split)
    none = of_logits(problem, recipe.ablated().apply(gpt2).on_pairs(tokens, other, valid), whole_logits(gpt2, split))
    assert (whole - nothing) / (subject - nothing) == pytest.approx(1, abs=1e-9)
    assert (none / len(split) - nothing) / (subject - nothing) == pytest.approx(0, abs=1e-9)
    assert subject - nothing > 1


def whole_logits(subject, split):
    return subject(*tensors(split, subject.device))


def test_position_means_are_refused_beyond_what_they_reach(gpt2):
    short = random_pairs(gpt2, 6, positions=6)
    circuit = Circuit(["embeddings -> logits"], ablation="position").fit(collect(Engine(gpt2), short, ()))
    proxy = circuit.apply(gpt2)
    tokens = torch.from_numpy(random_pairs(gpt2, 2, positions=8).tokens)
    assert torch.isfinite(proxy(tokens[:, :6])).all()
    with pytest.raises(AssayError, match="position"):
        proxy(tokens)


def test_counterfactual_ablation_needs_counterfactuals(gpt2):
    proxy = Circuit(["embeddings -> logits"]).apply(gpt2)
    with pytest.raises(AssayError, match="have no counterfactuals"):
        proxy(torch.zeros((1, 4), dtype=torch.long))
