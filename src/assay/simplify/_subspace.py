"""Projection of queries and keys on subspaces, shared by everything that keeps a few directions."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from assay._errors import AssayError
from assay.engine import VectorEdit


@dataclass(frozen=True)
class Subspace:
    """An affine subspace: the points `mean + span(basis)`; `basis` (width, rank) has orthonormal columns."""

    basis: Float[Tensor, "width rank"]
    mean: Float[Tensor, " width"]

    def __post_init__(self) -> None:
        # Products round differently in another memory layout, and a saved basis comes back in this one.
        object.__setattr__(self, "basis", self.basis.contiguous())

    def projection(self) -> VectorEdit:
        """Map every vector to the nearest point of the subspace, in the dtype and on the device of the vector."""

        def project(vectors: Float[Tensor, "batch position width"]) -> Float[Tensor, "batch position width"]:
            basis, mean = self.basis.to(vectors), self.mean.to(vectors)
            return mean + ((vectors - mean) @ basis) @ basis.T

        return project


def check_rank(rank: int, width: int, call: str) -> None:
    """Raise AssayError if a rank does not fit vectors of this width."""
    if rank > width:
        raise AssayError(f"{call}: the heads have width {width}, so rank must be between 1 and {width}.")
