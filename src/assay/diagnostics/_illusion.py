"""Does a patch along a direction show what the model does, or does it wake a path that sleeps on data?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay._errors import AssayError
from assay._given import checked
from assay.diagnostics._setting import CLEAR, Estimate, mean_of, share_of, smooth_of
from assay.faithfulness import RATE, Weights, every

Reading = Literal["faithful", "illusory", "no effect", "open"]

NEGLIGIBLE = 1e-6
"""The length below which a part of a unit direction is nothing."""

Activations = Float[Tensor, "pair *position width"]
Measure = Callable[[Activations], Float[Tensor, " pair"]]
"""m of every pair, from activations put in the place of the base's."""


@dataclass(frozen=True)
class Part:
    """A patch along a subspace, or along a part of it.

    `length` is that of the part of a unit direction, in [0, 1] (of a subspace the root mean square over orthonormal
    directions). `effect` is (m(base) - m(patched)) / (m(base) - m(source)), a ratio of means: 1 does all that another
    input does. `turned` is in how many pairs, as a share, m is below 0 with the patch: the source's answer leads.
    `movement` is how far the source is from the base along it, over how far it is along an average direction (root mean
    squares over pairs); NaN where there is no such part.
    """

    length: float
    effect: Estimate
    turned: Estimate
    movement: float

    def __str__(self) -> str:
        return f"{self.effect} of the effect (length {self.length:.2f}, movement {self.movement:.2g})"


@dataclass(frozen=True)
class SubspacePatch:
    """A patch along a subspace of activations, and along its two parts; see `subspace_patch`.

    `row` is the part that the weights behind the activations read, `null` the part that they do not; `activations` is
    the patch of all activations.
    """

    subspace: Part
    row: Part
    null: Part
    activations: Part
    verdict: Reading

    def __str__(self) -> str:
        return (
            f"{self.verdict}: the patch has {self.subspace}; its part that is read {self.row}; its part that is not "
            f"{self.null}; all activations {self.activations}"
        )


@checked
def subspace_patch(
    base: Activations,
    source: Float[Tensor, "..."],
    directions: Float[Tensor, "..."],
    weight: Float[Tensor, "..."],
    m: Measure,
    *,
    of_source: Float[Tensor, " pair"] | None = None,
    weights: Weights | None = None,
    level: float = 0.95,
) -> SubspacePatch:
    """Patch activations u along a subspace, and along the parts of it that the weights behind them read and do not.

    Shapes: `base` and `source` (pair, ..., width), `directions` (width,) or (width, direction), and `weight`
    (width, model).

    u' = u + (u_source - u) Q Qᵀ with Q orthonormal in the span of `directions`. What follows reads u @ `weight`. Its
    columns span the part of the space of u that is read, R; what is orthogonal to it is lost. The row part is the span
    of R Rᵀ Q and the null part that of Q - R Rᵀ Q, patched in the same way. The null part alone can do nothing; where
    it is what differs between the two inputs, and the row part hardly does, the patch along both writes along the row
    part what it reads along the null part: it wakes a path that sleeps on data.

    | verdict | when |
    |---|---|
    | no effect | the effect of the patch is not shown to be above 0 |
    | faithful | the row part alone is shown to have more than half of its effect |
    | illusory | it is shown to have less, and base and source are farther apart along the null part |
    | open | else |

    m is of pairs, as the logit difference of the base's answer and the source's; `of_source` is that of the run on the
    other input (default: with all of the source's activations put in). `weights` are those of the pairs for limits
    (default: all pairs differ).

    Source: Makelov, Lange and Nanda, arXiv 2311.17030, sections 3 and 4. Differences: subspaces of any dimension;
    ratios of means with limits; the movement, which needs no classes, in place of a separation of classes. Contested as
    an illusion: Wu et al., arXiv 2401.12631, who hold that what a patch wakes may be how the model represents. With a
    norm after `weight` effects of parts do not add. Where few numbers are read (one, say) the row part of any direction
    is all there is, and no patch is illusory by this test.

    Raises AssayError for shapes that do not fit, directions that are not independent, and where m of the source is not
    shown to differ from that of the base.
    """
    basis = _basis(directions, base.shape[-1])
    if base.shape != source.shape or weight.shape[0] != base.shape[-1]:
        raise AssayError(
            f"subspace_patch(): base {tuple(base.shape)}, source {tuple(source.shape)} and weight "
            f"{tuple(weight.shape)} do not fit; give two of one shape (pair, ..., width), and (width, model)."
        )
    own = every(len(base)) if weights is None else weights
    before = _numbers(m(base))
    after = _numbers(m(source) if of_source is None else of_source)
    scale = before - after
    clear = mean_of(scale, own, level=CLEAR)
    if not (clear.low > 0 or clear.high < 0):
        raise AssayError(
            f"subspace_patch(): nothing to patch: the source changes the mean of m by {clear.value:.3g}, and the 99% "
            f"interval [{clear.low:.3g}, {clear.high:.3g}] contains 0."
        )
    read = _read(weight)
    inside = read @ (read.T @ basis)
    more = (source - base).double()
    average = float(more.square().sum(dim=-1).mean() / base.shape[-1])
    changes: list[np.ndarray] = []

    def part(vectors: Float[Tensor, "width direction"]) -> Part:
        spanned, length = _span(vectors), float(vectors.square().sum() / basis.shape[1]) ** 0.5
        along = more @ spanned
        patched = _numbers(m(base + (along @ spanned.T).to(base)))
        changes.append(before - patched)
        dimensions = spanned.shape[1]
        moved = float(along.square().sum(dim=-1).mean()) / dimensions if dimensions else np.nan
        return Part(
            length,
            share_of(changes[-1], scale, own, level=level),
            mean_of((patched < 0).astype(float), own, level=level, bounds=RATE),
            (moved / average) ** 0.5 if average else np.nan,
        )

    whole, row, null = part(basis), part(inside), part(basis - inside)
    all_of_it = part(torch.eye(base.shape[-1], dtype=torch.float64, device=base.device))
    of_whole, of_row = changes[:2]
    beyond = smooth_of(
        lambda sums: np.asarray((sums[1] - sums[0] / 2) / sums[2]), (of_whole, of_row, scale), own, level=level
    )
    return SubspacePatch(whole, row, null, all_of_it, _verdict(whole, row, null, beyond))


