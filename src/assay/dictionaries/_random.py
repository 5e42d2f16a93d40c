"""The dictionary that knows nothing: random features, one number learned."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from assay._given import check_fields, checked
from assay.dictionaries._dictionary import Dictionary
from assay.dictionaries._fitted import FittedDictionaries, blocks_of, features_of, key_of
from assay.dictionaries._measures import Measures, measure
from assay.engine import Head, Place, Samples
from assay.simplify import RepresentationBits
from assay.simplify._protocol import check_positive

ROWS = 50_000
"""Vectors that a mean and one length are fitted on: more change neither."""

BATCH = 4_096
"""Vectors that are taken in at a time."""


@dataclass
class RandomDictionary(FittedDictionaries):
    """A TopK dictionary of random directions: what a trained one of this size has to beat.

    Decoder rows are random unit vectors drawn from `seed` and the place, the encoder is their transpose, and b_dec the
    mean of what is to be reconstructed. One number is fitted, the length of the rows, by least squares: without it a
    random dictionary fails by its norm and not by its directions. `expansion` features for each number of a vector are
    made where `features` does not say how many, and `k` of them are on. With `transcodes` it stands for an MLP, with
    an encoder drawn apart.

    As a control it is drawn several times (`redrawn`). `fit` raises AssayError if `k` exceeds the number of features.
    """

    features: int | None = None
    expansion: int = 8
    k: int = 32
    transcodes: bool = False
    seed: int = 0

    streams: ClassVar[tuple[str, ...]] = ("queries", "keys")
    streams_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    def check_parameters(self) -> None:
        """Raise AssayError for values that no subject could have."""
        check_positive(self, expansion=self.expansion, k=self.k, features=1 if self.features is None else self.features)

    @checked
    def fit(self, samples: Samples) -> "RandomDictionary":
        """Draw the directions of each place, and fit their length."""
        self.check_parameters()
        self.dictionaries_ = None
        found: dict[Place, tuple[Dictionary, ...]] = {}
        measures: dict[str, Measures] = {}
        places = blocks_of(self, samples) if self.transcodes else samples.places
        for place in places:
            own = []
            for number, stream in enumerate(samples.streams_of(place)):
                rows = samples.some(
                    place, ROWS, seed=self.seed, streams=("mlp_input", stream) if self.transcodes else (stream,)
                )
                one = self._scaled(self._drawn(place, number, rows), rows)
                measures[key_of(place, stream)] = measure(one, *rows)
                own.append(one)
            found[place] = tuple(own)
        self.measures_, self.streams_ = measures, {place: samples.streams_of(place) for place in samples.places}
        self.dictionaries_ = found
        return self

    def _drawn(self, place: Place, number: int, rows: Sequence[Tensor]) -> Dictionary:
        """Directions that depend on the seed and the place alone."""
        width, out = rows[0].shape[1], rows[-1].shape[1]
        features = features_of(self, width, self.features, self.expansion, self.k)
        head = place.head if isinstance(place, Head) else 999
        seed = ((self.seed * 1_000 + place.layer) * 1_000 + head) * 10 + number
        generator = torch.Generator().manual_seed(seed)
        decoder = normalize(torch.randn(features, out, generator=generator))
        encoder = (
            torch.randn(width, features, generator=generator) / width**0.5 if self.transcodes else decoder.T.clone()
        )
        return Dictionary(
            "topk",
            encoder,
            torch.zeros(features),
            decoder,
            rows[-1].double().mean(dim=0).float(),
            k=self.k,
            pre_bias=not self.transcodes,
            transcodes=self.transcodes,
        )

    @staticmethod
    def _scaled(drawn: Dictionary, rows: Sequence[Tensor]) -> Dictionary:
        """The same with the length of its decoder's rows that leaves the least squared error."""
        target, along, square = rows[-1].double() - drawn.b_dec.double(), 0.0, 0.0
        for part, wanted in zip(rows[0].split(BATCH), target.split(BATCH), strict=True):
            given = drawn.reconstruct(part).double() - drawn.b_dec.double()
            along += float((given * wanted).sum())
            square += float(given.square().sum())
        return replace(drawn, W_dec=drawn.W_dec * (along / square if square > 0 else 0.0))

    def representation_bits(
        self, *, width: int, length: int, vectors: int = 2, precision: int = 16
    ) -> RepresentationBits:
        """The bits of what is kept: a seed gives the directions, so that there is no codebook."""
        found = super().representation_bits(width=width, length=length, vectors=vectors, precision=precision)
        return RepresentationBits(found.per_position, 0.0)

    def redrawn(self, number: int) -> "RandomDictionary":
        """The same control drawn again."""
        return replace(self, seed=self.seed + number)

    def control(self) -> None:
        """None: this is a control."""
