"""From the weights of a max-of-K model to the small tables that decide every prediction.

Write q for the last token, t_p for the token at position p, P for position embeddings. With

    SE[q, t] = (E_q + P_last) W_Q W_K^T E_t^T / √h        EU[q, x] = (E_q + P_last) W_U [x]
    SP[q, p] = (E_q + P_last) W_Q W_K^T P_p^T / √h        EV[t, x] = E_t W_V W_O W_U [x]      PV[p, x] likewise of P_p

the logit of x is EU[q, x] + Σ_p a_p (EV[t_p, x] + PV[p, x]), where a is the softmax of SE[q, t_p] + SP[q, p]
(arXiv 2406.11779, §3). Scores and values are computed exactly and rounded once; exponentials are enclosed by Arb.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from assay._errors import AssayError
from assay.proofs._certificate import float_weights
from assay.proofs._exact import ExactMatrix, flint
from assay.proofs._operations import Operations
from assay.subjects import MaxOfKForCausalLM, Subject

UNIT = 2.0**-53
"""The unit roundoff of float64."""

_LARGEST_SCORE = 2.0**40
"""Up to here a float of a score, off by 2^-13 at most, is near enough to choose its power of two by."""

_LARGEST_SPAN = 400
"""Powers of two between weights of one query: floats hold products of two such weights without underflow."""


@dataclass(frozen=True)
class Weights:
    """The seven matrices of a max-of-K model, exactly; `head` is the width whose root scales the scores."""

    E: ExactMatrix
    P: ExactMatrix
    Q: ExactMatrix
    K: ExactMatrix
    V: ExactMatrix
    O: ExactMatrix  # noqa: E741 (the field's name)
    U: ExactMatrix
    head: int

    @property
    def vocabulary(self) -> int:
        """The number of tokens."""
        return self.E.shape[0]

    @property
    def length(self) -> int:
        """K, the number of tokens compared."""
        return self.P.shape[0]


@dataclass(frozen=True)
class Powers:
    """Positive numbers mantissa · 2^exponent, each within 2^-51 relative of the exact one; mantissas in [1/2, 2]."""

    mantissa: Float[np.ndarray, "..."]
    exponent: Int[np.ndarray, "..."]


@dataclass(frozen=True)
class Tables:
    """Everything that decides the predictions of one model.

    `EU` (v, v) by (last token, output), `EV` (v, v) by (token, output), `PV` (K, v) by (position, output), in units of
    logits; each entry is within 2^-52 relative of the exact one. `token` (v, v) holds exp(SE) by (last token, token),
    `position` (v, K) holds exp(SP) by (last token, position).
    """

    EU: Float[np.ndarray, "v v"]
    EV: Float[np.ndarray, "v v"]
    PV: Float[np.ndarray, "K v"]
    token: Powers
    position: Powers

    @property
    def vocabulary(self) -> int:
        """The number of tokens."""
        return len(self.EU)

    @property
    def length(self) -> int:
        """K, the number of tokens compared."""
        return len(self.PV)

    @property
    def spread(self) -> float:
        """A bound on every difference of logits: 2 (max |EU| + max |EV| + max |PV|), rounded up."""
        return 2.0 * (np.abs(self.EU).max() + np.abs(self.EV).max() + np.abs(self.PV).max()) * (1 + 8 * UNIT)


def read_weights(subject: Subject) -> Weights:
    """The exact weights of a max-of-K subject. Raises AssayError for another architecture or precision."""
    model = subject.model
    # A subclass may compute something else.
    if type(model) is not MaxOfKForCausalLM:
        raise AssayError(
            f"{subject.name!r} is a {type(model).__name__}; this proof is about MaxOfKForCausalLM "
            "(assay.load('max-of-4'), or assay.subjects.import_max_of_k for your own weights)."
        )
    arrays, attention = float_weights(subject), "layers.0.attn."
    return Weights(
        E=ExactMatrix.of(arrays["embed_tokens.weight"]),
        P=ExactMatrix.of(arrays["embed_positions.weight"][: model.config.length]),
        Q=ExactMatrix.of(arrays[attention + "q_proj.weight"]).T,
        K=ExactMatrix.of(arrays[attention + "k_proj.weight"]).T,
        V=ExactMatrix.of(arrays[attention + "v_proj.weight"]).T,
        O=ExactMatrix.of(arrays[attention + "o_proj.weight"]).T,
        U=ExactMatrix.of(arrays["lm_head.weight"]).T,
        head=model.config.head_dim,
    )


def exponentials(scores: ExactMatrix, divisor_squared: int) -> Powers:
    """exp(scores / √divisor_squared), enclosed by Arb at 192 bits.

    Raises AssayError if a score is 2^40 or more, or if the exponentials of one query span more than 2^400.
    """
    library = flint()
    mantissas, exponents = [], []
    with library.ctx.workprec(192):
        unit = library.arb(2) ** scores.exponent / library.arb(divisor_squared).sqrt()
        log2 = library.arb.const_log2()
        inverse = 1 / float(log2)
        for entry in scores.numerators.entries():  # type: ignore[attr-defined]
            score = library.arb(entry) * unit
            size = float(score)
            if not abs(size) < _LARGEST_SCORE:
                raise AssayError(f"an attention score is {size:.3g}; scores must stay below 2^40 to be certified.")
            power = round(size * inverse)
            mantissas.append(float((score - power * log2).exp()))
            exponents.append(power)
    powers = Powers(
        np.array(mantissas).reshape(scores.shape), np.array(exponents, dtype=np.int64).reshape(scores.shape)
    )
    span = int(np.ptp(powers.exponent, axis=1).max())
    if span > _LARGEST_SPAN:
        raise AssayError(
            f"the attention weights of one query span a factor of 2^{span}; at most 2^{_LARGEST_SPAN} can be "
            "certified, so that no weight is lost to underflow."
        )
    return powers


def queries(weights: Weights) -> ExactMatrix:
    """Embeddings of every token at the last position."""
    d = weights.E.shape[1]
    entries = weights.P.numerators.entries()[-d:]  # type: ignore[attr-defined]
    return weights.E.plus_row(ExactMatrix(flint().fmpz_mat(1, d, entries), weights.P.exponent))


def score_matrices(weights: Weights, operations: Operations) -> tuple[ExactMatrix, ExactMatrix]:
    """√h times SE (v, v) and SP (v, K), exactly."""
    v, length, d, h = weights.vocabulary, weights.length, weights.E.shape[1], weights.Q.shape[1]
    directions = (queries(weights) @ weights.Q) @ weights.K.T
    operations.add(arithmetic=v * d)
    operations.product(v, d, h)
    operations.product(v, h, d)
    operations.product(v, d, v)
    operations.product(v, d, length)
    return directions @ weights.E.T, directions @ weights.P.T


def make_tables(weights: Weights, operations: Operations) -> Tables:
    """The tables of a model. Raises AssayError where a number leaves the range in which the proofs hold."""
    v, length, d, h = weights.vocabulary, weights.length, weights.E.shape[1], weights.Q.shape[1]
    query = queries(weights)
    score_token, score_position = score_matrices(weights, operations)
    out = (weights.V @ weights.O) @ weights.U
    operations.product(d, h, d)
    operations.product(d, d, v)
    EU, EV, PV = (query @ weights.U).rounded(), (weights.E @ out).rounded(), (weights.P @ out).rounded()
    operations.product(v, d, v)
    operations.product(v, d, v)
    operations.product(length, d, v)
    token, position = exponentials(score_token, weights.head), exponentials(score_position, weights.head)
    operations.add(arithmetic=v * v + v * length, exponentials=v * v + v * length)
    tables = Tables(EU, EV, PV, token, position)
    spread = tables.spread
    if spread != 0 and not 2.0**-200 < spread < 2.0**200:
        raise AssayError(f"the logits differ by up to {spread:.3g}; between 2^-200 and 2^200 is what can be certified.")
    return tables


def _ones(powers: Powers) -> Powers:
    return Powers(np.ones_like(powers.mantissa), np.zeros_like(powers.exponent))


def average_positions(tables: Tables) -> Tables:
    """The same model with attention that ignores positions: SP = 0."""
    return replace(tables, position=_ones(tables.position))


def uniform(tables: Tables) -> Tables:
    """The same model with equal attention to every position: SE = SP = 0."""
    return replace(tables, token=_ones(tables.token), position=_ones(tables.position))
