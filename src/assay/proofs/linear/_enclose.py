"""From float64 sums to enclosures that hold: logarithms by Arb, and how many answers are surely right."""

from collections.abc import Iterable
from fractions import Fraction
from math import ceil, floor, fsum
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from assay._errors import AssayError
from assay.proofs._exact import flint
from assay.proofs.linear._exponential import UNIT
from assay.proofs.linear._sums import add_up
from assay.proofs.linear._table import Exponentials, Table

BITS = 256

_LEEWAY = 4
"""Errors of sums are stated this many times larger than proved, which leaves the checker room for its own."""

_LEAST_SUM = 2.0**-400
_RUN = 512
_CHUNK = 1 << 14


def sum_error(table: Table) -> float:
    """How far the logarithm of a sum of products of exponentials may be off, beyond the radius of the logits."""
    return 1.02 * _LEEWAY * UNIT * (810 * table.length + 2 * table.vocabulary + 32)


def direct_error(table: Table) -> float:
    """How far the logarithm of a sum of exponentials of logits may be off, beyond the radius of the logits."""
    return 1.02 * _LEEWAY * UNIT * (table.length * table.largest + 800 + 2 * table.vocabulary)


def require_range(sums: np.ndarray) -> None:
    """Raises AssayError if a sum is so small that terms could have been lost to underflow."""
    if not (sums >= _LEAST_SUM).all():
        raise AssayError(
            "the logits of two tokens have their peaks too far apart: a sum of products of exponentials is below "
            "2^-400, where terms are lost to underflow; use strategy 'symmetry'."
        )


def log_total(values: Float[np.ndarray, " value"], weights: Int[np.ndarray, " value"]) -> Any:
    """The sum of weight times log value, for positive numbers, as a ball of Arb.

    Mantissas are multiplied 512 at a time, each product within 512 u relative of the exact one.
    """
    library = flint()
    total = library.arb(0)
    for weight in np.unique(weights):
        mantissas, exponents = np.frexp(values[weights == weight])
        padded = np.ones(-(-len(mantissas) // _RUN) * _RUN)
        padded[: len(mantissas)] = mantissas
        logs = sum((library.arb(x).log() for x in padded.reshape(-1, _RUN).prod(axis=1).tolist()), library.arb(0))
        logs += int(exponents.sum(dtype=np.int64)) * library.arb.const_log2()
        total += int(weight) * (logs + library.arb(0, 1.01 * UNIT * len(mantissas)))
    return total


def exact_sum(values: Float[np.ndarray, " value"], weights: Int[np.ndarray, " value"]) -> Any:
    """The sum of weight times value, rounded once a weight, as a ball of Arb."""
    library = flint()
    total = library.arb(0)
    for weight in np.unique(weights):
        part = fsum(values[weights == weight].tolist())
        total += int(weight) * library.arb(part, 2 * UNIT * abs(part))
    return total


def weighted(values: Iterable[float], weights: Iterable[int]) -> Fraction:
    """The sum of weight times value, exactly."""
    return sum((weight * Fraction(value) for value, weight in zip(values, weights, strict=True)), Fraction(0))


def ball(fraction: Fraction) -> Any:
    """A rational number as a ball of Arb."""
    return flint().arb(fraction.numerator) / fraction.denominator


def floor_of(number: Any, unit: int) -> int:
    """The largest integer that `unit` times the number, an Arb ball, is surely not below."""
    mantissa, exponent = number.lower().man_exp()
    return floor(Fraction(int(mantissa)) * Fraction(2) ** int(exponent) * unit)


def ceil_of(number: Any, unit: int) -> int:
    """The smallest integer that `unit` times the number, an Arb ball, is surely not above."""
    mantissa, exponent = number.upper().man_exp()
    return ceil(Fraction(int(mantissa)) * Fraction(2) ** int(exponent) * unit)


def surely_right(
    table: Table, exponentials: Exponentials, tokens: Int[np.ndarray, "row n"], high: Float[np.ndarray, " row"]
) -> Bool[np.ndarray, " row"]:
    """Whether an upper bound on the sum is below twice the answer's own term, so that no other term reaches it."""
    own = np.ones(len(tokens))
    for column in range(tokens.shape[1]):
        own *= exponentials.values[tokens[:, column], tokens[:, -1]]
    slack = 2.1 * table.length * table.radius + 2 * sum_error(table)
    right: np.ndarray = (own >= _LEAST_SUM) & (high < 2 * own * (1 - slack))
    return right


def right(table: Table, tokens: Int[np.ndarray, "row n"]) -> Bool[np.ndarray, " row"]:
    """Whether the answer's logit is strictly larger than every other one; in doubt, decided in integers."""
    found = np.zeros(len(tokens), dtype=bool)
    doubt = 4 * table.length * (table.radius + UNIT * table.largest)
    rows = max(1, _CHUNK // table.vocabulary)
    for begin in range(0, len(tokens), rows):
        chosen = tokens[begin : begin + rows]
        logits = add_up(table, chosen)
        each = np.arange(len(chosen))
        answers = chosen.max(axis=1)
        own = logits[each, answers]
        logits[each, answers] = -np.inf
        margin = own - logits.max(axis=1)
        found[begin : begin + rows] = margin > doubt
        for row in np.flatnonzero(np.abs(margin) <= doubt):
            rivals = np.flatnonzero(logits[row] >= own[row] - doubt)
            found[begin + row] = _beats(table, chosen[row], int(answers[row]), rivals)
    return found


def _beats(table: Table, tokens: Int[np.ndarray, " n"], answer: int, rivals: Int[np.ndarray, " rival"]) -> bool:
    """Whether the answer's logit is strictly larger than those of its rivals, in integers."""
    d = table.embedding.shape[1]
    embedding: Any = table.embedding.numerators
    unembedding: Any = table.unembedding.numerators
    row = [sum(int(embedding[int(t), k]) for t in tokens) for k in range(d)]

    def logit(output: int) -> int:
        return sum(row[k] * int(unembedding[k, output]) for k in range(d))

    own = logit(answer)
    return all(logit(int(rival)) < own for rival in rivals)
