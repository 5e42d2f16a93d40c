"""Weights set to zero."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from assay._errors import AssayError
from assay._given import check_fields, checked
from assay.engine import Samples, WholeModel
from assay.models._controls import RandomMask
from assay.models._weights import (
    WHAT_STAYS,
    Linear,
    accumulator,
    check_share,
    learned_of,
    linears,
    over_inputs,
    removed,
    with_weights,
)
from assay.simplify import label, source_of
from assay.subjects import Subject
from assay.tasks import Split

Importance = Literal["magnitude", "activation"]
"""By what weights are chosen: their size, or that times the size of what they are multiplied with."""


@dataclass
class PruneWeights:
    """Set the least important `share` of the linear weights of the blocks to zero; from 0 to below 1.

    By "magnitude", the smallest |W_ij| of each matrix go. By "activation", those of each row with the smallest
    |W_ij| · ‖x_j‖₂, the norm of input j over the valid positions of the train split. Of n weights, `share` · n go,
    rounded to a whole number; of equals, those that stand first. Embeddings, norms, biases and the output head stay.

    Source: arXiv 2306.11695 (Wanda) for "activation", with its comparison within rows. Raises AssayError for a share
    outside [0, 1) and an unknown `by`.
    """

    share: float
    by: Importance = "magnitude"
    norms_: dict[str, Tensor] | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = True
    caution: ClassVar[str] = WHAT_STAYS

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def learns(self) -> bool:
        """Whether activations are looked at."""
        return self.by == "activation"

    def check(self, subject: Subject, splits: Sequence[Split]) -> None:
        """Raise AssayError for bad parameters or a subject without blocks."""
        self.check_parameters()
        linears(subject)

    @checked
    def fit(self, samples: Samples) -> "PruneWeights":
        """Measure the inputs of every linear map, where activations count."""
        self.check_parameters()
        self.norms_ = None
        if self.learns:
            chosen = linears(source_of(self, samples)[0])
            squares = {one.name: accumulator(one, one.shape[1]) for one in chosen}

            def add(linear: Linear, inputs: Float[Tensor, "token in"]) -> None:
                squares[linear.name] += inputs.square().sum(dim=0)

            over_inputs(self, samples, chosen, add)
            self.norms_ = {name: total.sqrt().cpu() for name, total in squares.items()}
        return self

    @checked
    def apply(self, subject: Subject) -> WholeModel:
        """A copy of the subject without the least important weights."""
        self.check_parameters()
        return with_weights(self, subject)

    def changed(self, linear: Linear) -> Float[Tensor, "out in"]:
        """The weight with zeros."""
        weight = linear.weight
        importance = weight.abs() if self.by == "magnitude" else self._with_inputs(weight.abs(), linear)
        lines = importance.reshape(1, -1) if self.by == "magnitude" else importance
        first = lines.argsort(dim=1, stable=True)[:, : removed(self.share, lines.shape[1])]
        return weight.view(lines.shape).scatter(1, first, 0.0).view_as(weight)

    def _with_inputs(self, size: Float[Tensor, "out in"], linear: Linear) -> Float[Tensor, "out in"]:
        norms = learned_of(self, self.norms_, linear)
        return size * norms.to(size)

    def check_parameters(self) -> None:
        """Raise AssayError for values that no subject could have."""
        check_share(self, self.share)
        if self.by not in get_args(Importance):
            raise AssayError(f"{label(self)}: by must be {' or '.join(map(repr, get_args(Importance)))}.")

    def control(self) -> RandomMask:
        """As many weights, chosen at random."""
        return RandomMask(self.share)
