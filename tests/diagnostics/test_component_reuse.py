"""Reuse of components: by hand, by drawing, and on a model whose two tasks share heads as planted."""

import numpy as np
import pytest

from assay import AssayError
from assay.circuits import Circuit, ExactNodes, Problem, Reference
from assay.diagnostics import component_importances, component_reuse
from assay.engine import Engine, collect
from assay.testing import planted
from assay.testing._planted_circuits import GAIN


def importances(chosen, shape=(3, 4)):
    found = np.zeros(shape)
    for place, number in enumerate(chosen):
        found[number] = 1 + place
    return found


def test_counts_by_hand():
    one = importances([(0, 0), (0, 1), (2, 3)])
    other = importances([(0, 0), (2, 3), (2, 2), (1, 0)])
    found = component_reuse({"a": one, "b": -other}, sizes=(2, 3)).between("b", "a", 3)
    # Sizes in a are 1, 2, 3, in b 1 to 4: the three largest of b leave out (0, 0).
    assert (found.of_first, found.of_second, found.shared, found.components) == (3, 3, 1, 12)
    assert found.share == pytest.approx(1 / 3)
    assert found.jaccard == pytest.approx(1 / 5)
    assert found.expected == pytest.approx(9 / 12)
    assert found.layered_expected == pytest.approx((2 * 0 + 0 * 1 + 1 * 2) / 4)
    # Shares of a: 1/6, 1/3 and 1/2; of b 1/10, 2/10 (2, 3), 3/10 and 4/10.
    assert found.weighted == pytest.approx((1 / 10 + 2 / 10) / (1 / 6 + 1 / 3 + 1 / 2 + 3 / 10 + 4 / 10))
    assert found.ceiling is None
    assert "1 of 3 and 3 components shared" in str(found)


def test_what_does_not_matter_is_never_shared():
    found = component_reuse({"a": importances([(0, 0)]), "b": importances([(1, 1)])}, sizes=(12,)).pairs[0]
    assert (found.of_first, found.of_second, found.shared, found.jaccard, found.p) == (1, 1, 0, 0, 1)
    by_share = component_reuse({"a": importances([(0, 0), (0, 1)]), "b": importances([(0, 1)])}, least=0.6).pairs[0]
    assert (by_share.of_first, by_share.size, by_share.jaccard) == (1, None, 1)


def test_permuted_labels_give_both_nulls():
    rng = np.random.default_rng(0)
    one, other = rng.random((4, 6)), rng.random((4, 6))
    drawn = {"evenly": [], "layered": []}
    for _ in range(400):
        evenly = rng.permutation(other.ravel()).reshape(other.shape)
        drawn["evenly"].append(component_reuse({"a": one, "b": evenly}, sizes=(8,)).pairs[0].shared)
        layered = rng.permuted(other, axis=1)
        drawn["layered"].append(component_reuse({"a": one, "b": layered}, sizes=(8,)).pairs[0].shared)
    found = component_reuse({"a": one, "b": other}, sizes=(8,)).pairs[0]
    for name, expected, p in (
        ("evenly", found.expected, found.p),
        ("layered", found.layered_expected, found.layered_p),
    ):
        shared = np.array(drawn[name])
        assert abs(shared.mean() - expected) < 3 * shared.std() / len(shared) ** 0.5
        assert (shared >= found.shared).mean() == pytest.approx(p, abs=0.05)


def test_the_ceiling_is_what_discoveries_of_one_task_share():
    a, b = importances([(0, 0), (0, 1)]), importances([(0, 0), (1, 1)])
    again = {"a": [a, a, b], "b": [b, b]}
    found = component_reuse({"a": a, "b": b}, sizes=(2,), resampled=again).pairs[0]
    assert found.ceiling == pytest.approx(((1 + 1 / 3 + 1 / 3) / 3 + 1) / 2)


def problem(known):
    engine = Engine(known.subject)
    return Problem(engine, known.pairs, Reference.fitted(engine, "counterfactual", known.pairs), "logit_difference")


