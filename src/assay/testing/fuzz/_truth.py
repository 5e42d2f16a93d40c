"""The truth about tiny max-of-K models, input by input, by means that share nothing with what makes certificates.

Weights are whole numbers times a power of two, multiplied as Python's whole numbers. Of a softmax, float64 decides what
it can by a wide margin, and Arb the rest.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from itertools import product
from math import isqrt, sqrt
from typing import Any

import numpy as np
from flint import arb, ctx

from assay.subjects import Subject
from assay.tasks import InputSet

_LARGEST_SCORE = 1e6
"""Beyond it float64 decides nothing: its weights would be off by more than 10^-8 of themselves."""


@cache
def every_input(vocabulary: int, length: int) -> np.ndarray:
    """All sequences, in order, as (inputs, length)."""
    return np.array(list(product(range(vocabulary), repeat=length)))


def members(inputs: InputSet | Mapping[str, Any], vocabulary: int, length: int) -> np.ndarray:
    """For each of all sequences whether it is one of `inputs`, as a certificate records them."""
    conditions = asdict(inputs) if isinstance(inputs, InputSet) else inputs
    every = every_input(vocabulary, length)
    largest = every.max(axis=1)
    inside = largest >= conditions["minimum_maximum"]
    if conditions["within"] is not None:
        inside &= largest - every.min(axis=1) <= conditions["within"]
    if conditions["copies"] is not None:
        inside &= (every == largest[:, None]).sum(axis=1) == conditions["copies"]
    return inside


@dataclass(frozen=True)
class _Exact:
    """An array of whole numbers, times 2^-`places`."""

    whole: np.ndarray
    places: int

    @staticmethod
    def of(numbers: Any) -> "_Exact":
        array = np.asarray(numbers, dtype=np.float64)
        ratios = [x.as_integer_ratio() for x in array.ravel().tolist()]
        places = max((d.bit_length() - 1 for _, d in ratios), default=0)
        whole = np.empty(len(ratios), dtype=object)
        whole[:] = [(n << places) // d for n, d in ratios]
        return _Exact(whole.reshape(array.shape), places)

    def __matmul__(self, other: "_Exact") -> "_Exact":
        return _Exact(self.whole.dot(other.whole), self.places + other.places)

    def __add__(self, other: "_Exact") -> "_Exact":
        places = max(self.places, other.places)
        return _Exact(self.to(places) + other.to(places), places)

    def to(self, places: int) -> np.ndarray:
        """The whole numbers for more places."""
        return self.whole * 2 ** (places - self.places)

    def times(self, number: int) -> "_Exact":
        return _Exact(self.whole * number, self.places)

    def transposed(self) -> "_Exact":
        return _Exact(self.whole.T, self.places)

    def __getitem__(self, index: Any) -> "_Exact":
        return _Exact(self.whole[index], self.places)


def _floats(whole: np.ndarray, places: int) -> np.ndarray:
    """whole times 2^-places, each rounded once; infinite where that is too large."""
    scale = 1 << places

    def rounded(number: int) -> float:
        try:
            return number / scale
        except OverflowError:
            return float("inf")

    return np.array([rounded(number) for number in whole.ravel().tolist()]).reshape(whole.shape)


def _weights(subject: Subject) -> dict[str, _Exact]:
    return {name: _Exact.of(tensor.double().numpy()) for name, tensor in subject.model.state_dict().items()}


class AttentionTruth:
    """Exact predictions of a tiny model with attention.

    With `proxy`, the record of a proxy in a certificate's JSON, they are the proxy's. A score is a/2^k + b/(2^k √h)
    with whole a and b, h the width of the head; the sign of a sum of rational multiples of exponentials of different
    scores is decided by raising Arb's precision, since the sum is zero only if all coefficients are (Lindemann and
    Weierstrass).
    """

    def __init__(self, subject: Subject, proxy: Mapping[str, Any] | None = None) -> None:
        w = _weights(subject)
        self.vocabulary, self.length = subject.model.config.vocab_size, subject.model.config.length
        self._head = subject.model.config.head_dim
        E, P, U = w["embed_tokens.weight"], w["embed_positions.weight"][: self.length], w["lm_head.weight"].transposed()
        Q, K, V, O = (w[f"layers.0.attn.{n}_proj.weight"].transposed() for n in "qkvo")  # noqa: E741
        query = E + P[-1:]
        out = V @ O @ U
        parts = (query @ U, E @ out, P @ out)
        self._places = max(part.places for part in parts)
        EU, EV, PV = (part.to(self._places) for part in parts)
        # Values by position, query, token and output; a logit is their mean under attention.
        self._values = EU[None, :, None] + EV[None, None] + PV[:, None, None]
        kind = proxy["kind"] if proxy else None
        self._hard = kind == "one-hot"
        queries, tokens, positions = query @ Q, E @ K, P @ K
        rational = _Exact.of(np.zeros((self.vocabulary, self.vocabulary)))
        if proxy is not None and kind == "projection":
            queries = _projected(queries, proxy["queries"])
            # Every key is projected as a whole, the sum of a token's and a position's part.
            of_keys = [
                queries @ _projected(tokens + positions[p : p + 1], proxy["keys"]).transposed()
                for p in range(self.length)
            ]
        elif proxy is not None and kind == "scores":
            of_token, of_position = queries @ tokens.transposed(), queries @ positions.transposed()
            if proxy["left"] is not None:
                rational = _Exact.of(proxy["left"]) @ _Exact.of(proxy["right"]).transposed()
                of_token = of_token.times(0)
            if proxy["average_positions"]:
                of_position = of_position.times(0)
            of_keys = [of_token + of_position[:, p : p + 1] for p in range(self.length)]
        else:
            of_keys = [(queries @ (tokens + positions[p : p + 1]).transposed()) for p in range(self.length)]
            if kind == "uniform":
                of_keys = [scores.times(0) for scores in of_keys]
        self._score_places = max(scores.places for scores in (*of_keys, rational))
        self._over_root = np.stack([scores.to(self._score_places) for scores in of_keys])
        self._rational = rational.to(self._score_places)
        root = isqrt(self._head)
        if root**2 == self._head:
            self._over_root = self._over_root + root * self._rational
            self._rational = 0 * self._rational

    @cached_property
    def predictions(self) -> np.ndarray:
        """For each of all inputs the token whose logit is strictly the largest, -1 if there is none."""
        every = every_input(self.vocabulary, self.length)
        if self._hard:
            return np.array([self._slowly(tokens) for tokens in every.tolist()])
        lead, doubt = self._leads(every)
        found = lead.argmax(axis=1)
        rows = np.arange(len(every))
        # Every other output must stay below the best one, whatever both errors are.
        behind = lead[rows, found][:, None] - lead - doubt - doubt[rows, found][:, None]
        behind[rows, found] = np.inf
        for row in np.flatnonzero(~(behind > 0).all(axis=1)):
            found[row] = self._slowly(every[row].tolist())
        return found

    def right(self) -> np.ndarray:
        """For each of all inputs whether its largest token is predicted."""
        every = every_input(self.vocabulary, self.length)
        return np.asarray(self.predictions == every.max(axis=1))

    def count(self, inputs: InputSet | Mapping[str, Any]) -> int:
        """How many of a set of inputs are answered correctly."""
        return int((self.right() & members(inputs, self.vocabulary, self.length)).sum())

    def agreed(self, other: "AttentionTruth", inputs: InputSet | Mapping[str, Any]) -> int:
        """On how many of a set of inputs another model predicts the same token, strictly."""
        same = (self.predictions == other.predictions) & (self.predictions >= 0)
        return int((same & members(inputs, self.vocabulary, self.length)).sum())

    def correct(self, tokens: tuple[int, ...]) -> bool:
        """Whether one input is answered correctly, without any float."""
        return self._slowly(list(tokens)) == max(tokens)

    def _leads(self, every: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits less that of token 0, times something positive, and bounds on their errors: (inputs, outputs)."""
        where = np.arange(self.length)[None], every[:, -1:], every
        differences = _floats(self._values - self._values[..., :1], self._places)[where]
        scores = _floats(self._rational, self._score_places)[None] + _floats(
            self._over_root, self._score_places
        ) / sqrt(self._head)
        largest = abs(scores).max()
        if not largest < _LARGEST_SCORE or not np.isfinite(differences).all():
            return np.zeros(differences.shape[::2]), np.full(differences.shape[::2], np.inf)
        taken = scores[where]
        weights = np.exp(taken - taken.max(axis=1, keepdims=True))[..., None]
        size = (weights * abs(differences)).sum(axis=1)
        return (weights * differences).sum(axis=1), (1e-12 + 1e-14 * largest) * size + 1e-200

    def _slowly(self, tokens: list[int]) -> int:
        best = 0
        for x in range(1, self.vocabulary):
            best = x if self._sign(tokens, x, best) > 0 else best
        others = (x for x in range(self.vocabulary) if x != best)
        return best if all(self._sign(tokens, x, best) < 0 for x in others) else -1

    def _sign(self, tokens: list[int], x: int, y: int) -> int:
        """The sign of logit x minus logit y."""
        q, terms = tokens[-1], dict[tuple[int, int], int]()
        for p, t in enumerate(tokens):
            score = self._rational[q, t], self._over_root[p, q, t]
            value = self._values[p, q, t, x] - self._values[p, q, t, y]
            if self._hard:
                # Without a rational part; of equal scores the first.
                if not terms or score > max(terms):
                    terms = {score: value}
            else:
                terms[score] = terms.get(score, 0) + value
        terms = {score: value for score, value in terms.items() if value}
        if len(terms) < 2:
            return sum((value > 0) - (value < 0) for value in terms.values())
        bits = 128
        while True:
            with ctx.workprec(bits):
                root = arb(self._head).sqrt()
                exponents = [(arb(a) + arb(b) / root) * arb(2) ** -self._score_places for a, b in terms]
                top = max(exponents, key=float)
                total = sum(
                    (value * (score - top).exp() for score, value in zip(exponents, terms.values(), strict=True)),
                    arb(0),
                )
                if bool(total > 0):
                    return 1
                if bool(total < 0):
                    return -1
            bits *= 2


