"""Low-rank queries and keys by singular value decomposition."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from assay._given import check_fields, checked
from assay.engine import ATTENTION, Place, Samples
from assay.simplify._controls import RandomProjection
from assay.simplify._protocol import check_positive, label, vector_proxy
from assay.simplify._proxy import SimplifiedSubject
from assay.simplify._subspace import Subspace, check_rank
from assay.subjects import Subject

_ROWS = 8_192
"""Samples that are made float64 at a time: large temporary copies are slow, and fragment memory for good."""


def leading_subspace(*samples: Float[Tensor, "_ width"], rank: int, centred: bool) -> Subspace:
    """The subspace of dimension `rank` that is nearest to all samples together in the least-squares sense.

    Its basis are the leading right singular vectors, computed in float64. With `centred`, the mean is taken off
    first (principal components).
    """
    width, count = samples[0].shape[1], sum(map(len, samples))
    mean = torch.zeros(width, dtype=torch.float64)
    if centred:
        mean = torch.stack([some.sum(dim=0, dtype=torch.float64) for some in samples]).sum(dim=0) / count
    squares = torch.zeros(width, width, dtype=torch.float64)
    for rows in (rows for some in samples for rows in some.split(_ROWS)):
        moved = rows.double() - mean
        squares.addmm_(moved.T, moved)
    _, vectors = torch.linalg.eigh(squares)
    return Subspace(vectors.flip(-1)[:, :rank].clone(), mean)


@dataclass
class SVD:
    """Project each head's queries and keys, or the vectors of another stream, on their leading singular directions.

    `rank` directions are kept, between 1 and the head's width. With `joint`, queries and keys share one basis, that
    of the matrix made of both; otherwise each has its own (then the score sees the product of two projections, and
    needs more directions for the same error). Every other stream has a basis of its own. With `centred`, the mean is
    taken off before and added after.

    Source: arXiv 2312.03656, where keys and queries of about 1,000 training sequences are joined in one matrix and
    projected on its top singular vectors; the defaults follow that reading, centring is not specified there.
    `fit` raises AssayError if `rank` exceeds the width.
    """

    rank: int
    joint: bool = True
    centred: bool = False
    subspaces_: dict[Place, tuple[Subspace, ...]] | None = field(default=None, init=False, repr=False, compare=False)
    streams_: dict[Place, tuple[str, ...]] | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ("queries", "keys")
    any_stream: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    def check_parameters(self) -> None:
        """Raise AssayError for values that no subject could have."""
        check_positive(self, rank=self.rank)

    @checked
    def fit(self, samples: Samples) -> "SVD":
        """Find the subspaces of each place, one a stream."""
        self.check_parameters()
        self.subspaces_ = None
        found: dict[Place, tuple[Subspace, ...]] = {}
        for place in samples.places:
            streams, vectors = samples.streams_of(place), samples.of(place)
            for one in vectors:
                check_rank(self.rank, one.shape[-1], label(self))
            by_stream = dict(zip(streams, vectors, strict=True))
            groups: list[tuple[str, ...]] = [(stream,) for stream in streams]
            if self.joint and set(ATTENTION) <= set(streams):
                groups = [ATTENTION, *((stream,) for stream in streams if stream not in ATTENTION)]
            subspaces: dict[str, Subspace] = {}
            for group in groups:
                own = (by_stream[stream] for stream in group)
                subspaces |= dict.fromkeys(group, leading_subspace(*own, rank=self.rank, centred=self.centred))
            found[place] = tuple(subspaces[stream] for stream in streams)
        self.subspaces_, self.streams_ = found, {place: samples.streams_of(place) for place in samples.places}
        return self

    @checked
    def apply(self, subject: Subject) -> SimplifiedSubject:
        """The subject with projected vectors at the fitted places."""
        return vector_proxy(self, subject, self.subspaces_, self.streams_, Subspace.projection)

    def control(self) -> RandomProjection:
        """A random subspace of the same rank."""
        return RandomProjection(self.rank)
