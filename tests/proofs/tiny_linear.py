"""Tiny linear max-of-n models, and the truth about them by enumeration in exact arithmetic."""

from fractions import Fraction
from itertools import product

import numpy as np
import torch
from flint import arb, ctx
from hypothesis import strategies as st

from assay.subjects import LinearMaxConfig, LinearMaxForCausalLM, Subject
from assay.tasks import InputSet


def linear_subject(E: np.ndarray, W: np.ndarray, U: np.ndarray, length: int) -> Subject:
    """A model whose logits are (Σ E[t]) W U, with E (v, d), W (d, d), U (d, v)."""
    v, d = E.shape
    model = LinearMaxForCausalLM(LinearMaxConfig(vocab_size=v, length=length, hidden_size=d))
    arrays = {"embed_tokens.weight": E, "linear.weight": W.T, "lm_head.weight": U.T}
    model.load_state_dict({key: torch.from_numpy(np.array(x, dtype=np.float32)) for key, x in arrays.items()})
    return Subject(model.eval(), None, "tiny-linear")


def table_subject(logits: np.ndarray, length: int) -> Subject:
    """A model in which token t contributes the row logits[t]."""
    return linear_subject(logits, np.eye(len(logits)), np.eye(len(logits)), length)


class LinearTruth:
    """Exact predictions and losses, input by input."""

    def __init__(self, subject: Subject) -> None:
        state = subject.model.state_dict()
        E, W, U = (
            [[Fraction(float(x)) for x in row] for row in state[f"{name}.weight"]]
            for name in ("embed_tokens", "linear", "lm_head")
        )
        mapped = [[sum(w * x for w, x in zip(row, e, strict=True)) for row in W] for e in E]
        self.table = [[sum(u * x for u, x in zip(row, e, strict=True)) for row in U] for e in mapped]

    def inputs(self, inputs: InputSet) -> list[tuple[int, ...]]:
        every = np.array(list(product(range(inputs.vocabulary), repeat=inputs.length)))
        chosen = every[inputs.contains(every)]
        assert len(chosen) == inputs.size
        return [tuple(map(int, tokens)) for tokens in chosen]

    def logits(self, tokens: tuple[int, ...]) -> list[Fraction]:
        return [sum(column) for column in zip(*(self.table[t] for t in tokens), strict=True)]

    def count(self, inputs: InputSet) -> int:
        right = 0
        for tokens in self.inputs(inputs):
            logits, m = self.logits(tokens), max(tokens)
            right += all(logit < logits[m] for x, logit in enumerate(logits) if x != m)
        return right

    def loss(self, inputs: InputSet) -> arb:
        """The mean cross-entropy in nats, to hundreds of bits."""
        with ctx.workprec(2000):
            total = arb(0)
            for tokens in self.inputs(inputs):
                logits, m = self.logits(tokens), max(tokens)
                total += sum((_arb(logit - logits[m]).exp() for logit in logits), arb(0)).log()
            return total / inputs.size


def _arb(number: Fraction) -> arb:
    return arb(number.numerator) / number.denominator


_PLAIN = st.floats(-3, 3, width=16)
_NASTY = st.sampled_from([0.0, 1.0, -1.0, 0.5, 3.0, 1e-40, -1e-45, 1e-6, 2.0**-20, 60.0, -60.0, 2.0**10, -(2.0**10)])


@st.composite
def tiny_linear_models(draw: st.DrawFn, lengths: tuple[int, ...] = (2, 3)) -> Subject:
    """Random and adversarial weights: ties, equal tokens, huge, tiny and denormal numbers."""
    v, length, d = draw(st.integers(2, 5)), draw(st.sampled_from(lengths)), draw(st.integers(1, 3))
    number = draw(st.sampled_from([_PLAIN, _PLAIN, _NASTY, st.one_of(_PLAIN, _NASTY), st.integers(-2, 2).map(float)]))

    def matrix(rows: int, columns: int) -> np.ndarray:
        values = draw(st.lists(number, min_size=rows * columns, max_size=rows * columns))
        return np.array(values, dtype=np.float32).reshape(rows, columns)

    E, W, U = matrix(v, d), matrix(d, d), matrix(d, v)
    if d > 1 and draw(st.booleans()):
        # Nearly right: with sizes s the logit of x is b s x - b x² / 2 times a constant, largest where x is near s.
        size = np.arange(v, dtype=np.float32)
        E[:, 0], E[:, 1], W[:], U[0], U[1] = size, 1, 0, size, -(size**2) / 2
        W[0, 0], W[1, 1] = 3, draw(st.sampled_from([1.0, 2.0]))
    return linear_subject(E, W, U, length)
