"""How many inputs of a group are answered wrongly, exactly: branch and bound over positions.

A partial input is dropped when no output can reach 0 any more, and counted with all its completions when one is sure
to. The last position is not branched over: for each output the tokens that take it to 0 are a prefix of its tokens in
descending order, kept as bit masks, and the union over outputs is a bitwise or.
"""

from math import comb

import numpy as np
from jaxtyping import Bool, Int

from assay.proofs._certificate import Piece
from assay.proofs._operations import Operations
from assay.proofs.attention._groups import Group

_CHUNK = 1 << 17
"""Sums that a step adds at a time: 1 MB, as the search keeps such a part for every position."""


class _Masks:
    """For every output and threshold, the tokens whose last contribution is at least the threshold."""

    def __init__(self, values: Int[np.ndarray, "output token"]) -> None:
        outputs, tokens = values.shape
        self.words = (tokens + 63) // 64
        order = np.argsort(values, axis=1, kind="stable")
        self.sorted = np.take_along_axis(values, order, axis=1)
        bits = np.zeros((tokens, self.words), dtype=np.uint64)
        bits[np.arange(tokens), np.arange(tokens) // 64] = np.uint64(1) << (np.arange(tokens) % 64).astype(np.uint64)
        self.bits = bits
        suffix = np.zeros((outputs, tokens + 1, self.words), dtype=np.uint64)
        for index in range(tokens - 1, -1, -1):
            suffix[:, index] = suffix[:, index + 1] | bits[order[:, index]]
        self.suffix = suffix

    def union(self, partial: Int[np.ndarray, "node output"]) -> np.ndarray:
        """For every node, the tokens with which some output's sum reaches 0, as (node, word) bit masks."""
        found = np.zeros((len(partial), self.words), dtype=np.uint64)
        for output in range(partial.shape[1]):
            first = np.searchsorted(self.sorted[output], -partial[:, output], side="left")
            found |= self.suffix[output, first]
        return found


def _completions(tokens: int, left: int, taken: np.ndarray, copies: tuple[int, int]) -> list[int]:
    """For each number of copies taken so far, how many ways there are to fill `left` more positions."""
    least, most = copies
    ways = []
    for count in range(int(taken.max(initial=0)) + 1):
        total = 0
        for more in range(left + 1):
            if least <= count + more <= most:
                total += comb(left, more) * (tokens - 1) ** (left - more)
        ways.append(total)
    return ways


def count_wrong(group: Group, operations: Operations) -> Piece:
    """At least and at most how many inputs of the group are wrong; the two are equal unless an input is undecided."""
    low, high = _search(group, operations)
    return Piece(
        last=group.cell.last, maximum=group.cell.maximum, relaxations=[], credits=[], wrong=high, surely_wrong=low
    )


def _search(group: Group, operations: Operations) -> tuple[int, int]:
    cell = group.cell
    free, tokens = cell.free, len(cell.tokens)
    outputs = len(group.outputs)
    least, most = cell.copies
    if free == 0:
        return int((group.lower_last >= 0).any()), int((group.upper_last >= 0).any())

    # Positions whose contributions vary most come first.
    order = np.argsort(-np.ptp(group.upper, axis=2).max(axis=0), kind="stable")
    upper, lower = group.upper[:, order], group.lower[:, order]
    best = np.zeros((free + 1, outputs), dtype=np.int64)
    sure = np.zeros((free + 1, outputs), dtype=np.int64)
    for position in range(free - 1, -1, -1):
        best[position] = best[position + 1] + upper[:, position].max(axis=1)
        sure[position] = sure[position + 1] + lower[:, position].min(axis=1)
    masks_upper, masks_lower = _Masks(upper[:, -1]), _Masks(lower[:, -1])
    operations.add(
        arithmetic=2 * outputs * free, comparisons=2 * upper.size + 2 * outputs * tokens * tokens.bit_length()
    )
    maximum_bit = masks_upper.bits[-1]

    def last_position(partial: np.ndarray, taken: Int[np.ndarray, " node"], masks: _Masks) -> int:
        found = masks.union(partial)
        operations.add(comparisons=partial.size * tokens.bit_length(), arithmetic=partial.size)
        may_stay = (taken >= least) & (taken <= most)
        may_take = (taken + 1 >= least) & (taken + 1 <= most)
        smaller = np.where(may_stay[:, None], found & ~maximum_bit, 0)
        copy = np.where(may_take[:, None], found & maximum_bit, 0)
        return int(np.bitwise_count(smaller | copy).sum())

    wrong_least = wrong_most = 0
    start = (0, group.upper_last[None], group.lower_last[None], np.zeros(1, dtype=np.int64))
    stack: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = [start]
    while stack:
        position, high, low, taken = stack.pop()
        alive: Bool[np.ndarray, " node"] = (high + best[position] >= 0).any(axis=1)
        certain = (low + sure[position] >= 0).any(axis=1)
        operations.add(arithmetic=2 * high.size, comparisons=2 * high.size)
        if certain.any():
            ways = _completions(tokens, free - position, taken, cell.copies)
            total = sum(ways[int(count)] * int(number) for count, number in enumerate(np.bincount(taken[certain])))
            wrong_least += total
            wrong_most += total
        kept = alive & ~certain
        if not kept.any():
            continue
        high, low, taken = high[kept], low[kept], taken[kept]
        if position == free - 1:
            wrong_most += last_position(high, taken, masks_upper)
            wrong_least += last_position(low, taken, masks_lower)
            continue
        operations.add(arithmetic=2 * high.size * tokens)
        rows = max(1, _CHUNK // (tokens * outputs))
        for begin in range(0, len(high), rows):
            part = slice(begin, begin + rows)
            next_high = (high[part, None, :] + upper[None, :, position].transpose(0, 2, 1)).reshape(-1, outputs)
            next_low = (low[part, None, :] + lower[None, :, position].transpose(0, 2, 1)).reshape(-1, outputs)
            next_taken = (taken[part, None] + (np.arange(tokens) == tokens - 1)).ravel()
            possible = next_taken <= most
            stack.append((position + 1, next_high[possible], next_low[possible], next_taken[possible]))
    return wrong_least, wrong_most
