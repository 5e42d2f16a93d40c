"""Controls: simplifications that know nothing, and the one that changes nothing."""

import copy
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import one_hot

from assay._errors import AssayError
from assay._given import check_fields, checked
from assay.engine import ATTENTION, Edit, EditedSubject, Head, PatternEdit, Place, Samples, VectorEdit
from assay.simplify._protocol import Simplification, applied, check_positive, heads_of, label, proxy_of, vector_proxy
from assay.simplify._proxy import SimplifiedSubject
from assay.simplify._subspace import Subspace, check_rank
from assay.subjects import Subject


@dataclass
class RandomProjection:
    """Project each head's queries and keys, or another stream, on a random subspace of `rank`: what SVD has to beat.

    All streams of a place share the subspace, as queries and keys do in a joint SVD (one a width, where widths differ).
    It depends on `seed` and the place alone, not on data.
    One draw may be lucky: as a control it is drawn several times (`redrawn`), and its interval has their spread.
    """

    rank: int
    seed: int = 0
    subspaces_: dict[Place, tuple[Subspace, ...]] | None = field(default=None, init=False, repr=False, compare=False)
    streams_: dict[Place, tuple[str, ...]] | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ("queries",)
    any_stream: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    def check_parameters(self) -> None:
        """Raise AssayError for values that no subject could have."""
        check_positive(self, rank=self.rank)

    @checked
    def fit(self, samples: Samples) -> "RandomProjection":
        """Draw the subspace of each place; the samples only tell the width."""
        self.check_parameters()
        self.subspaces_ = None
        found: dict[Place, tuple[Subspace, ...]] = {}
        for place in samples.places:
            streams = samples.streams_of(place)
            widths = [vectors.shape[-1] for vectors in samples.of(place)]
            widths += widths[:1] * (len(streams) - len(widths))  # of queries and keys, one tells the width of both
            found[place] = tuple(self._subspace(place, width) for width in widths)
        self.subspaces_, self.streams_ = found, {place: samples.streams_of(place) for place in samples.places}
        return self

    def _subspace(self, place: Place, width: int) -> Subspace:
        check_rank(self.rank, width, label(self))
        number = place.head if isinstance(place, Head) else 999
        generator = torch.Generator().manual_seed((self.seed * 1_000 + place.layer) * 1_000 + number)
        gaussian = torch.randn(width, width, generator=generator, dtype=torch.float64)
        basis, _ = torch.linalg.qr(gaussian)
        return Subspace(basis[:, : self.rank], torch.zeros(width, dtype=torch.float64))

    @checked
    def apply(self, subject: Subject) -> SimplifiedSubject:
        """The subject with randomly projected vectors at the fitted places."""
        return vector_proxy(self, subject, self.subspaces_, self.streams_, Subspace.projection)

    def redrawn(self, number: int) -> "RandomProjection":
        """The same control drawn again: the `number`-th other subspace."""
        return replace(self, seed=self.seed + number)

    def control(self) -> None:
        """None: this is a control."""


@dataclass
class UniformAttention:
    """Attend equally to every position that the mask leaves visible: attention without any information."""

    heads_: tuple[Place, ...] | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()

    @checked
    def fit(self, samples: Samples) -> "UniformAttention":
        """Note the heads."""
        self.heads_ = heads_of(self, samples)
        return self

    @checked
    def apply(self, subject: Subject) -> SimplifiedSubject:
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

    The field's mean ablation, at each place and stream; every token gets the same vector. Source: arXiv 2211.00593,
    where means are by position, over inputs of the same templates; here there is one for all tokens.
    """

    means_: dict[Place, tuple[Tensor, ...]] | None = field(default=None, init=False, repr=False, compare=False)
    streams_: dict[Place, tuple[str, ...]] | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ATTENTION
    any_stream: ClassVar[bool] = True

    @checked
    def fit(self, samples: Samples) -> "MeanAblation":
        """Take the mean of each place's vectors, apart for each stream."""
        self.means_ = {
            place: tuple(vectors.double().mean(dim=0) for vectors in samples.of(place)) for place in samples.places
        }
        self.streams_ = {place: samples.streams_of(place) for place in samples.places}
        return self

    @checked
    def apply(self, subject: Subject) -> SimplifiedSubject:
        """The subject with mean vectors at the fitted places."""
        return vector_proxy(self, subject, self.means_, self.streams_, _constant)

    def control(self) -> None:
        """None: this is a control."""


