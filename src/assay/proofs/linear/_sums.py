"""Sums of exponentials of logits, Z = Σ_x Π_i e^(l[t_i, x] - top[t_i]), for every multiset of tokens, or their bounds.

A loss is log Z plus terms that are linear in the embeddings, so a bound on Z is one on the loss; and Z is at most twice
its term of the correct answer, minus something, only where the answer is right (docs/soundness.md, theorems L1 to L5).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from assay.proofs._operations import Operations
from assay.proofs.linear._exponential import exponential
from assay.proofs.linear._multisets import Multisets
from assay.proofs.linear._table import Exponentials, Table

_CHUNK = 1 << 14


@dataclass(frozen=True)
class Bounds:
    """For each multiset, numbers that the sum lies between, up to rounding."""

    low: Float[np.ndarray, " multiset"]
    high: Float[np.ndarray, " multiset"]


def direct(table: Table, tokens: Int[np.ndarray, "row n"]) -> tuple[np.ndarray, np.ndarray]:
    """For each row of tokens, its largest logit, and the sum of the exponentials of all logits minus that one."""
    sums, references = np.empty(len(tokens)), np.empty(len(tokens))
    rows = max(1, _CHUNK // table.vocabulary)
    for begin in range(0, len(tokens), rows):
        part = slice(begin, begin + rows)
        logits = add_up(table, tokens[part])
        references[part] = logits.max(axis=1)
        logits -= references[part, None]
        sums[part] = exponential(logits).sum(axis=1)
    return sums, references


def add_up(table: Table, tokens: Int[np.ndarray, "row n"]) -> Float[np.ndarray, "row v"]:
    """The logits of each row of tokens."""
    logits = table.logits[tokens[:, 0]]
    for column in range(1, tokens.shape[1]):
        logits += table.logits[tokens[:, column]]
    return logits


def products(exponentials: Exponentials, sets: Multisets, operations: Operations) -> Float[np.ndarray, " multiset"]:
    """Every sum as an entry of A Aᵀ, for pairs, or of A diag(A_m) Aᵀ for triples with the largest token m."""
    A = exponentials.values
    v = len(A)
    if sets.tokens.shape[1] == 2:
        operations.add(arithmetic=v * v * (v + 1))
        return (A @ A.T)[sets.tokens[:, 0], sets.tokens[:, 1]]
    roots = np.sqrt(A)
    operations.add(exponentials=v * v)
    sums = np.empty(len(sets.tokens))
    for maximum, rows in sets.by_maximum():
        least = int(sets.tokens[rows, 0].min())
        scaled = A[least : maximum + 1] * roots[maximum]
        here = sets.tokens[rows] - least
        sums[rows] = (scaled @ scaled.T)[here[:, 0], here[:, 1]]
        operations.add(arithmetic=scaled.size + scaled.size * (len(scaled) + 1))
    return sums


def doubled(exponentials: Exponentials, length: int, operations: Operations) -> Float[np.ndarray, "..."]:
    """The sums with one token twice: Q[t] of (t, t) for pairs, Q[m, t] of (t, t, m) for triples."""
    A = exponentials.values
    v = len(A)
    squares = A * A
    operations.add(arithmetic=v * v)
    if length == 2:
        operations.add(arithmetic=v * v)
        return squares.sum(axis=1)
    operations.product(v, v, v)
    return A @ squares.T


def keep_largest(exponentials: Exponentials, number: int) -> Bool[np.ndarray, "v v"]:
    """For each token the `number` outputs with the largest entries, and the token itself."""
    A = exponentials.values
    kept = np.eye(len(A), dtype=bool)
    if number:
        largest = np.argpartition(A, len(A) - min(number, len(A)), axis=1)[:, -number:]
        np.put_along_axis(kept, largest, True, axis=1)
    return kept


def _blocks(squares: Float[np.ndarray, "row v"], width: int) -> Float[np.ndarray, "row block"]:
    """The root of the sum of each run of `width` columns, rounded up where it could underflow."""
    return np.sqrt(np.add.reduceat(squares, np.arange(0, squares.shape[1], width), axis=1) + 2.0**-960)


def in_blocks(
    exponentials: Exponentials, sets: Multisets, kept: Bool[np.ndarray, "v v"], width: int, operations: Operations
) -> Bounds:
    """Sums split into terms in which an output is kept, taken exactly, and the rest, by Cauchy and Schwarz a block.

    With A = T + R, T the kept entries, a row of A times another is T A + R T + R R, and R R is at most the sum over
    blocks of outputs of the products of Euclidean norms.
    """
    A = exponentials.values
    v = len(A)
    blocks = -(-v // width)
    if sets.tokens.shape[1] == 2:
        rest = np.where(kept, 0, A)
        sparse = csr_array(np.where(kept, A, 0))
        exact = sparse @ A.T + (sparse @ rest.T).T
        norms = _blocks(rest * rest, width)
        operations.add(arithmetic=4 * int(kept.sum()) * v + v * v + blocks * v * (v + 1) + 2 * v * v)
        operations.add(arithmetic=v * v, exponentials=v * blocks)
        chosen = sets.tokens[:, 0], sets.tokens[:, 1]
        low = exact[chosen]
        return Bounds(low, low + (norms @ norms.T)[chosen])
    low, high = np.empty(len(sets.tokens)), np.empty(len(sets.tokens))
    roots = np.sqrt(A)
    operations.add(exponentials=v * v)
    for maximum, rows in sets.by_maximum():
        least = int(sets.tokens[rows, 0].min())
        here = kept[least : maximum + 1].copy()
        here[:, maximum] = True
        scaled = A[least : maximum + 1] * roots[maximum]
        number = len(scaled)
        rest = np.where(here, 0, scaled)
        sparse = csr_array(np.where(here, scaled, 0))
        exact = sparse @ scaled.T + (sparse @ rest.T).T
        norms = _blocks(rest * rest, width)
        operations.add(arithmetic=4 * int(here.sum()) * number + number * number)
        operations.add(arithmetic=blocks * number * (number + 1) + number * number)
        operations.add(arithmetic=3 * scaled.size, exponentials=number * blocks)
        chosen = sets.tokens[rows, 0] - least, sets.tokens[rows, 1] - least
        low[rows] = exact[chosen]
        high[rows] = low[rows] + (norms @ norms.T)[chosen]
    return Bounds(low, high)


def exactly(
    exponentials: Exponentials, tokens: Int[np.ndarray, "row n"], operations: Operations
) -> Float[np.ndarray, " row"]:
    """The sums of chosen multisets, one after the other."""
    A = exponentials.values
    sums = np.empty(len(tokens))
    rows = max(1, _CHUNK // len(A))
    for begin in range(0, len(tokens), rows):
        part = slice(begin, begin + rows)
        product = A[tokens[part, 0]]
        for column in range(1, tokens.shape[1]):
            product *= A[tokens[part, column]]
        sums[part] = product.sum(axis=1)
    operations.add(arithmetic=len(tokens) * len(A) * tokens.shape[1])
    return sums
