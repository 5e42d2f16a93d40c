"""Exact matrices: floating-point weights are integers times a power of two, and so are their products."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ldexp
from types import ModuleType

import numpy as np
from jaxtyping import Float

from assay._errors import AssayError

try:
    import flint as _flint
except ImportError:  # pragma: no cover - the tests install the extra
    _flint = None  # type: ignore[assignment]


def flint() -> ModuleType:
    """The library python-flint. Raises AssayError if it is not installed."""
    if _flint is None:
        raise AssayError("proofs need python-flint, which is not installed: pip install 'assay-interp[proofs]'.")
    module: ModuleType = _flint
    return module


@dataclass(frozen=True)
class ExactMatrix:
    """A matrix of integers (`numerators`, a `fmpz_mat`) times 2 to the power `exponent`."""

    numerators: "object"
    exponent: int

    @staticmethod
    def of(values: Float[np.ndarray, "row column"]) -> "ExactMatrix":
        """The exact value of floating-point numbers. Raises AssayError if one is not finite."""
        if not np.isfinite(values).all():
            raise AssayError("a weight is not finite; nothing can be certified about this model.")
        mantissa, exponent = np.frexp(values.astype(np.float64))
        used = exponent[values != 0]
        least = int(used.min()) if used.size else 0
        shifts = np.where(values != 0, exponent - least, 0)
        bits = 24 if values.dtype == np.float32 else 53
        integers = np.ldexp(mantissa, bits).astype(np.int64)
        if int(shifts.max(initial=0)) + bits < 63:
            flat = (integers << shifts).ravel().tolist()
        else:
            flat = [a << b for a, b in zip(integers.ravel().tolist(), shifts.ravel().tolist(), strict=True)]
        return ExactMatrix(flint().fmpz_mat(*values.shape, flat), least - bits)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.numerators.nrows(), self.numerators.ncols()  # type: ignore[attr-defined]

    @property
    def T(self) -> "ExactMatrix":  # noqa: N802 (as in numpy)
        """The transpose."""
        return ExactMatrix(self.numerators.transpose(), self.exponent)  # type: ignore[attr-defined]

    def __matmul__(self, other: "ExactMatrix") -> "ExactMatrix":
        return ExactMatrix(self.numerators * other.numerators, self.exponent + other.exponent)  # type: ignore[operator]

    def plus_row(self, row: "ExactMatrix") -> "ExactMatrix":
        """Add one row (1, column) to every row."""
        rows, _ = self.shape
        ones = flint().fmpz_mat(rows, 1, [1] * rows)
        return self + ExactMatrix(ones * row.numerators, row.exponent)

    def __add__(self, other: "ExactMatrix") -> "ExactMatrix":
        least = min(self.exponent, other.exponent)
        return ExactMatrix(
            self.numerators * (1 << (self.exponent - least)) + other.numerators * (1 << (other.exponent - least)),  # type: ignore[operator]
            least,
        )

    def integers(self) -> Iterable[int]:
        """The numerators, row by row."""
        return map(int, self.numerators.entries())  # type: ignore[attr-defined]

    def rounded(self) -> Float[np.ndarray, "row column"]:
        """A float64 for every entry: relative error at most 2^-52, or absolute error at most 2^-1074.

        Raises AssayError if an entry is 2^1000 or more.
        """
        entries = list(self.integers())
        bits = max((entry.bit_length() for entry in entries), default=0)
        if bits > 1000 - self.exponent:
            raise AssayError("a product of the weights overflows; nothing can be certified about this model.")
        # float(int) rounds to nearest; a shift first keeps huge numerators in range.
        if bits <= 900:
            values = np.ldexp(np.array([float(entry) for entry in entries]), self.exponent)
        else:
            cuts = [max(0, entry.bit_length() - 64) for entry in entries]
            values = np.array(
                [
                    ldexp(float((entry >> cut) | bool(cut)), self.exponent + cut)
                    for entry, cut in zip(entries, cuts, strict=True)
                ]
            )
        return values.reshape(self.shape)
