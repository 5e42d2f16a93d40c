"""One counter of operations for every strategy, so that the lengths of proofs can be compared."""

from pydantic import BaseModel, ConfigDict


class Operations(BaseModel):
    """What a proof costs, counted the same way for every strategy.

    One operation is one addition, subtraction, multiplication or division (`arithmetic`), one comparison or maximum
    of two numbers (`comparisons`), or one exponential or logarithm (`exponentials`), on real numbers; a product of an
    n×k by a k×m matrix is 2nkm. Products of polynomials count as schoolbook products. Everything from the weights to
    the bound is counted, the tables included; the enclosure of rounding errors and the bookkeeping of indices are not,
    for any strategy.
    """

    model_config = ConfigDict(validate_assignment=True, extra="forbid", strict=True)

    arithmetic: int = 0
    comparisons: int = 0
    exponentials: int = 0

    @property
    def total(self) -> int:
        """All operations."""
        return self.arithmetic + self.comparisons + self.exponentials

    def add(self, *, arithmetic: int = 0, comparisons: int = 0, exponentials: int = 0) -> None:
        """Count some more."""
        self.arithmetic += arithmetic
        self.comparisons += comparisons
        self.exponentials += exponentials

    def product(self, rows: int, inner: int, columns: int) -> None:
        """Count a matrix product."""
        self.add(arithmetic=2 * rows * inner * columns)
