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
from jaxtyping import Float, Int

from assay.proofs._operations import Operations
from assay.proofs.attention._tables import UNIT, Powers, Tables
from assay.tasks import InputSet

PAD = 64 * UNIT
"""Slack of a logit difference, relative to `Tables.spread`: 18 units for rounding, the rest for the checker's own."""

_BITS = 62
"""Sums of contributions stay below 2 to this power: of int64, one bit is left for the sum of two of them."""

_BLOCK = 8
"""Outputs a block in the first tier."""


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


class _Blocks:
    """The largest entries of a model's tables over blocks of outputs, with and without one output of the block.

    `EU` and `last` (last token, block) are those of EU and of all that the last position contributes, `value` (token,
    block) those of EV and PV at the best free position; `EU_other`, `last_other` and `value_other` (…, output) leave
    the output itself out of its block, and `row_other` (token, output) out of all.
    """

    def __init__(self, tables: Tables, operations: Operations) -> None:
        v, free = tables.vocabulary, tables.length - 1
        self.most, self.least = tables.PV[:-1].max(axis=0), tables.PV[:-1].min(axis=0)
        value = tables.EV + self.most
        last = tables.EU + tables.EV + tables.PV[-1]
        self.EU, self.EU_other = _of_blocks(tables.EU)
        self.last, self.last_other = _of_blocks(last)
        self.value, self.value_other = _of_blocks(value)
        top = np.sort(value, axis=1)[:, -2:]
        self.row_other = np.where(value == top[:, 1:], top[:, :1], top[:, 1:])
        operations.add(arithmetic=3 * v * v, comparisons=2 * free * v + 3 * 4 * v * v + 2 * v * v)


def _of_blocks(table: Float[np.ndarray, "row v"]) -> tuple[np.ndarray, np.ndarray]:
    """Maxima over blocks (row, block), and over each output's block without it (row, v); -inf over nothing."""
    rows, v = table.shape
    padded = np.full((rows, -(-v // _BLOCK) * _BLOCK), -np.inf)
    padded[:, :v] = table
    blocks = padded.reshape(rows, -1, _BLOCK)
    top = np.sort(blocks, axis=2)[:, :, -2:]
    largest, second = top[:, :, 1:], top[:, :, :1]
    other = np.where(blocks == largest, second, largest).reshape(rows, -1)[:, :v]
    return largest[:, :, 0], other


def _without(of_blocks: np.ndarray, other: np.ndarray, rows: np.ndarray, m: int) -> np.ndarray:
    """Chosen rows of a table over blocks, without output m."""
    found: np.ndarray = of_blocks[rows].copy()
    found[:, m // _BLOCK] = other[rows, m]
    return found


def _suspects(
    tables: Tables, blocks: _Blocks, maximum: int, found: Sequence[Cell], operations: Operations
) -> dict[int, np.ndarray]:
    """For each last token of the cells (all of one largest token), the outputs that could win there.

    Three tiers, each for what the one before leaves, and each with the best position for every token. The first asks
    what blocks of outputs gain at most, by the largest entries in each table; the second what the largest token
    contributes to each output, and smaller tokens to all at once; the third what each token does.
    """
    tokens = np.array(found[0].tokens)
    lasts = np.array([cell.last for cell in found])
    need = np.array([cell.copies[0] >= 1 for cell in found])
    m, free, count = maximum, tables.length - 1, len(tokens)
    pad = PAD * tables.spread
    W, pi = scaled(tables.token, lasts, tokens)[0], scaled(tables.position, lasts, slice(None))[0]
    at_last = np.searchsorted(tokens, lasts)
    own = W[np.arange(len(lasts)), at_last] * pi[:, -1]

    base = (pad - tables.EU[lasts, m])[:, None]
    EU = _without(blocks.EU, blocks.EU_other, lasts, m) + base
    value = _without(blocks.value, blocks.value_other, tokens[-1:], m)[0] - (tables.EV[m, m] + blocks.least[m])
    last = _without(blocks.last, blocks.last_other, lasts, m) + (
        base - (tables.EV[lasts, m] + tables.PV[-1, m])[:, None]
    )
    gain = EU.max(axis=1, keepdims=True) + (
        blocks.row_other[tokens[:-1], m] - (tables.EV[tokens[:-1], m] + blocks.least[m])
    )
    smaller = (W[:, :-1] * gain).max(axis=1, initial=-np.inf)
    some = np.isfinite(EU)
    copy = W[:, -1:] * np.where(some, EU + value, 0.0)
    last = own[:, None] * np.where(some, last, 0.0)
    wins = some & _may_fail(np.maximum(smaller[:, None], copy), copy, last, pi[:, :-1], need)
    operations.add(
        arithmetic=EU.size * 13 + len(lasts) * (2 * count + 2 * free + 4) + 2 * count + EU.shape[1],
        comparisons=EU.size * 3 + len(lasts) * (count + free),
    )

    row, block = np.nonzero(wins)
    row, x = np.repeat(row, _BLOCK), (block[:, None] * _BLOCK + np.arange(_BLOCK)).ravel()
    inside = (x < tables.vocabulary) & (x != m)
    row, x = row[inside], x[inside]
    columns, column = np.unique(x, return_inverse=True)
    PV = tables.PV[:, columns] - tables.PV[:, m, None]
    gained = PV[:-1].max(axis=0)
    at_x = tables.EU[lasts[row], x] - tables.EU[lasts[row], m] + pad
    value = at_x + (tables.EV[m, x] - tables.EV[m, m] + gained[column])
    copy = W[row, -1] * value
    last = own[row] * (at_x + (tables.EV[lasts[row], x] - tables.EV[lasts[row], m]) + PV[-1, column])
    left = _may_fail(np.maximum(smaller[row], copy), copy, last, pi[row, :-1], need[row])
    operations.add(
        arithmetic=len(row) * 14 + len(columns) * (tables.length + 2),
        comparisons=len(row) * 2 + len(columns) * free,
    )

    row, x, column, at_x, last = (chosen[left] for chosen in (row, x, column, at_x, last))
    values = (tables.EV[np.ix_(tokens, columns)] - tables.EV[tokens, m, None]) + gained
    each = (at_x[:, None] + values[:, column].T) * W[row]
    left = _may_fail(each.max(axis=1), each[:, -1], last, pi[row, :-1], need[row])
    operations.add(
        arithmetic=len(row) * (2 * count + 6) + 2 * len(np.unique(x)) * count, comparisons=len(row) * (count + 1)
    )
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
    of_models = [(tables, _Blocks(tables, operations)) for tables in models]
    for maximum, found in by_maximum.items():
        suspects = [_suspects(tables, blocks, maximum, found, operations) for tables, blocks in of_models]
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