@pytest.mark.parametrize(("shared", "private"), [(2, 1), (1, 3), (0, 2), (3, 0)], ids=["2-1", "1-3", "0-2", "3-0"])
def test_planted_heads_are_shared_exactly(shared, private):
    tasks = dict(zip(("first", "second"), planted.two_tasks(shared, private, pairs=8, seed=shared), strict=True))
    problems = {name: problem(known) for name, known in tasks.items()}
    used = shared + private
    measured = {}
    for name, asked in problems.items():
        assert asked.means == pytest.approx((GAIN, -GAIN))
        graph = asked.wiring.graph
        sizes = np.nansum(ExactNodes().scores(asked), axis=1)[1:].reshape(graph.layers, graph.heads + 1)
        assert np.sort(np.abs(sizes), axis=None)[-used:] == pytest.approx(2 * GAIN / used)
        measured[name] = np.where(np.abs(sizes) > 1e-9, sizes, 0)
    found = component_reuse(measured, sizes=(used,), problems=problems)
    (pair,) = found.pairs
    assert (pair.shared, pair.of_first, pair.of_second) == (shared, used, used)
    assert pair.share == pytest.approx(shared / used)
    assert pair.jaccard == pytest.approx(shared / (shared + 2 * private))
    assert pair.weighted == pytest.approx(shared / (shared + 2 * private))
    faithful = found.faithfulness[used]
    assert faithful["first", "first"] == pytest.approx(1)
    assert faithful["first", "second"] == pytest.approx(shared / used)
    assert faithful["second", "first"] == pytest.approx(shared / used)


def test_importances_are_those_of_a_fitted_circuit():
    known, _ = planted.two_tasks(1, 1, pairs=30)
    circuit = Circuit(edges=4, method="eap").fit(collect(Engine(known.subject), known.pairs, ()))
    found = component_importances(circuit)
    graph = circuit.graph_
    assert found.shape == (graph.layers, graph.heads + 1)
    true = {edge.split(" ->")[0] for edge in known.edges if edge.startswith("layer")}
    names = np.array(graph.senders[1:]).reshape(found.shape)
    assert set(names[found > 1e-6]) == true
    with pytest.raises(AssayError, match="has no scores"):
        component_importances(Circuit(edges=["embeddings -> logits"]))


ONE, OTHER = importances([(0, 0)]), importances([(1, 1)])


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        ({"a": ONE}, {"sizes": (1,)}, "two or more"),
        ({"a": ONE, "b": OTHER[:2]}, {"sizes": (1,)}, "of one model"),
        ({"a": ONE, "b": 0 * OTHER}, {"sizes": (1,)}, "all 0"),
        ({"a": ONE, "b": OTHER}, {}, "give sizes, or least"),
        ({"a": ONE, "b": OTHER}, {"sizes": (1,), "least": 0.1}, "give sizes, or least"),
        ({"a": ONE, "b": OTHER}, {"sizes": (13,)}, "1 to 12"),
        ({"a": ONE, "b": OTHER}, {"least": 1.5}, "at most 1"),
        ({"a": ONE, "b": OTHER}, {"sizes": (1,), "resampled": {"a": [ONE, ONE]}}, "each two or more"),
        ({"a": ONE, "b": OTHER}, {"sizes": (1,), "resampled": {"a": [ONE], "b": [ONE]}}, "at least two"),
    ],
    ids=["one", "shapes", "zeros", "no-size", "both", "large", "least", "tasks", "resamples"],
)  # fmt: skip
def test_wrong_calls_are_refused(given, options, words):
    with pytest.raises(AssayError, match=words):
        component_reuse(given, **options)


def test_problems_of_other_components_are_refused():
    known, _ = planted.two_tasks(1, 1, pairs=4)
    with pytest.raises(AssayError, match="do not fit"):
        component_reuse(
            {"a": importances([(0, 0)], (2, 9)), "b": importances([(0, 0)], (2, 9))}, sizes=(1,),
            problems={"a": problem(known)},
        )  # fmt: skip
    with pytest.raises(AssayError, match="there are 0 such pairs"):
        component_reuse({"a": ONE, "b": OTHER}, sizes=(1,)).between("a", "c")
    with pytest.raises(AssayError, match="give a task a head"):
        planted.two_tasks(0, 0)
