"""Vectors in directions that the next layer depends on, by the interaction basis."""

import functools
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay._errors import AssayError
from assay._given import check_fields, checked
from assay.engine import Edit, Engine, Place, Samples, VectorEdit, collect, tensors
from assay.engine._frozen import frozen
from assay.simplify._protocol import check_positive, label, source_of, vector_proxy
from assay.simplify._proxy import SimplifiedSubject
from assay.simplify._svd import SVD
from assay.subjects import Subject
from assay.tasks import Split

TOKENS, SOURCES = 16_384, 4
"""Tokens of the train split on which derivatives are taken (of whole sequences), and how often at each."""

POINTS = 4
"""Where on the line from the mean to the vector derivatives are taken, if they are not taken at the vector itself."""

TOKENS_AT_A_TIME = 1_024

DEAD = 1e-10
"""The share of the largest eigenvalue at or below which a direction is taken as not there."""

_ROWS = 8_192


@dataclass(frozen=True)
class Basis:
    """Features f = (x - mean) @ `into` of vectors x, and the vectors mean + f @ `back` that are made of them.

    Their covariance is the diagonal matrix of `sizes`, which descend. Shapes: `mean` (width,), `into` (width, feature),
    `back` (feature, width), `sizes` (feature,).
    """

    mean: Float[Tensor, " width"]
    into: Float[Tensor, "width feature"]
    back: Float[Tensor, "feature width"]
    sizes: Float[Tensor, " feature"]

    def first(self, features: int) -> "Basis":
        """The largest features alone."""
        # Products round differently in another memory layout, and a saved basis comes back in this one.
        into, back = self.into[:, :features].contiguous(), self.back[:features].contiguous()
        return Basis(self.mean, into, back, self.sizes[:features])

    def edit(self) -> VectorEdit:
        """Replace every vector by what its features make, in the dtype and on the device of the vector."""

        def replace(vectors: Float[Tensor, "batch position width"]) -> Float[Tensor, "batch position width"]:
            mean, into, back = self.mean.to(vectors), self.into.to(vectors), self.back.to(vectors)
            return mean + ((vectors - mean) @ into) @ back

        return replace


def moments(samples: Float[Tensor, "sample width"]) -> tuple[Float[Tensor, " width"], Float[Tensor, "width width"]]:
    """Mean and covariance of vectors, in float64."""
    mean = samples.sum(dim=0, dtype=torch.float64) / len(samples)
    covariance = torch.zeros(samples.shape[1], samples.shape[1], dtype=torch.float64)
    for rows in samples.split(_ROWS):
        moved = rows.double() - mean
        covariance.addmm_(moved.T, moved)
    return mean, covariance / len(samples)


def basis_of(
    mean: Float[Tensor, " width"],
    covariance: Float[Tensor, "width width"],
    influence: Float[Tensor, "width width"],
) -> Basis:
    """The interaction basis of vectors x, all in float64, with all features that there are.

    `covariance` is that of x, G = U D Uᵀ without the directions that hardly vary, and `influence` M' = E[JᵀJ] with J
    the derivative of what follows. With R = U D^(-1/2) and R⁺ = D^(1/2) Uᵀ,

        R⁺ M' R⁺ᵀ = V Λ Vᵀ,    C = R V Λ^(1/2),    C⁺ = Λ^(-1/2) Vᵀ R⁺,

    the largest of Λ first, without those next to 0.
    """
    variances, directions = torch.linalg.eigh(covariance)
    alive = variances > DEAD * variances.max()
    lengths, directions = variances[alive].sqrt(), directions[:, alive]
    whiten, colour = directions / lengths, lengths[:, None] * directions.T
    sizes, turned = torch.linalg.eigh(colour @ influence @ colour.T)
    sizes, turned = sizes.flip(0), turned.flip(1)
    if len(sizes):
        felt = sizes > DEAD * sizes.max()
        sizes, turned = sizes[felt], turned[:, felt]
    scale = sizes.sqrt()
    return Basis(mean, whiten @ turned * scale, (turned / scale).T @ colour, sizes)


