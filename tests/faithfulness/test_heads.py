"""Scores of heads on planted attention, and rank correlations against an independent implementation."""

import math

import numpy as np
import pytest
from scipy import stats

from assay import AssayError
from assay.engine import Engine
from assay.faithfulness import head_scores, rank_correlation
from assay.faithfulness._heads import recurrences


def slow(tokens, context):
    found = []
    for end in range(len(tokens)):
        own = tokens[end - context + 1 : end + 1]
        if end - context + 1 < 0:
            continue
        for earlier in range(end - 2, context - 2, -1):
            if list(tokens[earlier - context + 1 : earlier + 1]) == list(own):
                found.append((end, earlier + 1))
                break
    return found


@pytest.mark.parametrize("context", [1, 2, 3])
def test_recurrences_are_those_of_a_slow_search(context):
    rng = np.random.default_rng(0)
    for _ in range(20):
        tokens = rng.integers(0, 3, int(rng.integers(1, 30)))
        assert list(zip(*map(list, recurrences(tokens, context)), strict=True)) == slow(tokens, context)


def test_recurrences_by_hand():
    """a b c a b: after the second "a b" comes what followed the first, c at position 2."""
    here, after = recurrences(np.array([0, 1, 2, 0, 1]), 2)
    assert (here.tolist(), after.tolist()) == ([4], [2])
    here, after = recurrences(np.zeros(5, dtype=np.int64), 1)
    assert (here.tolist(), after.tolist()) == ([2, 3, 4], [1, 2, 3])


def test_scores_are_means_of_the_attention_of_a_slow_loop(subject, task):
    import torch  # noqa: PLC0415

    engine = Engine(subject)
    split = task.split("iid", 12)
    found = head_scores(engine, split, context=2).set_index("head")
    sums, positions, recurring = {str(head): [0.0, 0.0] for head in engine.heads}, 0, 0
    for row in range(len(split)):
        length = int(split.lengths[row])
        tokens = split.tokens[row, :length].astype(np.int64)
        patterns = engine.run(torch.from_numpy(tokens)[None], read=("patterns",)).patterns
        pairs = slow(tokens, 2)
        positions, recurring = positions + length - 1, recurring + len(pairs)
        for head in engine.heads:
            pattern = patterns[head.layer][0, head.head]
            sums[str(head)][0] += float(sum(pattern[t, t - 1] for t in range(1, length)))
            sums[str(head)][1] += float(sum(pattern[end, after] for end, after in pairs))
    assert recurring > 5
    for head, (previous, induction) in sums.items():
        assert found.loc[head, "previous_token"] == pytest.approx(previous / positions, abs=1e-5)
        assert found.loc[head, "induction"] == pytest.approx(induction / recurring, abs=1e-5)
        assert found.loc[head, "recurrences"] == recurring


def test_rank_correlation_is_spearmans_and_covers():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 16))
    assert rank_correlation(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic)
    truth = 6 / math.pi * math.asin(0.6 / 2)
    hits = 0
    for _ in range(400):
        pair = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 16).T
        found = rank_correlation(*pair)
        hits += found.low <= truth <= found.high
    assert 0.91 <= hits / 400 <= 0.99


def test_what_cannot_be_correlated():
    assert math.isnan(rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]).value)
    assert math.isnan(rank_correlation([1, 2, 3, math.nan], [1, 2, 3, 4]).low)
    with pytest.raises(AssayError, match="at least 4 units"):
        rank_correlation([1, 2, 3], [1, 2, 3])
