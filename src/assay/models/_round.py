"""Weights rounded to a few bits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from assay._errors import AssayError
from assay._given import check_fields, checked
from assay.engine import Samples, WholeModel
from assay.models._controls import NoiseWeights
from assay.models._weights import WHAT_STAYS, Linear, linears, with_weights
from assay.simplify import label
from assay.subjects import Subject
from assay.tasks import Split


@dataclass
class RoundWeights:
    """Round the linear weights of the blocks to `bits` bits each, with a scale for every group of `group` inputs.

    A group is a piece of a row of W (out, in); None takes the whole row, and so does a matrix whose rows are no
    multiple of `group` (the comparison's warnings name it). Symmetric, with h = 2^(bits - 1) - 1:

        s = max|w| / h,  w' = s clip(round(w / s), -h - 1, h)

    Asymmetric, the range widened to hold 0 and with a whole zero point z = round(-min w / s):

        s = (max w - min w) / (2^bits - 1),  w' = s (clip(round(w / s) + z, 0, 2^bits - 1) - z)

    Scales are float16 numbers: the nearest, or the next above where the largest weight would be clipped by more than
    half a step (with many bits, and where scales are so small that float16 has few digits of them). Halves are rounded
    to even. Embeddings, norms, biases and the output head stay.

    This is rounding to nearest as most formats of quantized models do it, without any of their refinements. It has
    no control: it does not have to beat noise of equal size, which stands beside it (`perturbation`) and tells whether
    the size of the change alone explains the result. Raises AssayError unless `bits` is 2 to 16 and `group` at least 1.
    """

    bits: int
    group: int | None = None
    symmetric: bool = True
    by_row_: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = True
    learns: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def caution(self) -> str:
        """What stays, and where `check` found a matrix whose rows cannot be cut into groups."""
        if not self.by_row_:
            return WHAT_STAYS
        more = f" and {len(self.by_row_) - 1} more" if len(self.by_row_) > 1 else ""
        return (
            f"{WHAT_STAYS} {label(self)} has one scale a row, not groups of {self.group}, in {self.by_row_[0]}{more}: "
            "the rows are no multiple of it."
        )

    def check(self, subject: Subject, splits: Sequence[Split]) -> None:
        """Note which matrices are rounded by row. Raises AssayError for bad parameters or a subject without blocks."""
        self.check_parameters()
        rows = {one.name: one.shape[1] for one in linears(subject)}
        self.by_row_ = tuple(name for name, width in rows.items() if self.group is not None and width % self.group)

    @checked
    def fit(self, samples: Samples) -> "RoundWeights":
        """Nothing is learned."""
        self.check_parameters()
        return self

    @checked
    def apply(self, subject: Subject) -> WholeModel:
        """A copy of the subject with rounded weights."""
        self.check_parameters()
        return with_weights(self, subject)

    def changed(self, linear: Linear) -> Float[Tensor, "out in"]:
        """The rounded weight."""
        weight = linear.weight
        rounded = self._rounded(weight.reshape(-1, self.width_of_group(weight.shape[1])))
        return rounded.view_as(weight)

    def width_of_group(self, width: int) -> int:
        """How many weights share a scale in rows of a width."""
        return width if self.group is None or width % self.group else self.group

    def _rounded(self, groups: Float[Tensor, "group width"]) -> Float[Tensor, "group width"]:
        if self.symmetric:
            largest = 2 ** (self.bits - 1) - 1
            scale = _as_half(groups.abs().amax(dim=1, keepdim=True) / largest, largest)
            whole = (groups / scale).round().clamp(-largest - 1, largest)
            return scale * whole
        levels = 2**self.bits - 1
        low = groups.amin(dim=1, keepdim=True).clamp(max=0)
        scale = _as_half((groups.amax(dim=1, keepdim=True).clamp(min=0) - low) / levels, levels)
        zero = (-low / scale).round()
        return scale * (((groups / scale).round() + zero).clamp(0, levels) - zero)

    def check_parameters(self) -> None:
        """Raise AssayError for values that no subject could have."""
        if not _is_whole_number(self.bits) or not 2 <= self.bits <= 16:
            raise AssayError(f"{label(self)}: bits must be a whole number from 2 to 16.")
        if self.group is not None and (not _is_whole_number(self.group) or self.group < 1):
            raise AssayError(f"{label(self)}: group must be a whole number of at least 1, or None for whole rows.")

    def perturbation(self) -> NoiseWeights:
        """Noise as large as the rounding error."""
        return NoiseWeights(self)

    def control(self) -> None:
        """None: rounding need not beat noise of its own size, which `perturbation` is."""


def _is_whole_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _as_half(scale: Float[Tensor, "group 1"], levels: int) -> Float[Tensor, "group 1"]:
    """The nearest float16 numbers, or the next above where `levels` of them fall short by more than half a one.

    None is 0: a group of zeros has the smallest number there is.
    """
    near = scale.half()
    short = near.to(scale) * (levels + 0.5) < scale * levels
    bits = near.view(torch.int16) + (short | (near == 0)).to(torch.int16)
    return bits.view(torch.float16).to(scale)