@dataclass
class InteractionBasis:
    """Keep the `features` directions of each place's vectors that what follows depends on most.

    Of directions in which vectors vary much, and those which the next layer feels much, it keeps the ones in which both
    together are large: x becomes m + (x - m) C C⁺ with C the largest features of `basis_of`, a projection that is
    oblique as a rule. If what follows were linear in x, it would lose the sum of the sizes Λ that are left out, and no
    other `features` directions would lose less. Two directions that the model cannot tell apart cost nothing: dead ones
    (vectors do not vary there) and those that nothing reads are left out, so there may be fewer features than asked
    for. A direction that is dead on the train split may be alive on a shift: then all that is there is lost.

    J is the derivative of the residual stream that enters the next block, in the coordinates of its own interaction
    basis, which is found first, and so on from the last block, for which it is that of the logits (less their mean, as
    softmax sees them). With `local` it is taken at the vector (the local interaction basis), otherwise it is averaged
    on the line from the mean to the vector (integrated gradients; the vectors of a layer move together). M' is
    estimated by reverse mode: with random signs on all outputs of a sequence at once, `SOURCES` times on some `TOKENS`
    tokens drawn from `seed`.

    Source: arXiv 2405.10927 (interaction basis) and 2405.10928 (local). Differences: the mean is taken off, and nothing
    folded in; nodes are residual streams between blocks, whatever the place; the derivative on the line is averaged as
    a matrix; thresholds are relative; interactions are not drawn. On language models the second paper finds no
    substantial gain over PCA, which is therefore the control.

    After `fit`, `bases_` has them by place, one a stream. `fit` raises AssayError if `features` exceeds the width.
    """

    features: int
    local: bool = True
    seed: int = 0
    bases_: dict[Place, tuple[Basis, ...]] | None = field(default=None, init=False, repr=False, compare=False)
    streams_: dict[Place, tuple[str, ...]] | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ("queries", "keys")
    any_stream: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    def check_parameters(self) -> None:
        """Raise AssayError for values that no subject could have."""
        check_positive(self, features=self.features)

    @checked
    def fit(self, samples: Samples) -> "InteractionBasis":
        """Find the basis of each place's streams."""
        self.check_parameters()
        subject, split = source_of(self, samples)
        self.bases_ = None
        for place in samples.places:
            width = min(vectors.shape[-1] for vectors in samples.of(place))
            if self.features > width:
                raise AssayError(
                    f"{label(self)}: vectors of {place} have width {width}, so features must be between 1 and {width}."
                )
        with frozen(subject.model):
            follows = _Following(subject, split, samples, local=self.local, seed=self.seed)
            found = {place: follows.bases(place) for place in samples.places}
        self.streams_ = {place: samples.streams_of(place) for place in samples.places}
        self.bases_ = {place: tuple(one.first(self.features) for one in own) for place, own in found.items()}
        return self

    @checked
    def apply(self, subject: Subject) -> SimplifiedSubject:
        """The subject with the chosen features alone at the fitted places."""
        return vector_proxy(self, subject, self.bases_, self.streams_, Basis.edit)

    def control(self) -> SVD:
        """As many principal components: directions in which vectors vary, whatever is made of them."""
        return SVD(self.features, joint=False, centred=True)

    def saved(self) -> dict[str, Any]:
        """All that it holds, in plain values and tensors."""
        return {
            "parameters": {"features": self.features, "local": self.local, "seed": self.seed},
            "streams": self.streams_,
            "bases": {place: [vars(one) for one in own] for place, own in (self.bases_ or {}).items()},
        }

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> "InteractionBasis":
        """One again of what `saved` gave."""
        made = cls(**saved["parameters"])
        made.streams_ = saved["streams"]
        made.bases_ = {place: tuple(Basis(**one) for one in own) for place, own in saved["bases"].items()}
        return made


class _WithGradients(Subject):
    """A subject whose passes can be differentiated."""

    @property
    def _without_gradients(self) -> type[torch.enable_grad]:  # type: ignore[override]
        return torch.enable_grad


class _Differentiable(Engine):
    """An engine whose passes can be differentiated: its faster kernels have no derivative, or work in place."""

    @property
    def _kernels(self) -> dict[nn.Module, Any]:
        return {}


Stream = tuple[Place, str]


