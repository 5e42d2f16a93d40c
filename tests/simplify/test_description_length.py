"""Bits of every recipe, counted by hand."""

import math

import pytest

from assay import AssayError
from assay.simplify import (
    SVD,
    DescriptionLength,
    Identity,
    KMeans,
    MeanAblation,
    OneHotAttention,
    RandomPerturbation,
    RandomProjection,
    UniformAttention,
    description_length,
    simplifications,
)


@pytest.mark.parametrize(
    ("recipe", "per_position", "codebook"),
    [
        (SVD(rank=4), 2 * 4 * 16, 32 * 4 * 16),
        (SVD(rank=4, joint=False), 2 * 4 * 16, 2 * 32 * 4 * 16),
        (SVD(rank=4, centred=True), 2 * 4 * 16, 32 * 5 * 16),
        (RandomProjection(rank=4), 2 * 4 * 16, 0),
        (KMeans(clusters=64), 2 * 6, 2 * 64 * 32 * 16),
        (OneHotAttention(), math.log2(24) / 4, 0),
        (UniformAttention(), 0, 0),
        (MeanAblation(), 0, 2 * 32 * 16),
        (Identity(), 2 * 32 * 16, 0),
        (RandomPerturbation(KMeans(clusters=64)), 2 * 6, 0),
    ],
)
def test_bits_by_hand(recipe, per_position, codebook):
    found = description_length(recipe, width=32, length=4)
    assert (found.per_position, found.codebook) == (pytest.approx(per_position), pytest.approx(codebook))


def test_numbers_and_vectors_count():
    assert description_length(SVD(rank=4), width=128, length=9, vectors=1, precision=32).per_position == 128


def test_full_rank_says_as_much_as_the_vectors_themselves():
    whole, same = (description_length(item, width=32, length=9) for item in (SVD(rank=32), Identity()))
    assert whole.per_position == same.per_position


def test_every_registered_recipe_has_a_length():
    for name in simplifications:
        made = simplifications.build({"svd": "svd:rank=2", "kmeans": "kmeans:clusters=2"}.get(name, name)
                                     if name != "random-projection" else "random-projection:rank=2")  # fmt: skip
        assert description_length(made, width=8, length=8).per_position >= 0


class Mine:
    streams = ()

    def fit(self, samples):
        return self

    def apply(self, subject):
        raise NotImplementedError

    def control(self):
        return None


class Measured(Mine):
    def description_length(self, *, width, length, vectors, precision):
        return DescriptionLength(float(width), 7.0)


def test_a_recipe_of_ones_own_says_its_length_or_is_refused():
    assert description_length(Measured(), width=5, length=2) == DescriptionLength(5.0, 7.0)
    with pytest.raises(AssayError, match=r"Mine\(\) is not known"):
        description_length(Mine(), width=5, length=2)
