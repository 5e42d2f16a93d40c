"""Which inputs could be answered wrongly: the suspicious groups, with their contributions in integers.

A group is all inputs of a set with the same last token q and largest token m. Multiplying by the softmax denominator,
which is positive, the prediction x beats (or ties with) m exactly when Σ_p f(p, t_p) ≥ 0 with

    f(p, t) = exp(SP[q, p]) exp(SE[q, t]) (EU[q, x] - EU[q, m] + EV[t, x] - EV[t, m] + PV[p, x] - PV[p, m]),

a sum over positions; so the worst case over a group is a maximum at each position (docs/soundness.md, theorems 1 and
2). The contributions are enclosed by integers once; every later step is integer arithmetic and rounds nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import comb, frexp

import numpy as np
from jaxtyping import Int

from assay.proofs._operations import Operations
from assay.proofs.attention._tables import UNIT, Powers, Tables
from assay.tasks import InputSet

PAD = 64 * UNIT
"""Slack of a logit difference, relative to `Tables.spread`: 18 units for rounding, the rest for the checker's own."""

_BITS = 62


@dataclass(frozen=True)
class Cell:
    """The inputs with last token `last` and largest token `maximum` whose other tokens come from `tokens`.

    The first `free` = K - 1 positions hold any of `tokens` (ascending, `maximum` last), where between copies[0] and
    copies[1] of them hold `maximum`.
    """

    last: int
    maximum: int
    tokens: tuple[int, ...]
    copies: tuple[int, int]
    free: int

    @property
    def numbers_smaller(self) -> range:
        """How many free positions can hold tokens smaller than `maximum`."""
        return range(self.free - self.copies[1], self.free - self.copies[0] + 1)

    @property
    def size(self) -> int:
        """How many inputs the cell has, exactly."""
        smaller = len(self.tokens) - 1
        least, most = self.copies
        return sum(comb(self.free, c) * smaller ** (self.free - c) for c in range(least, most + 1))


def cells(inputs: InputSet) -> Iterator[Cell]:
    """The non-empty groups of an input set: they partition it."""
    free = inputs.length - 1
    for maximum in inputs.maxima:
        tokens = tuple(range(inputs.lowest(maximum), maximum + 1))
        for last in tokens:
            own = int(last == maximum)
            copies = (1 - own, free) if inputs.copies is None else (inputs.copies - own, inputs.copies - own)
            cell = Cell(last, maximum, tokens, copies, free)
            if 0 <= copies[0] <= free and cell.size > 0:
                yield cell


@dataclass(frozen=True)
class Group:
    """A cell in which some input could be answered wrongly, with contributions as integers.

    `outputs` are the (model, output) pairs that could win; `upper` and `lower` (output, position, token) enclose
    2^-units[output] times their contributions at the free positions, `upper_last` and `lower_last` (output,) that of
    the last position. A model's outputs share their unit. An input is wrong only if some output's upper sum is at
    least 0, and is wrong if a lower sum is.
    """

    cell: Cell
    outputs: tuple[tuple[int, int], ...]
    upper: Int[np.ndarray, "output position token"]
    upper_last: Int[np.ndarray, " output"]
    lower: Int[np.ndarray, "output position token"]
    lower_last: Int[np.ndarray, " output"]
    units: tuple[int, ...]


def _scale(spread: float, length: int) -> int:
    """The power of two that brings sums of contributions, each at most 4.4 spreads, just below 2^62."""
    return _BITS - 3 - frexp(spread)[1] - (length + 1).bit_length()


