"""Weights of low rank."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from assay._errors import AssayError
from assay._given import check_fields, checked
from assay.engine import Samples, WholeModel
from assay.models._controls import RandomFactors
from assay.models._weights import (
    WHAT_STAYS,
    Linear,
    accumulator,
    check_rank,
    learned_of,
    linears,
    over_inputs,
    with_weights,
)
from assay.simplify import label, source_of
from assay.subjects import Subject
from assay.tasks import Split

LARGEST = 1_000_000_000
"""The most bytes of second moments that are gathered in one pass over the split."""

_RIDGE = 1e-6
"""What is added to second moments, as a part of the mean of their diagonal: directions that never occur count little,
not nothing."""

Criterion = Literal["weights", "activation"]
"""What is to change least: the weight, or what it gives for the inputs that occur."""


@dataclass
class LowRankWeights:
    """Keep `rank` directions of the outputs of every linear weight W (out, in) of the blocks: W' = U Uᵀ W.

    By "weights", U are the leading left singular vectors of W, so that ‖W − W'‖ is least (Frobenius). By
    "activation", those of W L, where L Lᵀ = XᵀX is the second moment of the inputs over the valid positions of the
    train split (with 1e-6 of the mean of its diagonal added to it), so that the outputs change least in the sense of
    squares: no other W' of the rank gives a smaller ‖X (W − W')ᵀ‖. Matrices that have no higher rank stay as they are
    (the comparison's warnings name one), and so do embeddings, norms, biases and the output head.

    Source: arXiv 2403.07378 (SVD-LLM) for "activation"; it cuts the singular values of W L and multiplies by L⁻¹,
    which is the same map. Raises AssayError for a rank that no matrix has and an unknown `by`.
    """

    rank: int
    by: Criterion = "weights"
    bases_: dict[str, Tensor] | None = field(default=None, init=False, repr=False, compare=False)
    unchanged_: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def learns(self) -> bool:
        """Whether activations are looked at."""
        return self.by == "activation"

    @property
    def caution(self) -> str:
        """What stays, and which matrices `check` found to have no higher rank."""
        if not self.unchanged_:
            return WHAT_STAYS
        more = f" and {len(self.unchanged_) - 1} more" if len(self.unchanged_) > 1 else ""
        return f"{WHAT_STAYS} {label(self)} leaves {self.unchanged_[0]}{more} unchanged: its rank is no higher."

    def check(self, subject: Subject, splits: Sequence[Split]) -> None:
        """Note which matrices stay. Raises AssayError for bad parameters or a subject without blocks."""
        chosen = linears(subject)
        self.check_parameters(chosen)
        self.unchanged_ = tuple(one.name for one in chosen if min(one.shape) <= self.rank)

    @checked
    def fit(self, samples: Samples) -> "LowRankWeights":
        """Find the directions of every weight that has more than `rank`."""
        subject, _ = source_of(self, samples)
        chosen = linears(subject)
        self.check_parameters(chosen)
        self.bases_ = None
        chosen = tuple(one for one in chosen if min(one.shape) > self.rank)
        found: dict[str, Tensor] = {}
        for together in _passes(chosen) if self.learns else ():
            moments = {one.name: accumulator(one, one.shape[1], one.shape[1]) for one in together}

            def add(linear: Linear, inputs: Float[Tensor, "token in"], moments: dict[str, Tensor] = moments) -> None:
                moments[linear.name].addmm_(inputs.T, inputs)

            over_inputs(self, samples, together, add)
            found |= {one.name: self._basis(one, moments.pop(one.name)) for one in together}
        if not self.learns:
            found = {one.name: self._basis(one, None) for one in chosen}
        self.bases_ = found
        return self

    def _basis(self, linear: Linear, moment: Float[Tensor, "in in"] | None) -> Float[Tensor, "out rank"]:
        weight = linear.weight
        wide = (weight.cpu() if weight.device.type == "mps" else weight).double()
        if moment is not None:
            mean = float(moment.diagonal().mean())
            moment.diagonal().add_(_RIDGE * mean or 1.0)
            wide = wide @ torch.linalg.cholesky(moment)
        left = torch.linalg.svd(wide, full_matrices=False).U
        return left[:, : self.rank].to(weight.dtype).cpu().clone()

    @checked
    def apply(self, subject: Subject) -> WholeModel:
        """A copy of the subject with weights of low rank."""
        self.check_parameters(linears(subject))
        return with_weights(self, subject)

    def changed(self, linear: Linear) -> Float[Tensor, "out in"]:
        """The weight of low rank."""
        weight = linear.weight
        if min(weight.shape) <= self.rank and self.bases_ is not None:
            return weight
        basis = learned_of(self, self.bases_, linear).to(weight)
        return basis @ (basis.T @ weight)

    def check_parameters(self, chosen: Sequence[Linear] = ()) -> None:
        """Raise AssayError for values that no subject could have, or not one with these linear maps."""
        check_rank(self, self.rank, chosen)
        if self.by not in get_args(Criterion):
            raise AssayError(f"{label(self)}: by must be {' or '.join(map(repr, get_args(Criterion)))}.")

    def control(self) -> RandomFactors:
        """A random subspace of the same rank."""
        return RandomFactors(self.rank)


def _passes(chosen: Sequence[Linear]) -> Iterator[list[Linear]]:
    """The linear maps, as many at a time as have room for their second moments."""
    together: list[Linear] = []
    held = 0
    for linear in chosen:
        size = 8 * linear.shape[1] ** 2
        if together and held + size > LARGEST:
            yield together
            together, held = [], 0
        together.append(linear)
        held += size
    if together:
        yield together
