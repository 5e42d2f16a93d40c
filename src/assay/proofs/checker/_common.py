"""What every family's checker needs: refusing, and the sets of inputs that certificates are about."""

from collections.abc import Iterator, Mapping
from math import comb
from typing import Any

from assay._errors import AssayError


def require(condition: bool, reason: str) -> None:
    """Refuse the certificate for `reason` unless the condition holds."""
    if not condition:
        raise AssayError(f"certificate refuted: {reason}")


def groups(inputs: Mapping[str, Any]) -> Iterator[tuple[int, int, int, tuple[int, int]]]:
    """(last token, largest token, lowest token, least and most copies of the largest at free positions)."""
    free = inputs["length"] - 1
    for m in range(inputs["minimum_maximum"], inputs["vocabulary"]):
        low = 0 if inputs["within"] is None else max(0, m - inputs["within"])
        for q in range(low, m + 1):
            is_m = 1 if q == m else 0
            if inputs["copies"] is None:
                yield q, m, low, (1 - is_m, free)
            elif 0 <= inputs["copies"] - is_m <= free:
                yield q, m, low, (inputs["copies"] - is_m, inputs["copies"] - is_m)


def size_of(free: int, smaller: int, copies: tuple[int, int]) -> int:
    """How many ways there are to fill `free` positions with the largest token and `smaller` smaller ones."""
    return sum(comb(free, c) * smaller ** (free - c) for c in range(copies[0], copies[1] + 1))


def words(inputs: Mapping[str, Any]) -> str:
    """The set in words, as statements name it."""
    parts = []
    if inputs["minimum_maximum"]:
        parts.append(f"the largest token is at least {inputs['minimum_maximum']}")
    if inputs["within"] is not None:
        parts.append(f"every token is within {inputs['within']} of the largest")
    if inputs["copies"] is not None:
        parts.append(f"exactly {inputs['copies']} tokens equal the largest")
    where = " in which " + " and ".join(parts) if parts else ""
    return f"all sequences of {inputs['length']} tokens out of {inputs['vocabulary']}{where}"