def scaled(powers: Powers, rows: np.ndarray | list[int], columns: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
    """Chosen rows and columns as plain floats, and the power of two (row,) by which each row was divided."""
    exponent = powers.exponent[rows][:, columns]
    shift = exponent.max(axis=1)
    return np.ldexp(powers.mantissa[rows][:, columns], np.maximum(exponent - shift[:, None], -2000)), shift


def _may_fail(
    best: np.ndarray, at_maximum: np.ndarray, last: np.ndarray, weight: np.ndarray, need: np.ndarray
) -> np.ndarray:
    """Whether Σ_p weight_p best - (a copy of the maximum) + last could be 0 or more, rounding included.

    `weight` (row, free) and `need` (row,) belong to the rows of `best`, `at_maximum` and `last` (row, …).
    """
    total, least = (value.reshape(-1, *([1] * (best.ndim - 1))) for value in (weight.sum(axis=1), weight.min(axis=1)))
    swap = np.where(need.reshape(least.shape), least * (best - at_maximum), 0.0)
    size = np.abs(best) * total + least * (np.abs(best) + np.abs(at_maximum)) + np.abs(last)
    failing: np.ndarray = best * total - swap + last + 64 * (weight.shape[1] + 8) * UNIT * size >= 0
    return failing


def _suspects(tables: Tables, maximum: int, found: Sequence[Cell], operations: Operations) -> dict[int, np.ndarray]:
    """For each last token of the cells (all of one largest token), the outputs that could win there.

    Two tiers. The first asks of each output what the largest token contributes, and of all outputs at once what smaller
    tokens do; the second, of the outputs that are left, what each token does. Both take the best position for each.
    """
    tokens = np.array(found[0].tokens)
    lasts = np.array([cell.last for cell in found])
    need = np.array([cell.copies[0] >= 1 for cell in found])
    v, free, count = tables.vocabulary, tables.length - 1, len(tokens)
    EU = tables.EU[lasts] - tables.EU[lasts, maximum, None] + PAD * tables.spread
    EV = tables.EV[tokens] - tables.EV[tokens, maximum, None]
    PV = tables.PV - tables.PV[:, maximum, None]
    others = np.arange(v) != maximum
    W, pi = scaled(tables.token, lasts, tokens)[0], scaled(tables.position, lasts, slice(None))[0]
    at_last = np.searchsorted(tokens, lasts)
    own = W[np.arange(len(lasts)), at_last] * pi[:, -1]

    value = EV + PV[:-1].max(axis=0)
    gain = EU[:, others].max(axis=1, keepdims=True) + value[:-1, others].max(axis=1)
    smaller = (W[:, :-1] * gain).max(axis=1, initial=-np.inf)
    copy = W[:, -1:] * (EU + value[-1])
    last = own[:, None] * (EU + EV[at_last] + PV[-1])
    wins = _may_fail(np.maximum(smaller[:, None], copy), copy, last, pi[:, :-1], need)
    wins[:, maximum] = False
    operations.add(
        arithmetic=v * (len(lasts) + 2 * count + tables.length) + len(lasts) * (2 * count + 2 * free + 11 * v),
        comparisons=v * (len(lasts) + count + free) + len(lasts) * (count + free + 2 * v),
    )

    row, x = np.nonzero(wins)
    each = (EU[row, x, None] + value[:, x].T) * W[row]
    left = _may_fail(each.max(axis=1), each[:, -1], last[row, x], pi[row, :-1], need[row])
    operations.add(arithmetic=len(row) * (2 * count + 6), comparisons=len(row) * (count + 1))
    found_outputs: dict[int, list[int]] = {}
    for index in np.flatnonzero(left):
        found_outputs.setdefault(int(lasts[row[index]]), []).append(int(x[index]))
    return {q: np.array(outputs) for q, outputs in found_outputs.items()}


def contributions(
    tables: Tables, cell: Cell, outputs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Integers that enclose an output's contributions: upper, its last position, lower, its last position, unit."""
    tokens = np.append(np.array(cell.tokens), cell.last)
    q, m = cell.last, cell.maximum
    spread = tables.spread or 1.0
    scale = _scale(spread, tables.length)
    pad = PAD * spread
    token_weight, token_shift = scaled(tables.token, [q], tokens)
    position_weight, position_shift = scaled(tables.position, [q], slice(None))
    EU = tables.EU[q, outputs] - tables.EU[q, m]
    EV = (tables.EV[np.ix_(tokens, outputs)] - tables.EV[tokens, m, None]).T
    PV = (tables.PV[:, outputs] - tables.PV[:, m, None]).T
    weight = np.ldexp(position_weight[0][:, None] * token_weight[0][None, :], scale)
    value = (EU[:, None, None] + EV[:, None, :]) + PV[:, :, None]
    upper = np.ceil(weight * (value + pad)).astype(np.int64) + 1
    lower = np.floor(weight * (value - pad)).astype(np.int64) - 1
    unit = int(token_shift[0] + position_shift[0]) - scale
    return upper[:, :-1, :-1], upper[:, -1, -1], lower[:, :-1, :-1], lower[:, -1, -1], unit


def worst(
    upper: Int[np.ndarray, "output position token"], last: Int[np.ndarray, " output"], cell: Cell
) -> Int[np.ndarray, " output"]:
    """The largest sum over the inputs of a cell (of a larger set, where exact numbers of copies are asked for)."""
    top = upper.max(axis=2)
    total = top.sum(axis=1) + last
    if cell.copies[0] >= 1:
        total = total - (top - upper[:, :, -1]).min(axis=1)
    return total


def suspicious_groups(models: Sequence[Tables], inputs: InputSet, operations: Operations) -> list[Group]:
    """The groups of `inputs` in which some model could be wrong somewhere; in all others every model is right."""
    by_maximum: dict[int, list[Cell]] = {}
    for cell in cells(inputs):
        by_maximum.setdefault(cell.maximum, []).append(cell)
    groups = []
    for maximum, found in by_maximum.items():
        suspects = [_suspects(tables, maximum, found, operations) for tables in models]
        for cell in found:
            parts = []
            for index, (tables, outputs_by_last) in enumerate(zip(models, suspects, strict=True)):
                if cell.last not in outputs_by_last:
                    continue
                outputs = outputs_by_last[cell.last]
                upper, upper_last, lower, lower_last, unit = contributions(tables, cell, outputs)
                operations.add(
                    arithmetic=upper.size * 3 + len(outputs) * (2 * cell.free + 1),
                    comparisons=upper.size + len(outputs) * cell.free,
                )
                kept = worst(upper, upper_last, cell) >= 0
                if kept.any():
                    names = tuple((index, int(x)) for x in outputs[kept])
                    units = (unit,) * len(names)
                    parts.append(
                        Group(cell, names, upper[kept], upper_last[kept], lower[kept], lower_last[kept], units)
                    )
            if parts:
                groups.append(merge(parts))
    return groups


def merge(parts: Sequence[Group]) -> Group:
    """One group with the outputs of several of the same cell."""
    if len(parts) == 1:
        return parts[0]
    return Group(
        parts[0].cell,
        tuple(name for part in parts for name in part.outputs),
        np.concatenate([part.upper for part in parts]),
        np.concatenate([part.upper_last for part in parts]),
        np.concatenate([part.lower for part in parts]),
        np.concatenate([part.lower_last for part in parts]),
        tuple(unit for part in parts for unit in part.units),
    )
