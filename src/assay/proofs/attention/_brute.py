"""Brute force: every input, one after the other, on the tables of the decomposed model."""

from collections.abc import Sequence

import numpy as np

from assay.proofs._certificate import Piece
from assay.proofs._operations import Operations
from assay.proofs.attention._groups import Group, cells, contributions, merge
from assay.proofs.attention._tables import Tables
from assay.tasks import InputSet


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


def brute_force(models: Sequence[Tables], inputs: InputSet, operations: Operations) -> list[Piece]:
    """The wrong inputs of every group, found by looking at each input."""
    pieces = []
    for cell in cells(inputs):
        outputs = np.delete(np.arange(inputs.vocabulary), cell.maximum)
        parts = []
        for index, tables in enumerate(models):
            upper, upper_last, lower, lower_last, unit = contributions(tables, cell, outputs)
            names = tuple((index, int(x)) for x in outputs)
            parts.append(Group(cell, names, upper, upper_last, lower, lower_last, unit))
        group = merge(parts)
        copies = np.zeros(1, dtype=np.int64)
        for _ in range(cell.free):
            copies = (copies[:, None] + (np.arange(len(cell.tokens)) == len(cell.tokens) - 1)).ravel()
        member = (copies >= cell.copies[0]) & (copies <= cell.copies[1])
        high = _reaches(group.upper, group.upper_last) & member
        low = _reaches(group.lower, group.lower_last) & member
        operations.add(
            arithmetic=group.upper.size * 3 + 2 * len(group.outputs) * cell.size,
            comparisons=len(group.outputs) * cell.size,
        )
        pieces.append(
            Piece(
                last=cell.last,
                maximum=cell.maximum,
                relaxations=[],
                wrong=int(high.sum()),
                surely_wrong=int(low.sum()),
            )
        )
    return pieces
