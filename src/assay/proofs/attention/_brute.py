"""Brute force: every input, one after the other, on the tables of the decomposed model."""

from collections.abc import Iterator, Sequence

import numpy as np

from assay.proofs._certificate import Piece
from assay.proofs._operations import Operations
from assay.proofs.attention._agreement import differences, everything, predicted
from assay.proofs.attention._groups import Cell, Group, cells
from assay.proofs.attention._one_hot import OneHot, predictions
from assay.proofs.attention._tables import Tables
from assay.tasks import InputSet

_LARGEST_CHUNK = 1 << 22
"""Sums that are held at a time, 32 MB: larger sets of inputs are cut by their first token."""


def _reaches(values: np.ndarray, last: np.ndarray) -> np.ndarray:
    """For every sequence of the free positions, flattened, whether some output's sum is at least 0."""
    outputs, free, tokens = values.shape
    found = np.zeros(tokens**free, dtype=bool)
    for output in range(outputs):
        total = np.full(1, last[output])
        for position in range(free):
            total = (total[:, None] + values[output, position]).ravel()
        found |= total >= 0
    return found


def _members(cell: Cell) -> np.ndarray:
    """For every sequence of the free positions, flattened, whether it has an allowed number of copies."""
    copies = np.zeros(1, dtype=np.int64)
    for _ in range(cell.free):
        copies = (copies[:, None] + (np.arange(len(cell.tokens)) == len(cell.tokens) - 1)).ravel()
    members: np.ndarray = (copies >= cell.copies[0]) & (copies <= cell.copies[1])
    return members


def _sums(values: np.ndarray, last: np.ndarray) -> Iterator[np.ndarray]:
    """The sums (input, output) of every sequence of the free positions, flattened, some sequences at a time."""
    outputs, free, tokens = values.shape
    if not free or tokens**free * outputs <= _LARGEST_CHUNK:
        total = last[None]
        for position in range(free):
            total = (total[:, None] + values[:, position].T).reshape(-1, outputs)
        yield total
        return
    for token in range(tokens):
        yield from _sums(values[:, 1:], last + values[:, 0, token])


def _disagreements(group: Group, hard: OneHot | None, members: np.ndarray, operations: Operations) -> tuple[int, int]:
    """On how many inputs of the group the two models surely, and possibly, predict different tokens."""
    surely = possibly = start = 0
    for high, low in zip(_sums(group.upper, group.upper_last), _sums(group.lower, group.lower_last), strict=True):
        kept = np.flatnonzero(members[start : start + len(high)])
        first = predicted(group, 0, high[kept], low[kept], operations)
        if hard is None:
            second = predicted(group, 1, high[kept], low[kept], operations)
        else:
            free, tokens = group.cell.free, np.array(group.cell.tokens)
            index = np.unravel_index(kept + start, (len(tokens),) * free) if free else []
            second = predictions(hard, group.cell, tokens[np.array(index, dtype=np.int64).reshape(free, -1).T])
            operations.add(comparisons=len(kept) * (free + 1))
        start += len(high)
        differ = differences(first, second)
        surely, possibly = surely + differ[0], possibly + differ[1]
    return surely, possibly


def brute_force(models: Sequence[Tables], hard: OneHot | None, inputs: InputSet, operations: Operations) -> list[Piece]:
    """By looking at each input: the wrong ones of every group or, with a proxy, those on which the two disagree.

    The proxy is the second of `models`, or `hard`.
    """
    pieces = []
    for cell in cells(inputs):
        group = everything(models, cell)
        members = _members(cell)
        operations.add(arithmetic=group.upper.size * 3 + 2 * len(group.outputs) * cell.size)
        if len(models) == 1 and hard is None:
            wrong = int((_reaches(group.upper, group.upper_last) & members).sum())
            surely = int((_reaches(group.lower, group.lower_last) & members).sum())
            operations.add(comparisons=len(group.outputs) * cell.size)
        else:
            surely, wrong = _disagreements(group, hard, members, operations)
        pieces.append(
            Piece(last=cell.last, maximum=cell.maximum, relaxations=[], credits=[], wrong=wrong, surely_wrong=surely)
        )
    return pieces
