"""Controls of recipes on weights: noise, masks and subspaces that know nothing of the weights or the data."""

import copy
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from assay._errors import AssayError
from assay._given import check_fields
from assay.engine import Samples, WholeModel
from assay.models._weights import Linear, WeightRecipe, check_rank, check_share, linears, removed, with_weights
from assay.simplify import label, learns
from assay.subjects import Subject

Draw = Callable[..., Tensor]


def _drawn(draw: Draw, seed: int, linear: Linear, *shape: int) -> Tensor:
    """Random numbers for one matrix, in float64: the same on every device, other ones for every matrix and seed."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{linear.name} {seed}".encode()))
    return draw(*shape, generator=generator, dtype=torch.float64)


@dataclass
class NoiseWeights:
    """Move every row of the weights as far as another recipe on weights does, in a random direction.

    The noise of a row is Gaussian, scaled to the Euclidean norm of what `of` changes there: the control of equal size.
    What `of` loses beyond it is due to where the weights are moved; the rest to how far.
    """

    of: WeightRecipe
    seed: int = 0
    fitted_: WeightRecipe | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def learns(self) -> bool:
        """Whether the recipe that sets the size looks at data."""
        return learns(self.of)

    def fit(self, samples: Samples) -> "NoiseWeights":
        """Fit the recipe that sets the size."""
        self.fitted_ = None
        self.fitted_ = copy.deepcopy(self.of)
        self.fitted_.fit(samples)
        return self

    def apply(self, subject: Subject) -> WholeModel:
        """A copy of the subject with noise on its weights."""
        return with_weights(self, subject)

    def changed(self, linear: Linear) -> Float[Tensor, "out in"]:
        """The weight with noise."""
        if self.fitted_ is None:
            raise AssayError(f"{label(self)} has not been fitted; call fit(samples) before apply(subject).")
        weight = linear.weight
        length = (self.fitted_.changed(linear) - weight).norm(dim=1, keepdim=True)
        noise = _drawn(torch.randn, self.seed, linear, *weight.shape)
        return weight + length * (noise / noise.norm(dim=1, keepdim=True)).to(weight)

    def redrawn(self, number: int) -> "NoiseWeights":
        """The same control drawn again: the `number`-th other noise."""
        return replace(self, seed=self.seed + number)

    def control(self) -> None:
        """None: this is a control."""


@dataclass
class RandomMask:
    """Set a random `share` of each linear weight of the blocks to zero: what pruning has to beat.

    The mask depends on `seed` and the name of the weight alone; `share` is as for `PruneWeights`.
    """

    share: float
    seed: int = 0

    streams: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = True
    learns: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    def fit(self, samples: Samples) -> "RandomMask":
        """Nothing is learned."""
        check_share(self, self.share)
        return self

    def apply(self, subject: Subject) -> WholeModel:
        """A copy of the subject with a random part of its weights."""
        check_share(self, self.share)
        return with_weights(self, subject)

    def changed(self, linear: Linear) -> Float[Tensor, "out in"]:
        """The weight with zeros."""
        weight = linear.weight
        order = _drawn(torch.rand, self.seed, linear, weight.numel()).argsort()
        zeroed = order[: removed(self.share, weight.numel())].to(weight.device)
        return weight.flatten().index_fill(0, zeroed, 0.0).view_as(weight)

    def redrawn(self, number: int) -> "RandomMask":
        """The same control drawn again: the `number`-th other mask."""
        return replace(self, seed=self.seed + number)

    def control(self) -> None:
        """None: this is a control."""


@dataclass
class RandomFactors:
    """Project each linear weight of the blocks on a random subspace of `rank`: what a chosen one has to beat.

    It is a subspace of the outputs or of the inputs, whichever are fewer, and depends on `seed` and the name of the
    weight alone; `rank` is as for `LowRankWeights`.
    """

    rank: int
    seed: int = 0

    streams: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = True
    learns: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    def fit(self, samples: Samples) -> "RandomFactors":
        """Nothing is learned."""
        check_rank(self, self.rank)
        return self

    def apply(self, subject: Subject) -> WholeModel:
        """A copy of the subject with weights of low rank."""
        check_rank(self, self.rank, linears(subject))
        return with_weights(self, subject)

    def changed(self, linear: Linear) -> Float[Tensor, "out in"]:
        """The projected weight."""
        weight = linear.weight
        fewer = min(weight.shape)
        if self.rank >= fewer:
            return weight
        basis = torch.linalg.qr(_drawn(torch.randn, self.seed, linear, fewer, self.rank)).Q.to(weight)
        return basis @ (basis.T @ weight) if weight.shape[0] == fewer else (weight @ basis) @ basis.T

    def redrawn(self, number: int) -> "RandomFactors":
        """The same control drawn again: the `number`-th other subspace."""
        return replace(self, seed=self.seed + number)

    def control(self) -> None:
        """None: this is a control."""
