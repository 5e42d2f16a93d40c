"""From the weights of a linear max-of-n model to the table of logits that a token contributes, and its exponentials.

A sequence's logits are the sum of its tokens' rows of l = E W^T U^T: embedding, linear map, unembedding.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from assay._errors import AssayError
from assay.proofs._certificate import float_weights
from assay.proofs._exact import ExactMatrix
from assay.proofs._operations import Operations
from assay.proofs.linear._exponential import UNIT, exponential
from assay.subjects import LinearMaxForCausalLM, Subject

LARGEST_VOCABULARY = 1 << 16
"""With more tokens the bounds on rounding errors would have to be derived again."""

_LARGEST_LOGIT = 2.0**900


@dataclass(frozen=True)
class Table:
    """What a token contributes to the logits.

    `embedding` (v, d) times `unembedding` (d, v) is the exact table, by token and output; each entry of `logits` (v, v)
    is within `radius` of it.
    """

    embedding: ExactMatrix
    unembedding: ExactMatrix
    logits: Float[np.ndarray, "v v"]
    radius: float
    length: int

    @property
    def vocabulary(self) -> int:
        """The number of tokens."""
        return len(self.logits)

    @property
    def largest(self) -> float:
        """A bound on the magnitude of a sequence's logits."""
        return self.length * float(np.abs(self.logits).max()) * (1 + 4 * UNIT)


@dataclass(frozen=True)
class Exponentials:
    """Entries e^(l[t, x] - top[t]), at most 1; top[t] is the largest entry of the row l[t] of `Table.logits`.

    Each entry is within 800 u relative, u = 2^-53, plus 2^-1000 of the exact one.
    """

    values: Float[np.ndarray, "v v"]
    top: Float[np.ndarray, " v"]


def make_table(subject: Subject, operations: Operations) -> Table:
    """The table of a linear max-of-n subject.

    Raises AssayError for another architecture or precision, for weights that are not finite, and for logits of 2^900 or
    more.
    """
    model = subject.model
    # A subclass may compute something else.
    if type(model) is not LinearMaxForCausalLM:
        raise AssayError(f"{subject.name!r} is a {type(model).__name__}; this proof is about LinearMaxForCausalLM.")
    arrays = float_weights(subject)
    E, W, U = (arrays[f"{name}.weight"] for name in ("embed_tokens", "linear", "lm_head"))
    (v, d), n = E.shape, model.config.length
    if (W.shape, U.shape) != ((d, d), (v, d)) or not 1 <= v <= LARGEST_VOCABULARY or not 1 <= d <= LARGEST_VOCABULARY:
        raise AssayError(f"{subject.name!r} has matrices of shapes {E.shape}, {W.shape}, {U.shape}; they do not fit.")
    embedding = ExactMatrix.of(E)
    unembedding = ExactMatrix.of(W).T @ ExactMatrix.of(U).T
    rounded = unembedding.rounded()
    operations.product(d, d, v)
    logits = E.astype(np.float64) @ rounded
    operations.product(v, d, v)
    magnitude = np.abs(E.astype(np.float64))
    size = float((magnitude @ np.abs(rounded).max(axis=1)).max())
    radius = 1.1 * (d + 8) * UNIT * size + 2.0**-1000 * (1 + float(magnitude.sum(axis=1).max()))
    if not max(size, radius) < _LARGEST_LOGIT:
        raise AssayError(f"the logits of {subject.name!r} reach {size:.3g}; at most 2^900 can be certified.")
    return Table(embedding, unembedding, logits, radius, n)


def exponentials(table: Table, operations: Operations) -> Exponentials:
    """The exponentials of a table, each row scaled by its largest."""
    v = table.vocabulary
    top = table.logits.max(axis=1)
    operations.add(arithmetic=v * v, comparisons=v * v, exponentials=v * v)
    return Exponentials(exponential(table.logits - top[:, None]), top)
