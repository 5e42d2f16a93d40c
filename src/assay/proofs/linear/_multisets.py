"""The inputs of a linear model up to the order of their tokens, which the sum of the rows of a table does not see."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import comb, factorial

import numpy as np
from jaxtyping import Int

from assay.proofs.linear._table import Table
from assay.tasks import InputSet


@dataclass(frozen=True)
class Multisets:
    """The multisets of tokens that make up a set of inputs, by their largest token.

    `tokens` (multiset, n) are ascending in a row, the rows in ascending order of their largest; `orders` (multiset,) is
    the number of sequences that each multiset stands for.
    """

    tokens: Int[np.ndarray, "multiset n"]
    orders: Int[np.ndarray, " multiset"]

    def by_maximum(self) -> Iterator[tuple[int, slice]]:
        """Each largest token with its rows."""
        maxima, first = np.unique(self.tokens[:, -1], return_index=True)
        for maximum, begin, end in zip(maxima, first, [*first[1:], len(self.tokens)], strict=True):
            yield int(maximum), slice(int(begin), int(end))


def _others(low: int, high: int, number: int) -> np.ndarray:
    """All ascending rows of `number` tokens from low to high, inclusive."""
    if number == 1:
        return np.arange(low, high + 1)[:, None]
    if number == 2:
        later, earlier = np.tril_indices(high - low + 1)
        return np.column_stack([earlier, later]) + low
    return np.array(list(combinations_with_replacement(range(low, high + 1), number)), dtype=np.int64).reshape(
        -1, number
    )


def _orders(tokens: np.ndarray) -> np.ndarray:
    """How many orders each ascending row of tokens has: n! over the product of the factorials of the copies."""
    orders = np.full(len(tokens), factorial(tokens.shape[1]), dtype=np.int64)
    run = np.ones(len(tokens), dtype=np.int64)
    for column in range(1, tokens.shape[1]):
        run = np.where(tokens[:, column] == tokens[:, column - 1], run + 1, 1)
        orders //= run
    return orders


def multisets(inputs: InputSet) -> Multisets:
    """The multisets of a set of inputs of at least two tokens."""
    parts = []
    for maximum in inputs.maxima:
        others = _others(inputs.lowest(maximum), maximum, inputs.length - 1)
        if inputs.copies is not None:
            others = others[(others == maximum).sum(axis=1) == inputs.copies - 1]
        parts.append(np.column_stack([others, np.full(len(others), maximum)]))
    tokens = np.concatenate(parts)
    return Multisets(tokens, _orders(tokens))


def number_of_multisets(inputs: InputSet) -> int:
    """How many multisets of tokens the set has, exactly."""
    total = 0
    for maximum in inputs.maxima:
        smaller = maximum - inputs.lowest(maximum)
        numbers = range(1, inputs.length + 1) if inputs.copies is None else [inputs.copies]
        for copies in numbers:
            left = inputs.length - copies
            total += comb(smaller + left - 1, left) if smaller else int(left == 0)
    return total


def occurrences(inputs: InputSet, maximum: int) -> tuple[int, int]:
    """Over all sequences of the set with this largest token: how often each smaller token, and how often it, appears.

    Every smaller token that is allowed appears equally often.
    """
    smaller, n = maximum - inputs.lowest(maximum), inputs.length
    each = own = 0
    for copies in range(1, n + 1) if inputs.copies is None else [inputs.copies]:
        own += copies * comb(n, copies) * smaller ** (n - copies)
        if smaller and copies < n:
            each += comb(n, copies) * (n - copies) * smaller ** (n - copies - 1)
    return each, own


def sum_of_answers(table: Table, inputs: InputSet) -> tuple[int, int]:
    """The logits of the correct answers, added up over all inputs: an integer times a power of two, exactly.

    A logit is linear in the embeddings, so that a row of sums over inputs, made from running sums, is all it takes.
    """
    shape = table.embedding.shape
    embedding = np.array(list(table.embedding.integers()), dtype=object).reshape(shape)
    answers = np.array(list(table.unembedding.integers()), dtype=object).reshape(shape[::-1]).T
    before = np.vstack([np.zeros((1, shape[1]), dtype=object), np.cumsum(embedding, axis=0)])
    total = 0
    for maximum in inputs.maxima:
        each, own = occurrences(inputs, maximum)
        row = each * (before[maximum] - before[inputs.lowest(maximum)]) + own * embedding[maximum]
        total += int((row * answers[maximum]).sum())
    return total, table.embedding.exponent + table.unembedding.exponent
