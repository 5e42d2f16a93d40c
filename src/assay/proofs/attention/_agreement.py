"""On how many inputs of a group subject and proxy predict different tokens, exactly.

Only inputs on which one of the two could be wrong are looked at; on all others both predict the largest token. Where
both are wrong in the same way they agree (docs/soundness.md, theorem 7).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from assay._errors import AssayError
from assay.proofs._certificate import Piece
from assay.proofs._operations import Operations
from assay.proofs.attention._groups import Cell, Group, contributions, merge
from assay.proofs.attention._tables import Tables

_CHUNK = 1 << 19
"""Sums that a step adds at a time: 4 MB, which stay in a CPU's cache."""

_MOST_INPUTS = 2**31
"""Inputs that are looked at one by one at most, as many as brute force takes."""


def winners(
    high: Int[np.ndarray, "input output"], low: Int[np.ndarray, "input output"], outputs: np.ndarray, maximum: int
) -> Int[np.ndarray, " input"]:
    """The token that surely is predicted on each input, or -1 where rounding (or a tie) leaves that open.

    `high` and `low` enclose the sums of `outputs`, by which they beat `maximum`; all other outputs surely lose to it.
    """
    if not len(outputs):
        return np.full(len(high), maximum)
    found = np.where((high < 0).all(axis=1), maximum, -1)
    best = low.argmax(axis=1)
    rows = np.arange(len(low))
    others = high.copy()
    others[rows, best] = np.iinfo(np.int64).min
    surely = (low[rows, best] > 0) & (low[rows, best] > others.max(axis=1))
    return np.where(surely, outputs[best], found)


def predicted(
    group: Group,
    model: int,
    high: Int[np.ndarray, "input output"],
    low: Int[np.ndarray, "input output"],
    operations: Operations,
) -> Int[np.ndarray, " input"]:
    """What a model surely predicts on inputs given by the sums of all outputs of the group, or -1."""
    rows = [row for row, name in enumerate(group.outputs) if name[0] == model]
    outputs = np.array([group.outputs[row][1] for row in rows], dtype=np.int64)
    operations.add(comparisons=3 * len(high) * len(rows))
    return winners(high[:, rows], low[:, rows], outputs, group.cell.maximum)


def differences(first: Int[np.ndarray, " input"], second: Int[np.ndarray, " input"]) -> tuple[int, int]:
    """On how many inputs predictions surely, and possibly, differ."""
    known = (first >= 0) & (second >= 0)
    return int((known & (first != second)).sum()), int((~known | (first != second)).sum())


def count_disagreements(group: Group, operations: Operations) -> Piece:
    """At least and at most how many inputs of the group get different predictions, by looking at each suspicious one.

    Raises AssayError where more than 2^31 inputs would have to be looked at.
    """
    free, tokens = group.cell.free, len(group.cell.tokens)
    least, most = group.cell.copies
    # Positions whose contributions vary most come first.
    order = np.argsort(-np.ptp(group.upper, axis=2).max(axis=0, initial=0), kind="stable")
    upper, lower = group.upper[:, order], group.lower[:, order]
    best = np.zeros((free + 1, len(upper)), dtype=np.int64)
    for position in range(free - 1, -1, -1):
        best[position] = best[position + 1] + upper[:, position].max(axis=1)
    operations.add(arithmetic=len(upper) * free, comparisons=upper.size)
    surely = possibly = seen = 0
    stack = [(0, group.upper_last[None], group.lower_last[None], np.zeros(1, dtype=np.int64))]
    while stack:
        position, high, low, taken = stack.pop()
        kept = (high + best[position] >= 0).any(axis=1) & (taken <= most) & (taken + free - position >= least)
        operations.add(arithmetic=high.size, comparisons=high.size)
        high, low, taken = high[kept], low[kept], taken[kept]
        if position == free:
            seen += len(high)
            if seen > _MOST_INPUTS:
                raise AssayError("more than 2^31 inputs would have to be looked at; use strategy 'separable'.")
            differ = differences(*(predicted(group, model, high, low, operations) for model in (0, 1)))
            surely, possibly = surely + differ[0], possibly + differ[1]
            continue
        step = max(1, _CHUNK // (tokens * len(upper)))
        for begin in range(0, len(high), step):
            part = slice(begin, begin + step)
            operations.add(arithmetic=2 * len(high[part]) * len(upper) * tokens)
            stack.append(
                (
                    position + 1,
                    (high[part, None] + upper[:, position].T).reshape(-1, len(upper)),
                    (low[part, None] + lower[:, position].T).reshape(-1, len(upper)),
                    (taken[part, None] + (np.arange(tokens) == tokens - 1)).ravel(),
                )
            )
    return Piece(
        last=group.cell.last,
        maximum=group.cell.maximum,
        relaxations=[],
        credits=[],
        wrong=possibly,
        surely_wrong=surely,
    )


def everything(models: Sequence[Tables], cell: Cell) -> Group:
    """A cell with every output of every model, whether it could win or not."""
    outputs = np.delete(np.arange(models[0].vocabulary), cell.maximum)
    parts = []
    for index, tables in enumerate(models):
        upper, upper_last, lower, lower_last, unit = contributions(tables, cell, outputs)
        names = tuple((index, int(x)) for x in outputs)
        parts.append(Group(cell, names, upper, upper_last, lower, lower_last, (unit,) * len(names)))
    return merge(parts)
