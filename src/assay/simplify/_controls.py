"""Controls: simplifications that know nothing, and the one that changes nothing."""

import copy
import zlib
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import one_hot

from assay._errors import AssayError
from assay.engine import Edit, Head, PatternEdit, Proxy, Samples, VectorEdit
from assay.simplify._protocol import Simplification, check_positive, label, proxy_of
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


_WAVES = 128
_FREQUENCY = 20.0


def _moved_at_random(edit: VectorEdit, seed: int) -> VectorEdit:
    """Move every vector as far as `edit` does, in a direction that has nothing to do with it."""
    drawn: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def draw(width: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return (
            torch.randn(width, _WAVES, generator=generator, dtype=torch.float64),
            torch.rand(_WAVES, generator=generator, dtype=torch.float64) * 2 * torch.pi,
            torch.randn(_WAVES, width, generator=generator, dtype=torch.float64),
        )

    def move(vectors: Float[Tensor, "batch position width"]) -> Float[Tensor, "batch position width"]:
        here = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
        length = (edit(vectors).to(here) - here).norm(dim=-1, keepdim=True)
        width = here.shape[-1]
        into, phase, out = (part.to(here) for part in drawn.setdefault(width, draw(width)))
        unit = here / here.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        direction = torch.cos(_FREQUENCY * unit @ into + phase) @ out
        direction = direction / direction.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        return (here + length * direction).to(vectors.dtype)

    return move


def _mass_moved_at_random(edit: PatternEdit, seed: int) -> PatternEdit:
    """Move as much attention as `edit` does, from all positions to a visible one that is drawn at random."""

    def move(
        pattern: Float[Tensor, "batch query key"], visible: Bool[Tensor, "batch query key"]
    ) -> Float[Tensor, "batch query key"]:
        here = pattern.to(torch.promote_types(pattern.dtype, torch.float32))
        amount = (edit(pattern, visible).to(here) - here).abs().sum(dim=-1, keepdim=True)
        queries, keys = (torch.arange(size, device=pattern.device) for size in pattern.shape[1:])
        drawn = _mixed(queries[:, None] * 65_537 + keys[None, :] + seed * 1_000_003)
        target = one_hot(torch.where(visible, drawn, -1).argmax(dim=-1), pattern.shape[-1]).to(here)
        whole = (target - here).abs().sum(dim=-1, keepdim=True)
        share = (amount / whole.clamp_min(1e-30)).clamp(max=1)
        return (here + share * (target - here)).to(pattern.dtype)

    return move


def _mixed(numbers: Tensor) -> Tensor:
    """A scrambled number of 31 bits for every whole number, the same on every device."""
    for factor in (0x45D9F3B, 0x119DE1F3):
        numbers = ((numbers ^ (numbers >> 16)) * factor) & 0x7FFFFFFF
    return numbers ^ (numbers >> 16)


@dataclass
class RandomPerturbation:
    """Move everything that another simplification moves by as much, in a random direction: the control of equal size.

    Vectors (queries, keys and any other stream) are moved by the Euclidean length by which `of` moves them. The
    direction is that of a random field: cosines of random projections of the vector's own direction, randomly mixed;
    so it depends on the vector, the head, the stream and `seed`, and not on the batch, on padding or on data. Equal
    vectors are moved alike, as a simplification moves them, and vectors more than about six degrees apart
    independently.

    A pattern has no free directions, for its rows have to stay distributions. Its control moves as much attention (in
    total variation) as `of` does, from all positions in proportion to one visible position drawn at random for the
    query. For one-hot attention that is always possible; where `of` moves more than there is, all of it is moved.

    What `of` loses beyond this control is due to which information it drops; the rest is due to how much it moves.
    """

    of: Simplification
    seed: int = 0
    fitted_: Simplification | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def streams(self) -> tuple[str, ...]:
        """Those of the simplification that sets the size."""
        return self.of.streams

    def fit(self, samples: Samples) -> "RandomPerturbation":
        """Fit the simplification that sets the size."""
        self.fitted_ = None
        self.fitted_ = copy.deepcopy(self.of).fit(samples)
        return self

    def apply(self, subject: Subject) -> Proxy:
        """The subject with vectors and patterns moved at random."""
        if self.fitted_ is None:
            raise AssayError(f"{label(self)} has not been fitted; call fit(samples) before apply(subject).")
        return Proxy(subject, [self._instead_of(edit) for edit in self.fitted_.apply(subject).edits])

    def _instead_of(self, edit: Edit) -> Edit:
        where, *streams = fields(edit)
        changes: dict[str, Any] = {}
        for stream in streams:
            function = getattr(edit, stream.name)
            if function is not None:
                seed = zlib.crc32(f"{getattr(edit, where.name)} {stream.name} {self.seed}".encode())
                make = _mass_moved_at_random if stream.name == "pattern" else _moved_at_random
                changes[stream.name] = make(function, seed)
        return replace(edit, **changes)

    def control(self) -> None:
        """None: this is a control."""
