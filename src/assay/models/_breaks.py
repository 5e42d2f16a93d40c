"""Where another model breaks: the block that does something else, not those that inherit the error."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from assay._errors import AssayError
from assay._given import checked
from assay.engine import Engine, batches, tensors
from assay.subjects import Subject
from assay.tasks import Split

STANDS_OUT = 3.0
"""A block is the place where it breaks if its local error is so many times the median of the others."""

ROUNDING = 1e-5
"""Relative errors below this are the order of arithmetic: some ten times that of float32, after a block's sums."""

LARGE = 0.1
"""Relative accumulated error from which on a residual stream counts as another one."""


@dataclass(frozen=True)
class Breaks:
    """What two models do block by block on the valid positions of a split.

    `blocks` has a row a block: `local`, `accumulated` and `cosine`. All errors are relative, ‖h' − h‖ / ‖h‖ over all
    positions together, 0 where nothing differs. `local` is of what the other's block makes of the *subject's* input,
    and tells which blocks differ; `accumulated` is of the residual streams behind the block as they are, which carry on
    whatever went wrong before; `cosine` is the mean over positions of the cosine of those. NaN where `reason` says so.

    `suspect` is the first block whose local error stands out (above `STANDS_OUT` times the median of the others and
    above rounding); None if none does. `first_large` is the first whose accumulated error is above `LARGE`.
    """

    blocks: pd.DataFrame
    suspect: int | None
    first_large: int | None
    reason: str | None


class _Seen:
    """What each block of a model was given and gave back in one pass, on the valid positions."""

    def __init__(self, blocks: list[nn.Module], valid: Tensor, stack: ExitStack) -> None:
        self.given: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.after: dict[int, Tensor] = {}
        self.valid = valid.bool()
        for number, block in enumerate(blocks):
            stack.callback(block.register_forward_pre_hook(self._before(number), with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(self._behind(number)).remove)

    def _before(self, number: int) -> Callable[..., None]:
        def hook(block: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            self.given[number] = (inputs, options)

        return hook

    def _behind(self, number: int) -> Callable[..., None]:
        def hook(block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self.after[number] = self.residual(output)

        return hook

    def residual(self, output: Any) -> Tensor:
        """The residual stream of what a block gave back, at valid positions, in float64."""
        first = output[0] if isinstance(output, tuple) else output
        if not isinstance(first, Tensor) or first.shape[:2] != self.valid.shape:
            raise AssayError("a block does not give back one vector a token")
        return first[self.valid].double()


@checked
def breaks(subject: Subject, other: Subject, split: Split) -> Breaks:
    """Compare two models block by block on a split: which block differs, and how the error grows from there.

    Both need blocks that can be found (`assay.engine.Engine`). Where their number or width differs nothing is compared;
    where blocks are of another class or cannot be given the subject's input, `local` is not. Residual streams are those
    behind each block, before the final norm.
    """
    ours, theirs = Engine(subject), Engine(other)
    first, second = ours.modules, theirs.modules
    rows = pd.DataFrame({"layer": range(len(first)), "local": np.nan, "accumulated": np.nan, "cosine": np.nan})
    if len(first) != len(second):
        return Breaks(rows, None, None, f"the subject has {len(first)} blocks and the other model {len(second)}")
    alike = all(type(one) is type(two) for one, two in zip(first, second, strict=True))
    reason = None if alike else "the other model's blocks are of another class, so they do not take the same input"
    sums = np.zeros((len(first), 6))
    for _, batch in batches(ours, split):
        tokens, valid = tensors(batch, subject.device)
        with torch.no_grad(), ExitStack() as stack:
            of_subject = _Seen(first, valid, stack)
            subject(tokens, valid)
        with torch.no_grad(), ExitStack() as stack:
            of_other = _Seen(second, valid, stack)
            other(tokens, valid)
        for number, block in enumerate(second):
            here, there = of_subject.after[number], of_other.after[number]
            if here.shape != there.shape:
                return Breaks(rows, None, None, "the residual streams of the two models are not equally wide")
            cosine = nn.functional.cosine_similarity(here, there, dim=-1)
            sums[number, :4] += [*_squares(there - here, here), float(cosine.sum()), len(cosine)]
            if alike:
                inputs, options = of_subject.given[number]
                with torch.no_grad():
                    made = of_subject.residual(block(*inputs, **options))
                sums[number, 4:] += _squares(made - here, here)
    rows["accumulated"] = np.sqrt(sums[:, 0] / sums[:, 1])
    rows["cosine"] = sums[:, 2] / sums[:, 3]
    if alike:
        rows["local"] = np.sqrt(sums[:, 4] / sums[:, 5])
    large = rows.index[rows["accumulated"] > LARGE]
    return Breaks(rows, _suspect(rows["local"].to_numpy()), int(large[0]) if len(large) else None, reason)


def _squares(difference: Tensor, of: Tensor) -> tuple[float, float]:
    return float(difference.square().sum()), float(of.square().sum())


def _suspect(local: np.ndarray) -> int | None:
    """The first block whose local error stands out from the others'."""
    for number, error in enumerate(local):
        others = np.delete(local, number)
        usual = float(np.median(others)) if len(others) else 0.0
        if not math.isnan(error) and error > max(STANDS_OUT * usual, ROUNDING):
            return number
    return None
