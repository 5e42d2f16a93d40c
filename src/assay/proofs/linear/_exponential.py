"""An exponential whose error is proved, not measured: float64 additions, multiplications and exact scalings only.

The exponential of a mathematical library comes without a guarantee, and one of Arb for each of billions of numbers
takes too long. docs/soundness.md, "Rounding in the linear proofs", proves the bound that is stated here.
"""

from math import factorial

import numpy as np
from jaxtyping import Float

UNIT = 2.0**-53
"""The unit roundoff of float64."""

LOWEST = -700.0
"""Exponents below this one are treated as this one; its exponential is below 2^-1009."""

EXPONENTIAL_ERROR = 64 * UNIT
"""Relative error of `exponential`."""

_INVERSE_LOG2 = 1.4426950408889634
_LOG2_HIGH = float.fromhex("0x1.62e42fefa3800p-1")  # 42 bits: its product with an exponent is exact
_LOG2_LOW = float.fromhex("0x1.ef35793c76730p-45")
_DEGREE = 13
_COEFFICIENTS = [1 / factorial(power) for power in range(_DEGREE + 1)]
_CHUNK = 1 << 13


def exponential(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """e to the power of each value, all at most 0.

    With y the larger of a value and `LOWEST`, the result differs from e^y by at most 64 u e^y, u = 2^-53.
    """
    result = np.empty(values.shape)
    source, target = np.ascontiguousarray(values).reshape(-1), result.reshape(-1)
    size = min(_CHUNK, len(source))
    power, rest = np.empty(size), np.empty(size)
    for begin in range(0, len(source), _CHUNK):
        out = target[begin : begin + _CHUNK]
        k, r = power[: len(out)], rest[: len(out)]
        np.maximum(source[begin : begin + _CHUNK], LOWEST, out=r)
        np.multiply(r, _INVERSE_LOG2, out=k)
        np.rint(k, out=k)
        np.multiply(k, _LOG2_HIGH, out=out)
        np.subtract(r, out, out=r)
        np.multiply(k, _LOG2_LOW, out=out)
        np.subtract(r, out, out=r)
        out.fill(_COEFFICIENTS[-1])
        for coefficient in reversed(_COEFFICIENTS[:-1]):
            np.multiply(out, r, out=out)
            np.add(out, coefficient, out=out)
        # 2^k, from its bits: k lies between -1010 and 0.
        scale = ((k.astype(np.int64) + 1023) << 52).view(np.float64)
        np.multiply(out, scale, out=out)
    return result
