"""What every family's checker needs: refusing, a budget, sets of inputs, and the sentence that is verified."""

import json
from collections.abc import Iterator, Mapping
from math import comb
from typing import Any

from assay._errors import AssayError

BUDGET = 10**11
"""What a check may cost unless more is allowed, in operations of about a nanosecond: a minute or two."""

LONGEST_NAME = 200
"""Characters of a subject's name, which stands in the statement."""


def require(condition: bool, reason: str) -> None:
    """Refuse the certificate for `reason` unless the condition holds."""
    if not condition:
        raise AssayError(f"certificate refuted: {reason}")


class Budget:
    """How much work a check may do. What a step costs follows from sizes and is spent before the step is taken."""

    def __init__(self, operations: int) -> None:
        self.allowed, self.spent = operations, 0

    def spend(self, operations: int, step: str) -> None:
        """Raise AssayError if `step` would take the check beyond the budget."""
        self.spent += operations
        if self.spent > self.allowed:
            raise AssayError(
                f"certificate not checked: {step} would bring it to {_about(self.spent)} operations, of which "
                f"{_about(self.allowed)} are allowed; give a larger budget (assay verify --budget) if it is worth it."
            )


def _about(number: int) -> str:
    """A number in two digits, however large."""
    return f"{number:.1e}" if number < 10**300 else "more than 1e+300"


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
    return f"all sequences of {inputs['length']} tokens out of {inputs['vocabulary']}{where} ({inputs['size']} inputs)"


def called(subject: Mapping[str, Any]) -> str:
    """The subject by the name that the certificate gives it, in quotes: what is in them is not the checker's word."""
    return f"the model called {json.dumps(subject['name'], ensure_ascii=False)}"


def bounds(at_least: int, at_most: int, size: int, *, exact: bool) -> str:
    """Bounds on a number of inputs in words; a proof that is `exact` says how many it leaves open."""
    if at_least == at_most:
        return f"exactly {at_least}"
    if exact:
        left = f"{at_most - at_least} left open: ties and near ties are not told apart"
        return f"at least {at_least} and at most {at_most} ({left})"
    return f"at least {at_least}" + (f" and at most {at_most}" if at_most < size else "")


def identity(subject: Mapping[str, Any], model: str) -> str:
    """What the model is, in words that follow from its weights."""
    return f"The model: {model}, in real arithmetic; the SHA-256 of its weights is {subject['weights_sha256']}."
