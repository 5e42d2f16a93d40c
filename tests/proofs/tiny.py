"""Tiny max-of-K models, and the truth about them by enumeration in exact arithmetic."""

from fractions import Fraction
from itertools import product

import numpy as np
import torch
from flint import arb, ctx
from hypothesis import strategies as st

from assay.subjects import MaxOfKConfig, MaxOfKForCausalLM, Subject
from assay.tasks import InputSet


def subject_of(arrays: dict[str, np.ndarray], length: int) -> Subject:
    """A model with the given W_E, W_pos, W_Q, W_K, W_V, W_O, W_U; those left out are zero."""
    v, d = arrays["W_E"].shape
    head = arrays["W_Q"].shape[1] if "W_Q" in arrays else 1
    shapes = {"W_pos": (length, d), "W_U": (d, v), "W_O": (head, d)} | {f"W_{n}": (d, head) for n in "QKV"}
    full = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()} | arrays
    model = MaxOfKForCausalLM(MaxOfKConfig(vocab_size=v, length=length, hidden_size=d, head_dim=head))
    tensors = {name: torch.from_numpy(np.asarray(value, dtype=np.float32)) for name, value in full.items()}
    state = {
        "embed_tokens.weight": tensors["W_E"],
        "embed_positions.weight": torch.cat([tensors["W_pos"], torch.zeros(1, d)]),
        "lm_head.weight": tensors["W_U"].T,
    }
    for name in "QKVO":
        state[f"layers.0.attn.{name.lower()}_proj.weight"] = tensors[f"W_{name}"].T
    model.load_state_dict(state)
    return Subject(model.eval(), None, "tiny")


def _exact(tensor: torch.Tensor) -> list[list[Fraction]]:
    return [[Fraction(float(x)) for x in row] for row in tensor]


def _times(a: list[list[Fraction]], b: list[list[Fraction]]) -> list[list[Fraction]]:
    columns = list(zip(*b, strict=True))
    return [[sum((x * y for x, y in zip(row, column, strict=True)), Fraction(0)) for column in columns] for row in a]


def _transpose(a: list[list[Fraction]]) -> list[list[Fraction]]:
    return [list(column) for column in zip(*a, strict=True)]


class Truth:
    """Exact predictions of a tiny model whose head has width 1, input by input.

    The sign of a sum of rational multiples of exponentials of distinct rationals is decided by raising Arb's precision:
    the sum is zero only if all coefficients are (Lindemann and Weierstrass).
    """

    def __init__(self, subject: Subject) -> None:
        state = subject.model.state_dict()
        assert subject.model.config.head_dim == 1
        self.length = subject.model.config.length
        E = _exact(state["embed_tokens.weight"])
        P = _exact(state["embed_positions.weight"][: self.length])
        U = _transpose(_exact(state["lm_head.weight"]))
        Q, K, V, O = (_transpose(_exact(state[f"layers.0.attn.{n}_proj.weight"])) for n in "qkvo")  # noqa: E741
        query = [[a + b for a, b in zip(row, P[-1], strict=True)] for row in E]
        out = _times(_times(V, O), U)
        self.EU, self.EV, self.PV = _times(query, U), _times(E, out), _times(P, out)
        keys = _times(_times(query, Q), _transpose(K))
        self.SE, self.SP = _times(keys, _transpose(E)), _times(keys, _transpose(P))

    def sign(self, tokens: tuple[int, ...], x: int) -> int:
        """The sign of logit_x minus the largest token's logit."""
        q, m = tokens[-1], max(tokens)
        terms: dict[Fraction, Fraction] = {}
        for p, t in enumerate(tokens):
            score = self.SE[q][t] + self.SP[q][p]
            value = self.EU[q][x] - self.EU[q][m] + self.EV[t][x] - self.EV[t][m] + self.PV[p][x] - self.PV[p][m]
            terms[score] = terms.get(score, Fraction(0)) + value
        terms = {score: value for score, value in terms.items() if value}
        if not terms:
            return 0
        top = max(terms)
        bits = 128
        while True:
            with ctx.workprec(bits):
                total = sum(
                    (
                        arb(value.numerator)
                        / value.denominator
                        * (arb((s - top).numerator) / (s - top).denominator).exp()
                        for s, value in terms.items()
                    ),
                    arb(0),
                )
                if bool(total > 0):
                    return 1
                if bool(total < 0):
                    return -1
            bits *= 2

    def correct(self, tokens: tuple[int, ...]) -> bool:
        m = max(tokens)
        return all(self.sign(tokens, x) < 0 for x in range(len(self.EU)) if x != m)

    def count(self, inputs: InputSet) -> int:
        every = np.array(list(product(range(inputs.vocabulary), repeat=inputs.length)))
        chosen = every[inputs.contains(every)]
        assert len(chosen) == inputs.size
        return sum(self.correct(tuple(map(int, tokens))) for tokens in chosen)


_PLAIN = st.floats(-3, 3, width=16)
_NASTY = st.sampled_from([0.0, 1.0, -1.0, 0.5, 3.0, 1e-40, -1e-45, 1e-6, 2.0**-20, 60.0, -60.0, 2.0**12, -(2.0**12)])


@st.composite
def tiny_models(draw: st.DrawFn) -> Subject:
    """Random and adversarial weights: ties, equal tokens, huge, tiny and denormal numbers."""
    v, length, d = draw(st.integers(3, 4)), draw(st.integers(2, 4)), draw(st.integers(1, 2))
    number = draw(st.sampled_from([_PLAIN, _PLAIN, _NASTY, st.one_of(_PLAIN, _NASTY), st.integers(-2, 2).map(float)]))
    shapes = {"W_E": (v, d), "W_pos": (length, d), "W_U": (d, v), "W_O": (1, d)} | {f"W_{n}": (d, 1) for n in "QKV"}
    arrays = {}
    for name, (rows, columns) in shapes.items():
        values = draw(st.lists(number, min_size=rows * columns, max_size=rows * columns))
        arrays[name] = np.array(values, dtype=np.float32).reshape(rows, columns)
    if draw(st.booleans()):
        # A model that is nearly right: the unembedding reads the token's size off its embedding.
        size = np.arange(v, dtype=np.float32)
        arrays["W_E"][:, 0], arrays["W_U"][0] = size, size
        arrays["W_U"][-1] -= size**2 / 8 if d > 1 else 0
        arrays["W_Q"][0], arrays["W_K"][0], arrays["W_V"][0], arrays["W_O"][0, 0] = 1, 1, 2, 1
    return subject_of(arrays, length)


@st.composite
def tiny_inputs(draw: st.DrawFn, subject: Subject) -> InputSet:
    """A non-empty set of inputs of a model."""
    v, length = subject.model.config.vocab_size, subject.model.config.length
    return InputSet(
        length,
        v,
        minimum_maximum=draw(st.integers(1, v - 1)) if draw(st.booleans()) else 0,
        within=draw(st.integers(1, v)) if draw(st.booleans()) else None,
        copies=draw(st.integers(1, length)) if draw(st.booleans()) else None,
    )
