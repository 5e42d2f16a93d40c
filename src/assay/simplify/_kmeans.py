"""Queries and keys replaced by the centre of their cluster."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from sklearn.cluster import KMeans as ScikitKMeans
from torch import Tensor

from assay._errors import AssayError
from assay._given import check_fields, checked
from assay.engine import Place, Samples, VectorEdit
from assay.simplify._controls import UniformAttention
from assay.simplify._protocol import check_positive, label, vector_proxy
from assay.simplify._proxy import SimplifiedSubject
from assay.subjects import Subject


def _nearest(centres: Float[Tensor, "cluster width"]) -> VectorEdit:
    def replace(vectors: Float[Tensor, "batch position width"]) -> Float[Tensor, "batch position width"]:
        here = centres.to(vectors.device, torch.promote_types(vectors.dtype, torch.float32))
        middle = here.mean(dim=0)
        around, moved = here - middle, vectors.to(here.dtype) - middle
        # |v - c|^2 = |v|^2 - 2 v.c + |c|^2, of which the first term does not matter for the nearest c.
        distance = (around * around).sum(dim=-1) - 2 * moved @ around.T
        return here[distance.argmin(dim=-1)].to(vectors.dtype)

    return replace


ENOUGH, PER_CLUSTER = 10_000, 512
"""Samples that centres are found from, at most: in all, or a cluster where that is more."""


@dataclass
class KMeans:
    """Replace each head's queries and keys by the nearest of `clusters` centres, found apart for queries and keys.

    At a site that names other streams, the vectors of those are replaced, with centres of their own each.

    Lloyd's algorithm from a k-means++ start, the best of `restarts` by inertia; scikit-learn does the clustering.
    Of more than `ENOUGH` samples, or `PER_CLUSTER` a cluster, as many drawn from `seed` are used: more lower the
    inertia by a per cent or two. A vector that no centre was made for gets the nearest one there is: that is how a
    clustering of seen depths must fail beyond them.

    Source: arXiv 2312.03656 (k-means of key and query embeddings); the number of restarts is not given there.
    `fit` raises AssayError if there are fewer samples than clusters.
    """

    clusters: int
    restarts: int = 1
    seed: int = 0
    centres_: dict[Place, tuple[Tensor, ...]] | None = field(default=None, init=False, repr=False, compare=False)
    streams_: dict[Place, tuple[str, ...]] | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ("queries", "keys")
    caution: ClassVar[str] = (
        "k-means starts from drawn centres and moves them to a near optimum: activations that differ by 1e-6, as on "
        "another machine, can give other clusters, so its figures come back with its fitted centres, not with a refit."
    )
    any_stream: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    def check_parameters(self) -> None:
        """Raise AssayError for values that no subject could have."""
        check_positive(self, clusters=self.clusters, restarts=self.restarts)

    @checked
    def fit(self, samples: Samples) -> "KMeans":
        """Find the centres of each place, apart for each stream."""
        self.check_parameters()
        self.centres_ = None
        self.centres_ = {place: tuple(map(self._centres, samples.of(place))) for place in samples.places}
        self.streams_ = {place: samples.streams_of(place) for place in samples.places}
        return self

    def _centres(self, samples: Float[Tensor, "sample width"]) -> Float[Tensor, "cluster width"]:
        most = max(ENOUGH, PER_CLUSTER * self.clusters)
        used = samples
        if len(samples) > most:
            drawn = torch.randperm(len(samples), generator=torch.Generator().manual_seed(self.seed))
            used = samples[drawn[:most].sort().values]
            if len(torch.unique(used, dim=0)) < self.clusters:
                used = samples
        if (distinct := len(torch.unique(used, dim=0))) < self.clusters:
            raise AssayError(
                f"{label(self)}: only {distinct} distinct vectors to cluster; use fewer clusters or more sequences."
            )
        model = ScikitKMeans(self.clusters, n_init=self.restarts, random_state=self.seed)
        return torch.from_numpy(model.fit(used.numpy()).cluster_centers_)

    @checked
    def apply(self, subject: Subject) -> SimplifiedSubject:
        """The subject with clustered vectors at the fitted places."""
        return vector_proxy(self, subject, self.centres_, self.streams_, _nearest)

    def control(self) -> UniformAttention:
        """Attention without information."""
        return UniformAttention()
