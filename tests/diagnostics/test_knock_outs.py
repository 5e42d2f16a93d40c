import numpy as np
import pytest
import torch

from assay import AssayError
from assay.circuits import Circuit
from assay.diagnostics import completeness, minimality
from small_decoder import logits_of, m_of, pairs_of, random_decoder

THREE = ["embeddings -> logits", "embeddings -> layer0.mlp", "layer0.mlp -> logits"]


def kl(first, second):
    p, q = first[:, -1].log_softmax(-1), second[:, -1].log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).numpy()


def test_knock_outs_are_divergences_by_hand(decoder, pairs, found):
    result = completeness(found, decoder, pairs, draws=2, resamples=200)
    graph, kept = found.graph_, found.graph_.pruned(found.kept_)
    whole = logits_of(decoder, pairs, graph.exists)
    assert result.whole.value == pytest.approx(kl(whole, logits_of(decoder, pairs, kept)).mean())
    assert [len(one.edges) for one in result.random] == [1, 1, 2, 2, *[kept.sum() // 4] * 2]
    for one in result.random:
        out = graph.matrix(one.edges)
        assert (out & ~kept).sum() == 0
        expected = kl(logits_of(decoder, pairs, graph.exists & ~out), logits_of(decoder, pairs, kept & ~out))
        assert one.kl.value == pytest.approx(expected.mean())
        assert 0 <= one.kl.low <= one.kl.value <= one.kl.high


def test_the_worst_edge_is_found_on_one_half_and_measured_on_the_other(decoder, pairs, found):
    worst = completeness(found, decoder, pairs, draws=1, sizes=[1], resamples=200).worst
    graph, kept = found.graph_, found.graph_.pruned(found.kept_)
    halves = pairs.take(np.arange(30)), pairs.take(np.arange(30, 60))
    by_edge = {}
    for edge in graph.edges(kept):
        out = graph.matrix([edge])
        by_edge[edge] = [
            kl(logits_of(decoder, half, graph.exists & ~out), logits_of(decoder, half, kept & ~out)).mean()
            for half in halves
        ]
    edge = max(by_edge, key=lambda one: by_edge[one][0])
    assert worst.edges == (edge,)
    assert worst.kl.value == pytest.approx(by_edge[edge][1])


def test_the_whole_graph_is_complete(decoder, pairs, found):
    result = completeness(found.of_size(found.graph_.size), decoder, pairs, sizes=[3], draws=2, greedy=0, resamples=50)
    assert result.worst is None
    assert all(one.kl.value == pytest.approx(0, abs=1e-12) for one in result.random)


def test_an_edge_that_carries_nothing_is_not_needed():
    subject = random_decoder(seed=1)
    projection = subject.model.transformer.h[0].mlp.c_proj
    with torch.no_grad():
        projection.weight.zero_()
    pairs = pairs_of(subject)
    result = minimality(Circuit(edges=THREE), subject, pairs, idle=8, resamples=200)
    effects = {str(one.edge): one for one in result.edges}
    for name in THREE[1:]:
        assert effects[name].effect.value == pytest.approx(0, abs=1e-12)
        assert effects[name].p == 1
    # Without its path through the MLP, the circuit is the one edge.
    assert effects[THREE[0]].effect.value == pytest.approx(result.f.value)
    assert len(result.idle) <= 8
    assert set(map(str, result.not_shown)) >= set(THREE[1:])


def test_effects_of_edges_are_those_by_hand(decoder, pairs, found):
    result = minimality(found, decoder, pairs, idle=10, resamples=200)
    graph, kept = found.graph_, found.graph_.pruned(found.kept_)
    whole = m_of(decoder, pairs, graph.exists).mean() - m_of(decoder, pairs, np.zeros_like(kept)).mean()
    own = m_of(decoder, pairs, kept).mean()
    assert len(result.edges) == kept.sum()
    for one in result.edges:
        without = m_of(decoder, pairs, kept & ~graph.matrix([one.edge])).mean()
        assert one.effect.value == pytest.approx((own - without) / whole)
    sizes = [abs(one.effect.value) for one in result.edges]
    assert sizes == sorted(sizes, reverse=True)
    assert result.bound == pytest.approx(np.quantile(result.idle, 0.9))
    assert result.edges[0].edge in result.needed
    assert all(abs(one.effect.value) > result.bound for one in result.edges if one.edge in result.needed)


def test_p_values_are_at_most_as_small_as_they_say():
    """Edges that do exactly as much as the bound are called needed in at most 5 of 100 cases."""
    from assay.diagnostics._knock_outs import _p_above  # noqa: PLC0415
    from assay.faithfulness import every  # noqa: PLC0415

    rng = np.random.default_rng(0)
    weights = every(50)
    wrong = np.mean(
        [_p_above(weights, rng.normal(0.2, 1, 50), rng.normal(2, 0.5, 50), 0.1) < 0.05 for _ in range(1_000)]
    )
    assert wrong < 0.05 + 3 * (0.05 * 0.95 / 1_000) ** 0.5


def test_bad_input_is_refused(decoder, pairs, found):
    with pytest.raises(AssayError, match=r"completeness\(sizes=\[99\]"):
        completeness(found, decoder, pairs, sizes=[99])
    with pytest.raises(AssayError, match="idle=0"):
        minimality(found, decoder, pairs, idle=0)
    with pytest.raises(AssayError, match="no edges on paths"):
        minimality(Circuit(edges=["embeddings -> layer0.mlp"]), decoder, pairs)
