"""How much the part of the token scores that a circuit of rank 1 leaves out can matter: one function a recipe.

Token scores are X Yᵀ = (X c)(Y e)ᵀ + X (I - c eᵀ) Yᵀ for any two vectors c and e. The first part is used as it is; of
the second, the remainder R, the subcubic proof needs a number β_q ≥ |R[q, s] - R[q, t]| for all tokens s and t. The
recipes are those of arXiv 2406.11779 (with the rounding that is not accounted for there), and one of our own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from assay.proofs._operations import Operations

ROUNDING = 1e-12
"""Relative slack for float64 sums of at most 4,000 terms, above twice their error of 4000 · 2^-53."""


@dataclass(frozen=True)
class Circuit:
    """Token scores X Yᵀ in factors, within rounding (`E`, of which differences are taken, exactly).

    X (v, h) = `queries` (v, d) times `Q` (d, h), and Y (v, h) = `E` (v, d) times `K` (d, h).
    `c` and `e` (h,) choose the part of rank 1.
    """

    queries: Float[np.ndarray, "v d"]
    Q: Float[np.ndarray, "d h"]
    K: Float[np.ndarray, "d h"]
    E: Float[np.ndarray, "v d"]
    X: Float[np.ndarray, "v h"]
    Y: Float[np.ndarray, "v h"]
    c: Float[np.ndarray, " h"]
    e: Float[np.ndarray, " h"]

    @property
    def rest(self) -> Float[np.ndarray, "v h"]:
        """X (I - c eᵀ): the remainder is this times Yᵀ."""
        rest: np.ndarray = self.X - (self.X @ self.c)[:, None] * self.e
        return rest

    @property
    def size(self) -> Float[np.ndarray, " v"]:
        """A bound on the magnitudes that are added up for a score of each query, term by term."""
        reach = np.abs(self.Y).max(axis=0)
        size: np.ndarray = np.abs(self.X) @ reach + (np.abs(self.X) @ np.abs(self.c)) * (np.abs(self.e) @ reach)
        return size

    def count(self, operations: Operations) -> None:
        """Count what all recipes but `recursive` do: X, Y and the part of rank 1, X (I - c eᵀ)."""
        (v, d), h = self.queries.shape, len(self.c)
        operations.product(v, d, h)
        operations.product(v, d, h)
        operations.add(arithmetic=2 * 2 * v * h + v * v + 2 * v * h)


def _spread(matrix: Float[np.ndarray, "row column"]) -> Float[np.ndarray, " column"]:
    """Largest less smallest entry of every column."""
    spread: np.ndarray = np.ptp(matrix, axis=0)
    return spread


def max_diff(circuit: Circuit, operations: Operations) -> Float[np.ndarray, " v"]:
    """β_q = Σ_k |rest[q, k]| (max_t Y[t, k] - min_t Y[t, k])."""
    v, h = circuit.X.shape
    circuit.count(operations)
    operations.add(arithmetic=2 * v * h, comparisons=2 * v * h)
    found: np.ndarray = np.abs(circuit.rest) @ _spread(circuit.Y)
    return found + 4 * ROUNDING * circuit.size


def principal(circuit: Circuit, operations: Operations) -> Float[np.ndarray, " v"]:
    """Max-diff in the principal directions B of the keys, where it is smallest.

    R = (rest B)(Y B)ᵀ + rest (I - B Bᵀ) Yᵀ for any B, so that finding it is no part of the proof; the last term is
    within rounding of 0, and bounded.
    """
    (d, h), v = circuit.Q.shape, len(circuit.X)
    circuit.count(operations)
    # B as a factor of Q and K, in front of the products with the embeddings.
    operations.product(d, h, 2 * h)
    operations.add(arithmetic=2 * v * h, comparisons=2 * v * h)
    Y = circuit.Y
    basis = np.linalg.svd(Y - Y.mean(axis=0))[2].T
    departure = np.abs(np.eye(h) - basis @ basis.T) + ROUNDING * (np.eye(h) + np.abs(basis) @ np.abs(basis).T)
    terms = np.abs(circuit.X) + (np.abs(circuit.X) @ np.abs(circuit.c))[:, None] * np.abs(circuit.e)
    size = terms @ np.abs(basis) @ (np.abs(Y) @ np.abs(basis)).max(axis=0)
    found: np.ndarray = np.abs(circuit.rest @ basis) @ _spread(Y @ basis)
    return found + 2 * terms @ departure @ np.abs(Y).max(axis=0) + 8 * ROUNDING * size


def mean_diff(circuit: Circuit, operations: Operations) -> Float[np.ndarray, " v"]:
    """Max-diff of what is left of `rest` without its mean row, beside the range of that mean's own part."""
    v, h = circuit.X.shape
    circuit.count(operations)
    operations.add(arithmetic=2 * v * h + 2 * v * h + 2 * v * h, comparisons=2 * v * h + 2 * v)
    rest = circuit.rest
    mean = rest.mean(axis=0)
    found: np.ndarray = np.ptp(circuit.Y @ mean) + np.abs(rest - mean) @ _spread(circuit.Y)
    return found + 8 * ROUNDING * circuit.size.max()


