"""Tiny max-of-K models, and the truth about them by enumeration in exact arithmetic."""

from fractions import Fraction
from itertools import product
from math import isqrt
from typing import Any

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
    """Exact predictions of a tiny model, input by input; the width of its head must be a square.

    With `proxy`, the record of a proxy in a certificate's JSON, they are the proxy's. The sign of a sum of rational
    multiples of exponentials of distinct rationals is decided by raising Arb's precision: the sum is zero only if all
    coefficients are (Lindemann and Weierstrass).
    """

    def __init__(self, subject: Subject, proxy: dict[str, Any] | None = None) -> None:
        state = subject.model.state_dict()
        root = isqrt(subject.model.config.head_dim)
        assert root * root == subject.model.config.head_dim
        self.length = subject.model.config.length
        E = _exact(state["embed_tokens.weight"])
        P = _exact(state["embed_positions.weight"][: self.length])
        U = _transpose(_exact(state["lm_head.weight"]))
        Q, K, V, O = (_transpose(_exact(state[f"layers.0.attn.{n}_proj.weight"])) for n in "qkvo")  # noqa: E741
        query = [[a + b for a, b in zip(row, P[-1], strict=True)] for row in E]
        out = _times(_times(V, O), U)
        self.EU, self.EV, self.PV = _times(query, U), _times(E, out), _times(P, out)
        kind = proxy["kind"] if proxy else None
        queries, tokens, positions = _times(query, Q), _times(E, K), _times(P, K)
        if kind == "projection":
            # Every key is projected as a whole, the sum of a token's and a position's part.
            queries = _projected(queries, proxy["queries"])
            whole = [[[a + b for a, b in zip(t, p, strict=True)] for t in tokens] for p in positions]
            keys = [_projected(part, proxy["keys"]) for part in whole]
        else:
            keys = [[[a + b for a, b in zip(t, p, strict=True)] for t in tokens] for p in positions]
        self.scores = [_times(queries, _transpose(part)) for part in keys]
        self.scores = [[[s / root for s in row] for row in part] for part in self.scores]
        if kind == "scores":
            of_token = [[s / root for s in row] for row in _times(queries, _transpose(tokens))]
            of_position = [[s / root for s in row] for row in _times(queries, _transpose(positions))]
            if proxy["left"] is not None:
                left, right = ([[Fraction(x) for x in row] for row in proxy[side]] for side in ("left", "right"))
                of_token = _times(left, _transpose(right))
            self.scores = [
                [
                    [s + (0 if proxy["average_positions"] else of_position[q][p]) for s in row]
                    for q, row in enumerate(of_token)
                ]
                for p in range(self.length)
            ]
        if kind == "uniform":
            self.scores = [[[Fraction(0)] * len(E)] * len(E)] * self.length
        self.hard = kind == "one-hot"

    def sign(self, tokens: tuple[int, ...], x: int, y: int) -> int:
        """The sign of logit_x minus logit_y."""
        q = tokens[-1]
        terms: dict[Fraction, Fraction] = {}
        for p, t in enumerate(tokens):
            score = self.scores[p][q][t]
            value = self.EU[q][x] - self.EU[q][y] + self.EV[t][x] - self.EV[t][y] + self.PV[p][x] - self.PV[p][y]
            if self.hard and terms and score <= max(terms):
                continue
            terms = ({} if self.hard else terms) | {score: terms.get(score, Fraction(0)) + value}
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
        return all(self.sign(tokens, x, m) < 0 for x in range(len(self.EU)) if x != m)

    def predicted(self, tokens: tuple[int, ...]) -> int | None:
        """The token with a strictly larger logit than every other, if there is one."""
        best = 0
        for x in range(1, len(self.EU)):
            best = x if self.sign(tokens, x, best) > 0 else best
        strict = all(self.sign(tokens, x, best) < 0 for x in range(len(self.EU)) if x != best)
        return best if strict else None

    def count(self, inputs: InputSet) -> int:
        return sum(self.correct(tokens) for tokens in sequences(inputs))


def agreement(subject: Subject, proxy: dict[str, Any], inputs: InputSet) -> int:
    """On how many inputs subject and proxy predict the same token."""
    first, second = Truth(subject), Truth(subject, proxy)
    predictions = [(first.predicted(tokens), second.predicted(tokens)) for tokens in sequences(inputs)]
    return sum(a == b and a is not None for a, b in predictions)


def sequences(inputs: InputSet) -> list[tuple[int, ...]]:
    """All inputs of a set."""
    every = np.array(list(product(range(inputs.vocabulary), repeat=inputs.length)))
    chosen = every[inputs.contains(every)]
    assert len(chosen) == inputs.size
    return [tuple(map(int, tokens)) for tokens in chosen]


def _projected(rows: list[list[Fraction]], subspace: dict[str, Any]) -> list[list[Fraction]]:
    basis = [[Fraction(x) for x in row] for row in subspace["basis"]]
    mean = [Fraction(x) for x in subspace["mean"]]
    centred = [[a - b for a, b in zip(row, mean, strict=True)] for row in rows]
    return [
        [a + b for a, b in zip(row, mean, strict=True)] for row in _times(_times(centred, basis), _transpose(basis))
    ]


_PLAIN = st.floats(-3, 3, width=16)
_NASTY = st.sampled_from([0.0, 1.0, -1.0, 0.5, 3.0, 1e-40, -1e-45, 1e-6, 2.0**-20, 60.0, -60.0, 2.0**12, -(2.0**12)])