class _Following:
    """What follows each place of a subject, and the bases that it gives.

    The residual stream that enters block n (counted from 0) is node n, and the logits are the last node.
    """

    def __init__(self, subject: Subject, split: Split, samples: Samples, *, local: bool, seed: int) -> None:
        self.samples, self.seed = samples, seed
        self.part = _some(split, seed)
        self.engine = _Differentiable(
            _WithGradients(**{item.name: getattr(subject, item.name) for item in fields(subject)})
        )
        nodes, weights = np.polynomial.legendre.leggauss(POINTS)
        self.points = [(1.0, 1.0)] if local else list(zip((nodes + 1) / 2, weights / 2, strict=True))
        self._nodes: dict[int, Basis] = {}
        self._influences: dict[tuple[int, int], dict[Stream, Tensor]] = {}

    def bases(self, place: Place) -> tuple[Basis, ...]:
        """The basis of each stream of a place."""
        found = []
        for stream, vectors in zip(self.samples.streams_of(place), self.samples.of(place), strict=True):
            own, behind = self._number(place), self._behind(place, stream)
            if (own, behind) not in self._influences:
                there = {
                    (other, name): states
                    for other in self.samples.places
                    for name, states in zip(self.samples.streams_of(other), self.samples.of(other), strict=True)
                    if (self._number(other), self._behind(other, name)) == (own, behind)
                }
                means = {one: moments(states)[0] for one, states in there.items()}
                self._influences[own, behind] = self.influences(means, behind)
            found.append(basis_of(*moments(vectors), self._influences[own, behind][place, stream]))
        return tuple(found)

    def _number(self, place: Place) -> int:
        """The number of a place's block."""
        return sum(block.layer <= place.layer for block in self.engine.blocks) - 1

    def _behind(self, place: Place, stream: str) -> int:
        """The node behind a stream: what leaves a block is the next one itself."""
        return min(self._number(place) + (2 if stream == "after" else 1), len(self.engine.blocks))

    @cached_property
    def _residual(self) -> Mapping[Place, Float[Tensor, "sample width"]]:
        """What enters each block."""
        return collect(self.engine, self.part, ("residual",)).residual

    def node(self, number: int) -> Basis:
        """The basis of what enters a block."""
        if number not in self._nodes:
            block = self.engine.blocks[number]
            mean, covariance = moments(self._residual[block])
            stream: Stream = (block, "residual")
            influence = self.influences({stream: mean}, number + 1)[stream]
            self._nodes[number] = basis_of(mean, covariance, influence)
        return self._nodes[number]

    def influences(self, means: Mapping[Stream, Tensor], behind: int) -> dict[Stream, Float[Tensor, "width width"]]:
        """M' of streams of one block, whose means are given, for a node behind them: (width, width) each, in float64.

        It is a mean over tokens and random signs.
        """
        found = {stream: torch.zeros(len(mean), len(mean), dtype=torch.float64) for stream, mean in means.items()}
        order = np.argsort(self.part.lengths, kind="stable")
        parts = min(len(order), math.ceil(self.part.lengths.sum() / TOKENS_AT_A_TIME))
        for number, index in enumerate(np.array_split(order, parts)):
            tokens, valid = tensors(self.part.take(index), self.engine.subject.device)
            for gradients in self._gradients(tokens, valid, means, behind, f"{self.seed} {behind} {number}"):
                for stream, gradient in gradients.items():
                    rows = gradient[valid.bool()].double().cpu()
                    found[stream].addmm_(rows.T, rows)
        return {stream: total / (int(self.part.lengths.sum()) * SOURCES) for stream, total in found.items()}

    def _gradients(
        self,
        tokens: Tensor,
        valid: Tensor,
        means: Mapping[Stream, Tensor],
        behind: int,
        draw: str,
    ) -> Sequence[dict[Stream, Tensor]]:
        """Of each source: the derivative of all outputs of the batch, with random signs, for every stream."""
        found: list[dict[Stream, Tensor]] = [{} for _ in range(SOURCES)]
        block = None if behind == len(self.engine.blocks) else self.engine.blocks[behind]
        into = None if block is None else self.node(behind).into
        for at, weight in self.points:
            with torch.inference_mode(mode=False), torch.enable_grad():
                asked: dict[Stream, Tensor] = {}
                by_place: dict[Place, dict[str, Any]] = {}
                for (place, name), mean in means.items():
                    put = functools.partial(_put, asked, (place, name), mean, float(at))
                    by_place.setdefault(place, {})[name] = put
                run = self.engine.run(
                    tokens,
                    valid,
                    edits=[Edit(place, **edits) for place, edits in by_place.items()],
                    read=() if block is None else ("residual",),
                )
                outputs = run.logits if block is None else run.residual[block.layer]
                for source, sums in enumerate(found):
                    signs = self._signs(outputs, into, f"{draw} {source}") * valid[..., None].to(outputs)
                    gradients = torch.autograd.grad(
                        outputs,
                        list(asked.values()),
                        signs,
                        retain_graph=source + 1 < SOURCES,
                        materialize_grads=True,
                    )
                    for stream, gradient in zip(asked, gradients, strict=True):
                        sums[stream] = sums.get(stream, 0) + weight * gradient
        return found

    def _signs(self, outputs: Tensor, into: Float[Tensor, "width feature"] | None, draw: str) -> Tensor:
        """What multiplies outputs: random signs of their features, or of logits, whose mean does not matter."""
        generator = torch.Generator().manual_seed(zlib.crc32(draw.encode()))
        width = outputs.shape[-1] if into is None else into.shape[1]
        signs = (torch.randint(2, (*outputs.shape[:2], width), generator=generator) * 2 - 1).to(outputs)
        if into is not None:
            return signs @ into.T.to(outputs)
        return signs if self.engine.subject.objective == "embedding" else signs - signs.mean(dim=-1, keepdim=True)


def _put(asked: dict[Stream, Tensor], stream: Stream, mean: Tensor, at: float, vectors: Tensor) -> Tensor:
    """An edit that moves vectors to a point of the line from their mean, and notes what derivatives are asked for."""
    moved = vectors.clone() if at == 1 else mean.to(vectors) + at * (vectors - mean.to(vectors))
    asked[stream] = moved if moved.requires_grad else moved.requires_grad_(True)
    return asked[stream]


def _some(split: Split, seed: int) -> Split:
    """Sequences of a split, drawn until they have `TOKENS` tokens: at least one."""
    order = np.random.default_rng(seed).permutation(len(split))
    before = np.cumsum(split.lengths[order]) - split.lengths[order]
    return split.take(np.sort(order[before < TOKENS]))