def _squared_norm(matrix: Float[np.ndarray, "row column"]) -> float:
    """An upper bound on the squared spectral norm, tight but for rounding: eigenvalues, and what they leave."""
    gram = matrix.T @ matrix
    values, vectors, left = _decomposed(gram)
    skew = float(np.linalg.norm(vectors.T @ vectors - np.eye(len(gram)))) + ROUNDING * len(gram)
    bound = max(float(values.max()), 0.0) * (1 + skew) + left + 4 * ROUNDING * float(np.square(matrix).sum())
    return bound * (1 + ROUNDING)


def _decomposed(gram: Float[np.ndarray, "n n"]) -> tuple[np.ndarray, np.ndarray, float]:
    """Eigenvalues and vectors, about, and a bound on the Frobenius norm of what their product leaves of a matrix."""
    values, vectors = np.linalg.eigh(gram)
    left = np.linalg.norm(gram - (vectors * values) @ vectors.T)
    size = np.linalg.norm(np.abs(gram) + (np.abs(vectors) * np.abs(values)) @ np.abs(vectors).T)
    return values, vectors, float(left + 2 * ROUNDING * size)


def svd(circuit: Circuit, operations: Operations) -> Float[np.ndarray, " v"]:
    """β = √2 σ, with σ the largest singular value of the remainder, of which an upper bound is computed in factors.

    With Yᵀ Y = L Lᵀ + D, σ² is at most the squared norm of `rest` L, and that of D times that of `rest`.
    """
    v, h = circuit.X.shape
    circuit.count(operations)
    for rows in (v, v, v, h, h, h):
        operations.product(rows, h, h)
    operations.add(arithmetic=4 * h * h)
    # Scaled by powers of two, which rounds nothing, so that squares stay in range.
    left_scale, right_scale = _scale(circuit.X), _scale(circuit.Y)
    rest, Y = circuit.rest * left_scale, circuit.Y * right_scale
    values, vectors, left = _decomposed(Y.T @ Y)
    half = vectors * np.sqrt(np.maximum(values, 0))
    left += max(0.0, -float(values.min())) * float(np.square(vectors).sum()) * (1 + ROUNDING)
    left += 2 * ROUNDING * float(np.square(Y).sum() + np.square(half).sum())
    # Frobenius norms of the magnitudes that are added up bound what rounding does to `rest`, its product and Y.
    size = np.linalg.norm(circuit.X * left_scale) * (1 + np.linalg.norm(circuit.c) * np.linalg.norm(circuit.e))
    sigma = float(np.sqrt(_squared_norm(rest @ half) + left * size**2))
    sigma += 8 * ROUNDING * float(size) * float(np.linalg.norm(half) + np.linalg.norm(Y))
    return np.full(v, np.sqrt(2) * sigma * (1 + ROUNDING) / left_scale / right_scale)


def _scale(matrix: Float[np.ndarray, "row column"]) -> float:
    """The power of two that brings the largest entry below 1, or as near to it as float64 has powers."""
    return 2.0 ** -int(np.clip(np.frexp(np.abs(matrix).max())[1], -1000, 1000))


def recursive(circuit: Circuit, operations: Operations) -> Float[np.ndarray, " v"]:
    """Max-diff from the right through the chain of factors, none of which are multiplied: the shortest proof."""
    (v, d), h = circuit.queries.shape, len(circuit.c)
    # X c and Y e from their factors; then (I - c eᵀ) Kᵀ, and the chain.
    operations.add(arithmetic=2 * (2 * d * h + 2 * v * d) + v * v)
    operations.add(arithmetic=2 * d * h + 2 * d * h + 2 * d * h + 2 * v * d, comparisons=2 * v * d)
    peeled = circuit.K.T - circuit.c[:, None] * (circuit.K @ circuit.e)
    size = np.abs(circuit.K.T) + np.abs(circuit.c)[:, None] * (np.abs(circuit.K) @ np.abs(circuit.e))
    found: np.ndarray = np.abs(circuit.queries) @ (
        np.abs(circuit.Q) @ ((np.abs(peeled) + 4 * ROUNDING * size) @ _spread(circuit.E))
    )
    # What may have been lost on the way to products too small for float64, times what would have followed.
    lost = 2.0**-1060 * (d + h) * (1 + np.abs(circuit.queries).sum(axis=1) * (1 + np.abs(circuit.Q).sum()))
    return found * (1 + 4 * ROUNDING) + lost


REMAINDERS: dict[str, Callable[[Circuit, Operations], Float[np.ndarray, " v"]]] = {
    "principal": principal,
    "max-diff": max_diff,
    "mean+diff": mean_diff,
    "svd": svd,
    "recursive": recursive,
}
