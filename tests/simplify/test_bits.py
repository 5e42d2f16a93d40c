"""Bits of every recipe, counted by hand."""

import math
from pathlib import Path

import pytest

from assay import AssayError
from assay.simplify import (
    SVD,
    Identity,
    InteractionBasis,
    KMeans,
    MeanAblation,
    OneHotAttention,
    RandomPerturbation,
    RandomProjection,
    RepresentationBits,
    UniformAttention,
    is_whole,
    representation_bits,
    simplifications,
)


@pytest.mark.parametrize(
    ("recipe", "per_position", "codebook", "stated"),
    [
        (SVD(rank=4), 2 * 4 * 16, 32 * 4 * 16, None),
        (SVD(rank=4, joint=False), 2 * 4 * 16, 2 * 32 * 4 * 16, None),
        (SVD(rank=4, centred=True), 2 * 4 * 16, 32 * 5 * 16, None),
        (RandomProjection(rank=4), 2 * 4 * 16, 0, None),
        (InteractionBasis(features=4), 2 * 4 * 16, 2 * 32 * 9 * 16, None),
        (KMeans(clusters=64), 2 * 6, 2 * 64 * 32 * 16, None),
        (OneHotAttention(), 2 * 32 * 16, 0, math.log2(24) / 4),
        (UniformAttention(), 0, 0, 0),
        (MeanAblation(), 0, 2 * 32 * 16, None),
        (Identity(), 2 * 32 * 16, 0, None),
        (RandomPerturbation(KMeans(clusters=64)), 2 * 6, 0, None),
        (RandomPerturbation(OneHotAttention()), 2 * 32 * 16, 0, math.log2(24) / 4),
    ],
)
def test_bits_by_hand(recipe, per_position, codebook, stated):
    found = representation_bits(recipe, width=32, length=4)
    assert (found.per_position, found.codebook) == (pytest.approx(per_position), pytest.approx(codebook))
    assert found.stated == (stated if stated is None else pytest.approx(stated))


def test_numbers_and_vectors_count():
    assert representation_bits(SVD(rank=4), width=128, length=9, vectors=1, precision=32).per_position == 128


def test_what_chooses_from_whole_vectors_or_keeps_every_direction_has_all_their_bits():
    whole, same, chosen = (
        representation_bits(item, width=32, length=9) for item in (SVD(rank=32), Identity(), OneHotAttention())
    )
    assert whole.per_position == same.per_position == chosen.per_position
    assert chosen.stated < chosen.per_position


def test_a_codebook_is_spread_over_the_positions_it_is_used_for():
    """Many clusters are a short index and a long codebook: over few positions they are longer than the vectors."""
    clusters, vectors = (representation_bits(item, width=32, length=9) for item in (KMeans(clusters=256), Identity()))
    assert clusters.spread(100) == pytest.approx(2 * 8 + 2 * 256 * 32 * 16 / 100)
    assert clusters.spread(100) > vectors.spread(100) == vectors.per_position
    assert clusters.spread(10_000_000) == pytest.approx(clusters.per_position, abs=0.1)


def test_every_registered_recipe_of_heads_has_bits():
    """Those that replace the model as a whole have no representation of a head: `assay.models.weight_bits` counts.

    Of dictionaries the bits are known once they are fitted (tests/dictionaries).
    """
    with_parameters = {
        name: f"{name}:{parameters}"
        for name, parameters in {
            "svd": "rank=2",
            "kmeans": "clusters=2",
            "interaction-basis": "features=2",
            "random-projection": "rank=2",
            "round-weights": "bits=4",
            "prune-weights": "share=0.5",
            "low-rank-weights": "rank=2",
            "n-gram": "order=2",
            "circuit": "edges=5",
            "file": f"path={Path(__file__).parents[1] / 'circuits' / 'peer_files' / 'gpt2-20.json'}",
            "value-vectors": "token=2",
        }.items()
    }
    others = [
        name for name in simplifications if not simplifications.get(name).__module__.startswith("assay.dictionaries.")
    ]
    made = [simplifications.build(with_parameters.get(name, name)) for name in others]
    of_heads = [item for item in made if not is_whole(item)]
    assert len(of_heads) >= 7
    for item in of_heads:
        assert representation_bits(item, width=8, length=8).per_position >= 0


class Mine:
    streams = ()

    def fit(self, samples):
        return self

    def apply(self, subject):
        raise NotImplementedError

    def control(self):
        return None


class Measured(Mine):
    def representation_bits(self, *, width, length, vectors, precision):
        return RepresentationBits(float(width), 7.0)


def test_a_recipe_of_ones_own_gives_its_bits_or_is_refused():
    assert representation_bits(Measured(), width=5, length=2) == RepresentationBits(5.0, 7.0)
    with pytest.raises(AssayError, match=r"bits of Mine\(\) are not known"):
        representation_bits(Mine(), width=5, length=2)