def _projected(rows: _Exact, subspace: Mapping[str, Any]) -> _Exact:
    basis, mean = _Exact.of(subspace["basis"]), _Exact.of([subspace["mean"]])
    return (rows + mean.times(-1)) @ basis @ basis.transposed() + mean


class LinearTruth:
    """Exact predictions and losses of a tiny linear model."""

    def __init__(self, subject: Subject) -> None:
        w = _weights(subject)
        self.vocabulary, self.length = subject.model.config.vocab_size, subject.model.config.length
        table = w["embed_tokens.weight"] @ w["linear.weight"].transposed() @ w["lm_head.weight"].transposed()
        self._places = table.places
        self._logits = table.whole[every_input(self.vocabulary, self.length)].sum(axis=1)
        answers = every_input(self.vocabulary, self.length).max(axis=1)
        self._leads = self._logits - self._logits[np.arange(len(answers)), answers][:, None]

    def right(self) -> np.ndarray:
        """For each of all inputs whether its largest token is predicted, strictly."""
        return np.asarray((self._leads < 0).sum(axis=1) == self.vocabulary - 1)

    def count(self, inputs: InputSet | Mapping[str, Any]) -> int:
        """How many of a set of inputs are answered correctly."""
        return int((self.right() & members(inputs, self.vocabulary, self.length)).sum())

    def loss(self, inputs: InputSet | Mapping[str, Any], bits: int = 2_000) -> arb:
        """The mean cross-entropy in nats, computed to so many bits."""
        inside = members(inputs, self.vocabulary, self.length)
        with ctx.workprec(bits):
            losses: dict[tuple[int, ...], arb] = {}
            total, unit = arb(0), arb(2) ** -self._places
            for row in self._leads[inside]:
                leads = tuple(sorted(row))
                if leads not in losses:
                    losses[leads] = sum(((lead * unit).exp() for lead in leads), arb(0)).log()
                total += losses[leads]
            return total / int(inside.sum())

    def loss_is_within(self, inputs: InputSet | Mapping[str, Any], at_least: int, at_most: int) -> bool:
        """Whether the mean loss is at least and at most so many times 2^-50 nats."""
        for bits in (200, 2_000):
            with ctx.workprec(bits):
                units = self.loss(inputs, bits) * 2**50
                if bool(units >= at_least) and bool(units <= at_most):
                    return True
                if bool(units < at_least) or bool(units > at_most):
                    return False
        # Only 0, which a loss may be near to thousands of bits, is a bound that it can come so close to.
        return True


def agreement(subject: Subject, proxy: Mapping[str, Any], inputs: InputSet | Mapping[str, Any]) -> int:
    """On how many of a set of inputs subject and proxy predict the same token."""
    first, second = AttentionTruth(subject), AttentionTruth(subject, proxy)
    return first.agreed(second, inputs)


def sequences(inputs: InputSet) -> list[tuple[int, ...]]:
    """All inputs of a set."""
    chosen = every_input(inputs.vocabulary, inputs.length)[members(inputs, inputs.vocabulary, inputs.length)]
    return [tuple(tokens) for tokens in chosen.tolist()]


def weights_of(subject: Subject) -> dict[str, np.ndarray]:
    """The weights of a subject by name, as the checker takes them."""
    return {key: tensor.numpy() for key, tensor in subject.model.state_dict().items()}
