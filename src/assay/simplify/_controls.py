"""Controls: simplifications that know nothing, and the one that changes nothing."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay.engine import Edit, Head, Proxy, Samples
from assay.simplify._protocol import check_positive, label, proxy_of
from assay.simplify._subspace import Subspace, check_rank
from assay.subjects import Subject


@dataclass
class RandomProjection:
    """Project each head's queries and keys on a random subspace of dimension `rank`: what SVD has to beat.

    Queries and keys share the subspace, as in a joint SVD. It depends on `seed` and the head alone, not on data.
    """

    rank: int
    seed: int = 0
    subspaces_: dict[Head, Subspace] | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ("queries",)

    def fit(self, samples: Samples) -> "RandomProjection":
        """Draw each head's subspace; the samples only tell the width."""
        check_positive(self, rank=self.rank)
        self.subspaces_ = None
        found: dict[Head, Subspace] = {}
        for head in samples.heads:
            width = samples.queries[head].shape[-1]
            check_rank(self.rank, width, label(self))
            generator = torch.Generator().manual_seed((self.seed * 1_000 + head.layer) * 1_000 + head.head)
            gaussian = torch.randn(width, width, generator=generator, dtype=torch.float64)
            basis, _ = torch.linalg.qr(gaussian)
            found[head] = Subspace(basis[:, : self.rank], torch.zeros(width, dtype=torch.float64))
        self.subspaces_ = found
        return self

    def apply(self, subject: Subject) -> Proxy:
        """The subject with randomly projected queries and keys at the fitted heads."""
        found = self.subspaces_ or {}

        def edit(head: Head) -> Edit:
            projection = found[head].projection()
            return Edit(head, queries=projection, keys=projection)

        return proxy_of(self, subject, tuple(found) or None, edit)

    def control(self) -> None:
        """None: this is a control."""


@dataclass
class UniformAttention:
    """Attend equally to every position that the mask leaves visible: attention without any information."""

    heads_: tuple[Head, ...] | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()

    def fit(self, samples: Samples) -> "UniformAttention":
        """Note the heads."""
        self.heads_ = samples.heads
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
class Identity:
    """Change nothing, through all the machinery: its distance from the subject is numerical noise."""

    heads_: tuple[Head, ...] | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()

    def fit(self, samples: Samples) -> "Identity":
        """Note the heads."""
        self.heads_ = samples.heads
        return self

    def apply(self, subject: Subject) -> Proxy:
        """The subject with edits that give back what they get, at the fitted heads."""
        return proxy_of(
            self,
            subject,
            self.heads_,
            lambda head: Edit(head, queries=lambda x: x, keys=lambda x: x, pattern=lambda pattern, _: pattern),
        )

    def control(self) -> None:
        """None: this is a control."""
