"""Bits of every recipe, counted by hand."""

import math

import numpy as np
import pytest
from torch import nn

from assay import AssayError
from assay.engine import Engine, collect
from assay.models import LowRankWeights, NGram, NoiseWeights, PruneWeights, RoundWeights, WeightBits, weight_bits
from assay.models._bits import _of_matrix
from assay.models._weights import Linear
from assay.tasks import Split

TWO_BY_TWO = Linear("by.hand", nn.Linear(2, 2))
THREE_BY_FOUR = Linear("by.hand", nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("recipe", "two_by_two", "three_by_four"),
    [
        (RoundWeights(4), 4 * 4 + 2 * 16, 12 * 4 + 3 * 16),
        (RoundWeights(4, symmetric=False), 4 * 4 + 2 * 20, 12 * 4 + 3 * 20),
        (RoundWeights(3, group=1), 4 * 3 + 4 * 16, 12 * 3 + 12 * 16),
        (RoundWeights(3, group=2, symmetric=False), 4 * 3 + 2 * 19, 12 * 3 + 6 * 19),
        (RoundWeights(3, group=4), 4 * 3 + 2 * 16, 12 * 3 + 3 * 16),
        (PruneWeights(0.0), 64, 192),
        (PruneWeights(0.5), 2 * 16 + 4, 6 * 16 + 12),
        (PruneWeights(0.5, by="activation"), 2 * 16 + 4, 6 * 16 + 12),
        (PruneWeights(0.25), 3 * 16 + 4 * 0.811278, 9 * 16 + 12 * 0.811278),
        (LowRankWeights(1), 16 * 4, 16 * 7),
        (LowRankWeights(2), 16 * 4, 16 * 2 * 7),
        (LowRankWeights(3), 16 * 4, 16 * 12),
    ],
)
def test_bits_by_hand(recipe, two_by_two, three_by_four):
    assert _of_matrix(recipe, TWO_BY_TWO, 16) == pytest.approx(two_by_two)
    assert _of_matrix(recipe, THREE_BY_FOUR, 16) == pytest.approx(three_by_four)


def test_bits_of_a_model_are_those_of_its_blocks(small):
    """Two blocks of 16 x 48, 16 x 16, 16 x 64 and 64 x 16: 160 rows of outputs each."""
    weights = 2 * 16 * (48 + 16 + 64 + 64)
    rows = 2 * (48 + 16 + 64 + 16)
    total = 4.0 * weights + 16 * rows
    assert weight_bits(RoundWeights(4), small) == WeightBits(total, total / weights, weights)
    assert weight_bits(RoundWeights(4), small, precision=32).total == total + 16 * rows
    assert weight_bits(PruneWeights(0.0), small).per_weight == 16
    assert weight_bits(LowRankWeights(16), small).per_weight == 16
    assert weight_bits(LowRankWeights(15), small).per_weight > 16


def test_bits_of_an_n_gram_by_hand(small):
    """a b a c | a b b: after nothing b (3 times), a, c; after a: b, c; after b: a, b; after a b: a, b; after b a: c."""
    a, b, c = 4, 5, 6
    tokens = np.array([[a, b, a, c], [a, b, b, 0]])
    split = Split("train", "train", "by hand", tokens, np.array([4, 3]), tokens * 0)
    token = math.log2(23)
    samples = collect(Engine(small), split, ())
    expected = {
        1: (0, 3),
        2: (2, 3 + 2 + 2),
        3: (2 + 2 * 2, 3 + 2 + 2 + 2 + 1),
    }
    for order, (numbers, entries) in expected.items():
        found = weight_bits(NGram(order).fit(samples), small)
        assert found.total == pytest.approx(numbers * token + entries * (token + 16))
        assert found.parameters == entries
        assert found.per_weight == pytest.approx(found.total / entries)


def test_what_has_no_bits_is_refused(small):
    with pytest.raises(AssayError, match=r"bits of NoiseWeights\(of=RoundWeights\(bits=4\)\) are not known"):
        weight_bits(NoiseWeights(RoundWeights(4)), small)
    with pytest.raises(AssayError, match="has not been fitted"):
        weight_bits(NGram(2), small)
    for wrong, what in (
        (RoundWeights(1), "bits must be"),
        (PruneWeights(1.0), "share must be"),
        (LowRankWeights(17), "rank must be"),
    ):
        with pytest.raises(AssayError, match=what):
            weight_bits(wrong, small)