def _constant(mean: Float[Tensor, " width"]) -> VectorEdit:
    def replace(vectors: Float[Tensor, "batch position width"]) -> Float[Tensor, "batch position width"]:
        return mean.to(vectors).expand_as(vectors)

    return replace


def _unchanged(vectors: Float[Tensor, "batch position width"]) -> Float[Tensor, "batch position width"]:
    return vectors


@dataclass
class Identity:
    """Change nothing, through all the machinery: its distance from the subject is numerical noise."""

    streams_: dict[Place, tuple[str, ...]] | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()
    any_stream: ClassVar[bool] = True

    @checked
    def fit(self, samples: Samples) -> "Identity":
        """Note the places."""
        self.streams_ = {place: samples.streams_of(place) for place in samples.places}
        return self

    @checked
    def apply(self, subject: Subject) -> SimplifiedSubject:
        """The subject with edits that give back what they get, at the fitted places."""
        found = self.streams_ or {}

        def edit(place: Place) -> Edit:
            streams = found[place]
            functions: dict[str, Any] = dict.fromkeys(streams, _unchanged)
            if set(ATTENTION) <= set(streams):
                functions["pattern"] = lambda pattern, _: pattern
            return Edit(place, **functions)

        return proxy_of(self, subject, tuple(found) or None, edit)

    def control(self) -> None:
        """None: this is a control."""


_WAVES = 128
_FREQUENCY = 20.0


def _moved_at_random(edit: Callable[..., Tensor], seed: int) -> Callable[..., Tensor]:
    """Move every vector as far as `edit` does, in a direction that has nothing to do with it.

    The vector is the last that it is given: what an MLP gives comes behind what enters it.
    """
    drawn: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def draw(width: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return (
            torch.randn(width, _WAVES, generator=generator, dtype=torch.float64),
            torch.rand(_WAVES, generator=generator, dtype=torch.float64) * 2 * torch.pi,
            torch.randn(_WAVES, width, generator=generator, dtype=torch.float64),
        )

    def move(*given: Float[Tensor, "batch position _"]) -> Float[Tensor, "batch position _"]:
        vectors = given[-1]
        here = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
        length = (edit(*given).to(here) - here).norm(dim=-1, keepdim=True)
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

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def streams(self) -> tuple[str, ...]:
        """Those of the simplification that sets the size."""
        return self.of.streams

    @property
    def any_stream(self) -> bool:
        """Whether the simplification that sets the size acts on any stream."""
        return getattr(self.of, "any_stream", False)

    @property
    def streams_rows(self) -> bool:
        """Whether the simplification that sets the size takes its vectors as rows."""
        return getattr(self.of, "streams_rows", False)

    @checked
    def fit(self, samples: Samples) -> "RandomPerturbation":
        """Fit the simplification that sets the size."""
        self.fitted_ = None
        return self.around(copy.deepcopy(self.of).fit(samples))

    def around(self, fitted: Simplification) -> "RandomPerturbation":
        """Take the simplification that sets the size as it was fitted already."""
        self.fitted_ = fitted
        return self

    @checked
    def apply(self, subject: Subject) -> SimplifiedSubject:
        """The subject with vectors and patterns moved at random."""
        if self.fitted_ is None:
            raise AssayError(f"{label(self)} has not been fitted; call fit(samples) before apply(subject).")
        moved = applied(self.fitted_, subject)
        if not isinstance(moved, EditedSubject):
            raise AssayError(
                f"{label(self)}: {label(self.of)} makes no edits of the subject, so nothing says what to move; a "
                "recipe of another kind has a perturbation() of its own, or says whole = True."
            )
        return SimplifiedSubject(subject, [self._instead_of(edit) for edit in moved.edits], self)

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