def _verdict(whole: Part, row: Part, null: Part, beyond: Estimate) -> Reading:
    """From the parts, and the effect of the row part less half of the whole's."""
    if not whole.effect.low > 0:
        return "no effect"
    if beyond.low > 0:
        return "faithful"
    dormant = np.isnan(row.movement) or null.movement > row.movement
    return "illusory" if beyond.high < 0 and dormant else "open"


def _numbers(values: Float[Tensor, " pair"]) -> Float[np.ndarray, " pair"]:
    found: np.ndarray = values.detach().double().cpu().numpy()
    return found


def _basis(directions: Float[Tensor, "..."], width: int) -> Float[Tensor, "width direction"]:
    """An orthonormal basis of the span of directions."""
    columns = directions.detach().double()
    columns = columns[:, None] if columns.dim() == 1 else columns
    if columns.dim() != 2 or columns.shape[0] != width or not 1 <= columns.shape[1] <= width:
        raise AssayError(
            f"directions of shape {tuple(directions.shape)} for activations of width {width}; give ({width},), or a "
            f"matrix ({width}, directions) of at most as many."
        )
    lengths = columns.norm(dim=0)
    if not bool((lengths > 0).all()) or int(torch.linalg.matrix_rank(columns / lengths)) < columns.shape[1]:
        raise AssayError("the directions are not independent (or one is 0), so they span no subspace of their number.")
    found: Tensor = torch.linalg.qr(columns).Q
    return found


def _read(weight: Float[Tensor, "width model"]) -> Float[Tensor, "width read"]:
    """An orthonormal basis of the activations that a matrix reads; rounding of its own type is taken as 0."""
    left, sizes, _ = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    tolerance = max(weight.shape) * torch.finfo(weight.dtype).eps * float(sizes.max())
    found: Tensor = left[:, sizes > tolerance]
    return found


def _span(vectors: Float[Tensor, "width direction"]) -> Float[Tensor, "width found"]:
    """An orthonormal basis of the span of parts of unit directions; parts of no length are left out."""
    left, sizes, _ = torch.linalg.svd(vectors, full_matrices=False)
    found: Tensor = left[:, sizes > NEGLIGIBLE]
    return found