@st.composite
def tiny_models(draw: st.DrawFn, head: int = 1) -> Subject:
    """Random and adversarial weights: ties, equal tokens, huge, tiny and denormal numbers."""
    v, length, d = draw(st.integers(3, 4)), draw(st.integers(2, 4)), draw(st.integers(1, 2))
    number = draw(st.sampled_from([_PLAIN, _PLAIN, _NASTY, st.one_of(_PLAIN, _NASTY), st.integers(-2, 2).map(float)]))
    shapes = {"W_E": (v, d), "W_pos": (length, d), "W_U": (d, v), "W_O": (head, d)} | {
        f"W_{n}": (d, head) for n in "QKV"
    }
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


def tabular_subject(
    *,
    of_tokens: np.ndarray,
    of_positions: np.ndarray,
    direct: np.ndarray,
    offset: np.ndarray,
    values: np.ndarray,
    at: np.ndarray,
) -> Subject:
    """A model with these tables (docs/soundness.md): scores SE and SP, logits EU = direct + offset, EV and PV.

    Token t is the unit vector t, position p the unit vector v + p; heads write to the last v dimensions.
    """
    (v, length), head = of_positions.shape, 0
    while head**2 < v + length:
        head += 1
    root, head, d = head, head**2, 2 * v + length
    arrays = {"W_E": np.eye(v, d), "W_pos": np.eye(length, d, v), "W_U": np.eye(d, v, -(v + length))}
    arrays["W_Q"], arrays["W_K"], arrays["W_V"] = np.zeros((d, head)), np.eye(d, head), np.eye(d, head)
    arrays["W_Q"][:v, : v + length] = root * np.hstack([of_tokens, of_positions])
    arrays["W_U"][:v], arrays["W_U"][v + length - 1] = direct, offset
    arrays["W_K"][v + length :] = arrays["W_V"][v + length :] = 0
    arrays["W_O"] = np.zeros((head, d))
    arrays["W_O"][: v + length, v + length :] = np.vstack([values, at])
    return subject_of(arrays, length)


def barely_tied() -> Subject:
    """Of (0, 0, 0, 1) three positions give 1 + 2^-35 to token 0, and the last takes it all back."""
    return tabular_subject(
        of_tokens=np.zeros((2, 2)),
        of_positions=np.zeros((2, 4)),
        direct=np.zeros((2, 2)),
        offset=np.zeros(2),
        values=np.array([[1.0, 0.0], [-3.0, 0.0]]),
        at=np.array([[2.0**-35, 0.0]] * 3 + [[-3 * 2.0**-35, 0.0]]),
    )


_SCORES = st.sampled_from([0.0, 0.0, 0.0, 1.0, -1.0, 0.25, 8.0, 35.0, -35.0, 70.0, -70.0, 130.0, -130.0])
_LOGITS = st.sampled_from(
    [0.0, 0.0, 1.0, -1.0, 2.0, -3.0, 2.0**-30, -(2.0**-30), 2.0**30, -(2.0**30), 2.0**60, -(2.0**60), 2.0**-100]
)


@st.composite
def extreme_models(draw: st.DrawFn) -> Subject:
    """Weights of positions and tokens 2^100 apart, opposing huge and tiny logits, ties and near ties, equal rows."""
    v, length = draw(st.integers(2, 4)), draw(st.integers(2, 4))
    shapes = {"of_tokens": (v, v), "of_positions": (v, length), "direct": (v, v), "values": (v, v), "at": (length, v)}
    size = np.arange(v)
    plain = {name: np.zeros(shape) for name, shape in shapes.items()}
    if draw(st.booleans()):
        # A model that is right where nothing below changes it: the largest token gets most attention and wins.
        plain["of_tokens"] += draw(st.sampled_from([1.0, 4.0, 30.0])) * size
        plain["values"] += -draw(st.sampled_from([1.0, 2.0**-20, 2.0**40])) * abs(size[:, None] - size)
    for name, (rows, columns) in shapes.items():
        number = _SCORES if name.startswith("of_") else _LOGITS
        table = plain[name]
        kind = draw(st.sampled_from(["kept", "some", "some", "all", "scaled"]))
        if kind == "some":
            for _ in range(draw(st.integers(1, 3))):
                table[draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))] = draw(number)
        elif kind == "all":
            table[:] = np.reshape(draw(st.lists(number, min_size=table.size, max_size=table.size)), table.shape)
        elif kind == "scaled" and not name.startswith("of_"):
            table *= 2.0 ** draw(st.integers(-80, 80))
        if draw(st.integers(0, 4)) == 0:
            table[draw(st.integers(0, rows - 1))] = table[draw(st.integers(0, rows - 1))]
    plain["offset"] = np.zeros(v)
    if draw(st.booleans()):
        _balance(plain, tuple(draw(st.lists(st.integers(0, v - 1), min_size=length, max_size=length))), draw)
    return tabular_subject(**plain)


def _balance(tables: dict[str, np.ndarray], tokens: tuple[int, ...], draw: st.DrawFn) -> None:
    """Shift an output's logits so that on one input it ties with the largest token, to about 48 bits."""
    q, m = tokens[-1], max(tokens)
    x = draw(st.integers(0, len(tables["direct"]) - 1))
    for part, where in (("direct", (q, x)), ("offset", (x,))):
        total, lead = arb(0), arb(0)
        for p, t in enumerate(tokens):
            weight = arb(tables["of_tokens"][q, t] + tables["of_positions"][q, p]).exp()
            total += weight
            for name, row in (("direct", q), ("values", t), ("at", p)):
                lead += weight * (arb(tables[name][row, x]) - tables[name][row, m])
            lead += weight * (arb(tables["offset"][x]) - tables["offset"][m])
        wanted = np.float32(tables[part][where] - float(lead / total))
        tables[part][where] = np.nextafter(wanted, np.float32(draw(st.sampled_from([-np.inf, wanted, np.inf]))))


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
