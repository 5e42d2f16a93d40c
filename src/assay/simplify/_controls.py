"""Controls: simplifications that know nothing, and the one that changes nothing."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay.engine import ATTENTION, Edit, Head, Place, Proxy, Samples, VectorEdit
from assay.simplify._protocol import check_positive, label, proxy_of, vector_edit
from assay.simplify._subspace import Subspace, check_rank
from assay.subjects import Subject


@dataclass
class RandomProjection:
    """Project each head's queries and keys, or another stream, on a random subspace of `rank`: what SVD has to beat.

    Queries and keys share the subspace, as in a joint SVD. It depends on `seed` and the place alone, not on data.
    """

    rank: int
    seed: int = 0
    subspaces_: dict[Place, Subspace] | None = field(default=None, init=False, repr=False, compare=False)
    streams_: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ("queries",)
    any_stream: ClassVar[bool] = True

    def fit(self, samples: Samples) -> "RandomProjection":
        """Draw the subspace of each place; the samples only tell the width."""
        check_positive(self, rank=self.rank)
        self.subspaces_ = None
        found: dict[Place, Subspace] = {}
        for place in samples.places:
            width = samples.of(place)[0].shape[-1]
            check_rank(self.rank, width, label(self))
            number = place.head if isinstance(place, Head) else 999
            generator = torch.Generator().manual_seed((self.seed * 1_000 + place.layer) * 1_000 + number)
            gaussian = torch.randn(width, width, generator=generator, dtype=torch.float64)
            basis, _ = torch.linalg.qr(gaussian)
            found[place] = Subspace(basis[:, : self.rank], torch.zeros(width, dtype=torch.float64))
        self.subspaces_, self.streams_ = found, samples.streams
        return self

    def apply(self, subject: Subject) -> Proxy:
        """The subject with randomly projected vectors at the fitted places."""
        found = self.subspaces_ or {}

        def edit(place: Place) -> Edit:
            return vector_edit(place, self.streams_, [found[place].projection()] * len(self.streams_))

        return proxy_of(self, subject, tuple(found) or None, edit)

    def control(self) -> None:
        """None: this is a control."""


@dataclass
class UniformAttention:
    """Attend equally to every position that the mask leaves visible: attention without any information."""

    heads_: tuple[Place, ...] | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()

    def fit(self, samples: Samples) -> "UniformAttention":
        """Note the heads."""
        self.heads_ = samples.places
        return self

    def apply(self, subject: Subject) -> Proxy:
        """The subject with uniform attention at the fitted heads."""

        def uniform(
            pattern: Float[Tensor, "batch query key"], visible: Bool[Tensor, "batch query key"]
        ) -> Float[Tensor, "batch query key"]:
            weight = visible.to(pattern.dtype)
            return weight / weight.sum(dim=-1, keepdim=True).clamp(min=1)

        return proxy_of(self, subject, self.heads_, lambda head: Edit(head, pattern=uniform))

    def control(self) -> None:
        """None: this is a control."""


@dataclass
class MeanAblation:
    """Replace every vector by its mean over the train split: what clustering of a stream has to beat.

    The field's mean ablation, at one place and stream; every token gets the same vector.
    """

    means_: dict[Place, tuple[Tensor, ...]] | None = field(default=None, init=False, repr=False, compare=False)
    streams_: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ATTENTION
    any_stream: ClassVar[bool] = True

    def fit(self, samples: Samples) -> "MeanAblation":
        """Take the mean of each place's vectors, apart for each stream."""
        self.means_ = {
            place: tuple(vectors.double().mean(dim=0) for vectors in samples.of(place)) for place in samples.places
        }
        self.streams_ = samples.streams
        return self

    def apply(self, subject: Subject) -> Proxy:
        """The subject with mean vectors at the fitted places."""
        found = self.means_ or {}

        def constant(mean: Float[Tensor, " width"]) -> VectorEdit:
            def replace(vectors: Float[Tensor, "batch position width"]) -> Float[Tensor, "batch position width"]:
                return mean.to(vectors).expand_as(vectors)

            return replace

        def edit(place: Place) -> Edit:
            return vector_edit(place, self.streams_, list(map(constant, found[place])))

        return proxy_of(self, subject, tuple(found) or None, edit)

    def control(self) -> None:
        """None: this is a control."""


def _unchanged(vectors: Float[Tensor, "batch position width"]) -> Float[Tensor, "batch position width"]:
    return vectors


@dataclass
class Identity:
    """Change nothing, through all the machinery: its distance from the subject is numerical noise."""

    places_: tuple[Place, ...] | None = field(default=None, init=False, repr=False, compare=False)
    streams_: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()
    any_stream: ClassVar[bool] = True

    def fit(self, samples: Samples) -> "Identity":
        """Note the places."""
        self.places_, self.streams_ = samples.places, samples.streams
        return self

    def apply(self, subject: Subject) -> Proxy:
        """The subject with edits that give back what they get, at the fitted places."""

        def edit(place: Place) -> Edit:
            if self.streams_ == ATTENTION:
                return Edit(place, queries=_unchanged, keys=_unchanged, pattern=lambda pattern, _: pattern)
            return vector_edit(place, self.streams_, [_unchanged] * len(self.streams_))

        return proxy_of(self, subject, self.places_, edit)

    def control(self) -> None:
        """None: this is a control."""
