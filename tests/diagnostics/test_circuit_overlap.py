import numpy as np
import pytest
from scipy import stats

from assay import AssayError
from assay.circuits import Circuit, Graph
from assay.diagnostics import overlap, stability
from assay.engine import Engine, collect
from small_decoder import fitted, pairs_of

GRAPH = Graph(layers=3, heads=2, groups=2)


def circuit_of(kept, scores=None, graph=GRAPH):
    circuit = Circuit(edges=["embeddings -> logits"])
    circuit.graph_, circuit.kept_, circuit.scores_ = graph, kept, scores
    return circuit


def on_paths(rng, size):
    """As many edges, all on paths."""
    while True:
        kept = np.zeros(GRAPH.shape, dtype=bool)
        places = rng.permutation(np.argwhere(GRAPH.exists))
        for count in range(size, len(places)):
            kept[tuple(places[:count].T)] = True
            if GRAPH.pruned(kept).sum() >= size:
                break
        found = GRAPH.pruned(kept)
        if found.sum() < 2 * size:
            return found


def test_equal_and_disjoint_circuits():
    one = GRAPH.matrix(["embeddings -> layer0.mlp", "layer0.mlp -> logits"])
    other = GRAPH.matrix(["embeddings -> logits"])
    same = overlap(circuit_of(one), circuit_of(one))
    assert (same.shared, same.share, same.jaccard) == (2, 1, 1)
    assert same.p == pytest.approx(stats.hypergeom.sf(1, GRAPH.size, 2, 2))
    apart = overlap(circuit_of(one), circuit_of(other))
    assert (apart.shared, apart.share, apart.jaccard, apart.p, apart.layered_p) == (0, 0, 0, 1, 1)
    assert "0 of 2 and 1 edges shared" in str(apart)


def test_edges_off_paths_do_not_count():
    loose = GRAPH.matrix(["embeddings -> logits", "layer0.mlp -> logits", "embeddings -> layer1.mlp"])
    found = overlap(circuit_of(loose), circuit_of(GRAPH.matrix(["embeddings -> logits"])))
    assert (found.first, found.second, found.jaccard) == (1, 1, 1)


def test_both_nulls_are_those_of_drawing():
    rng = np.random.default_rng(0)
    one, other = on_paths(rng, 40), on_paths(rng, 50)
    found = overlap(circuit_of(one), circuit_of(other))
    of_senders = np.array([-1, *np.repeat(range(3), 3)])
    of_receivers = np.array([*np.repeat(range(3), 7), 3])
    cells = (of_senders[:, None] * 10 + of_receivers)[GRAPH.exists]
    first, second = one[GRAPH.exists], other[GRAPH.exists]
    draws = 4_000
    evenly, layered = np.zeros(draws), np.zeros(draws)
    for draw in range(draws):
        evenly[draw] = (first & rng.permutation(second)).sum()
        moved = second.copy()
        for cell in np.unique(cells):
            moved[cells == cell] = rng.permutation(second[cells == cell])
        layered[draw] = (first & moved).sum()
    for drawn, expected, p in (
        (evenly, found.expected, found.p),
        (layered, found.layered_expected, found.layered_p),
    ):
        assert expected == pytest.approx(drawn.mean(), abs=4 * drawn.std() / draws**0.5)
        assert p == pytest.approx((drawn >= found.shared).mean(), abs=4 * (max(p * (1 - p), 1e-3) / draws) ** 0.5)


def test_weighted_overlap_by_hand_and_whatever_the_scale():
    kept = GRAPH.matrix(["embeddings -> logits", "embeddings -> layer0.mlp", "layer0.mlp -> logits"])
    one, other = np.where(GRAPH.exists, 0.0, np.nan), np.where(GRAPH.exists, 0.0, np.nan)
    one[kept], other[kept] = [-1, 2, 1], [4, 4, 0]
    found = overlap(circuit_of(kept, one), circuit_of(kept, other))
    # Shares (1/4, 1/2, 1/4) and (1/2, 1/2, 0) in the order of the matrix: minima 3/4, maxima 5/4.
    assert found.weighted == pytest.approx(3 / 5)
    assert overlap(circuit_of(kept, one), circuit_of(kept, 3 * one)).weighted == pytest.approx(1)
    assert overlap(circuit_of(kept, one), circuit_of(kept)).weighted is None


def test_circuits_that_cannot_be_compared_are_refused():
    kept = GRAPH.matrix(["embeddings -> logits"])
    smaller = Graph(layers=1, heads=2, groups=2)
    with pytest.raises(AssayError, match="of one architecture"):
        overlap(circuit_of(kept), circuit_of(smaller.matrix(["embeddings -> logits"]), graph=smaller))
    with pytest.raises(AssayError, match="no edges on paths"):
        overlap(circuit_of(kept), circuit_of(np.zeros_like(kept)))
    with pytest.raises(AssayError, match="has not been fitted"):
        overlap(circuit_of(kept), Circuit(edges=3))


def test_stability_is_that_of_circuits_found_on_resamples(decoder):
    train = pairs_of(decoder, "train", count=40)
    circuit = Circuit(edges=12, method="eap")
    found = stability(circuit, decoder, train, resamples=3, seed=5)
    rng = np.random.default_rng(5)
    masks = []
    for _ in range(3):
        split = train.take(rng.integers(len(train), size=len(train)))
        again = Circuit(edges=12, method="eap").fit(collect(Engine(decoder), split, ()))
        masks.append(again.graph_.pruned(again.kept_))
    assert np.array_equal(found.frequency, np.mean(masks, axis=0))
    both = ((1, 0), (2, 0), (2, 1))
    expected = [(masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum() for a, b in both]
    assert found.jaccards == pytest.approx(expected)
    assert found.ceiling == pytest.approx(np.mean(expected))
    assert found.sizes.tolist() == [mask.sum() for mask in masks]
    assert circuit.kept_ is None
    with pytest.raises(AssayError, match="nothing is found again"):
        stability(Circuit(edges=["embeddings -> logits"]), decoder, train)
    with pytest.raises(AssayError, match="at least 2"):
        stability(circuit, decoder, train, resamples=1)


def test_circuits_of_iid_and_shift_lie_between_null_and_ceiling(decoder):
    one, other = (
        fitted(Circuit(edges=16, method="eap"), decoder, pairs_of(decoder, "train", seed=seed)) for seed in (1, 2)
    )
    found = overlap(one, other)
    assert found.shared > found.layered_expected
    assert found.layered_p < 0.01
