"""The control of a circuit: of the same shape, and of other heads."""

import numpy as np
import pytest
from many_subjects import random_pairs, tiny
from planted_task import FOUND_ON_TRAIN, Induction

from assay import AssayError
from assay.circuits import AllAblated, Circuit, Graph, RandomCircuit
from assay.circuits._circuit import LEAST_IMAGES
from assay.circuits._graph import images, shuffled
from assay.engine import Engine, collect

ONE_HEAD = ["embeddings -> layer1.head2.values", "layer1.head2 -> logits"]
NO_HEAD = ["embeddings -> layer0.mlp", "layer0.mlp -> layer1.mlp", "layer1.mlp -> logits"]
TWO_HEADS = ["embeddings -> layer0.head0.values", "layer0.head0 -> layer1.head2.queries",
             "embeddings -> layer1.head2.values", "layer1.head2 -> logits"]  # fmt: skip


@pytest.mark.parametrize(
    ("graph", "edges", "count"),
    [
        (Graph(2, 4, 4), NO_HEAD, 1),
        (Graph(2, 4, 4), ONE_HEAD, 4),
        (Graph(2, 4, 4), TWO_HEADS, 16),
        (Graph(2, 4, 2), ["embeddings -> layer1.group1.values", "layer1.head2 -> logits"], 4),
        (Graph(2, 4, 2), ["embeddings -> layer1.group1.values"], 2),
        (Graph(1, 6, 3), ["layer0.head0 -> logits", "layer0.head1 -> logits"], 3),
        (Graph(1, 6, 3), ["layer0.head0 -> logits", "layer0.head2 -> logits"], 12),
        (Graph(2, 1, 1), ["embeddings -> layer0.head0.keys"], 1),
    ],
)
def test_images_are_counted_as_they_are_different(graph, edges, count):
    kept = graph.matrix(edges)
    assert images(graph, kept, 1_000) == count
    assert images(graph, kept, 3) == min(count, 3)
    rng = np.random.default_rng(0)
    drawn = {shuffled(graph, kept, rng).tobytes() for _ in range(40 * count)}
    assert len(drawn) == count


@pytest.fixture(scope="module")
def subject():
    return tiny("gpt2")


@pytest.fixture(scope="module")
def samples(subject):
    return collect(Engine(subject), random_pairs(subject, 5), ())


def test_a_circuit_with_many_images_is_controlled_by_one(subject, samples):
    edges = [*TWO_HEADS, "embeddings -> layer0.head1.values", "layer0.head1 -> layer1.head2.values"]
    circuit = Circuit(edges)
    graph = circuit.fit(samples).graph_
    assert images(graph, circuit.kept_, 100) >= LEAST_IMAGES
    seen = set()
    for number in range(6):
        control = RandomCircuit(circuit).redrawn(number).fit(samples)
        seen.add(control.kept_.tobytes())
        assert control.kept_.sum() == len(edges)
        assert graph.pruned(control.kept_).sum() == graph.pruned(circuit.kept_).sum()
        again = RandomCircuit(circuit).redrawn(number).fit(samples)
        assert np.array_equal(again.kept_, control.kept_)
    assert len(seen) > 3
    assert circuit.kept_.tobytes() not in seen


@pytest.mark.parametrize("edges", [NO_HEAD, ONE_HEAD, TWO_HEADS], ids=["no head", "one head", "two heads"])
def test_a_circuit_with_few_images_is_controlled_by_random_paths(subject, samples, edges):
    """An image of a circuit of MLPs alone is that circuit: no control."""
    circuit = Circuit(edges)
    graph = circuit.fit(samples).graph_
    others = 0
    for seed in range(8):
        control = RandomCircuit(circuit, seed).fit(samples)
        assert np.array_equal(graph.pruned(control.kept_), control.kept_)
        assert len(edges) <= control.kept_.sum() <= len(edges) + 3
        others += not np.array_equal(control.kept_, circuit.kept_)
    assert others >= 6


def test_a_control_is_that_of_its_circuit():
    circuit = Circuit(10, method="eap", ablation="mean", seed=4)
    control, ablated = circuit.control(), circuit.ablated()
    assert (control.of, control.seed) == (circuit, 0)
    assert isinstance(ablated, AllAblated)
    assert (ablated.ablation, ablated.seed) == ("mean", 4)
    assert control.control() is None
    assert ablated.control() is None
    assert control.learns
    assert ablated.learns
    assert not Circuit(list(FOUND_ON_TRAIN)).control().learns


def test_controls_before_fit_are_refused(subject):
    with pytest.raises(AssayError, match="has not been fitted"):
        RandomCircuit(Circuit(10)).apply(subject)
    with pytest.raises(AssayError, match="has not been fitted"):
        AllAblated("mean").apply(subject)
    assert not AllAblated().apply(subject).kept.any()
    assert not AllAblated("zero").apply(subject).kept.any()


def test_refusals_of_a_control_are_those_of_its_circuit():
    task = Induction()
    with pytest.raises(AssayError, match="edges must be 1 to 46"):
        RandomCircuit(Circuit(47)).check(task.subject(), [task.split("train", 40)])
