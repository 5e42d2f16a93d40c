"""The subcubic proof: boxes of inputs whose smaller tokens all keep a distance from the largest (arXiv 2406.11779).

For each last token q, largest token m and number c of smaller tokens, the proof looks for the largest τ such that every
input whose smaller tokens are at most τ is answered correctly. It never looks at pairs of a token and an output beyond
tables of size v²: token scores are a part of rank 1 and a remainder of which only a bound on differences is used (see
`_remainders`), attention on m lies in an interval, and logits are split into a mean over q and a remainder
("mean + diff"), as in the source. Unlike there, the search for τ is part of the proof and counted, and every step is
rounded outward (docs/soundness.md, theorem 11).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Float, Int

from assay._errors import AssayError
from assay.proofs._certificate import Boxes
from assay.proofs._exact import flint
from assay.proofs._operations import Operations
from assay.proofs.attention._groups import cells, scaled
from assay.proofs.attention._remainders import REMAINDERS, ROUNDING, Circuit
from assay.proofs.attention._tables import Weights, exponentials, queries
from assay.tasks import InputSet

_STEPS = 64
"""Steps a unit of score at which exponentials are tabulated."""

_FARTHEST = 80
"""Differences of scores beyond this are treated as unbounded."""

_NODES = np.array([0, 0.25, 0.5, 0.75, 0.875, 0.9375, 1])
"""Attention weights at which the best output is computed; in between it is interpolated."""

_LARGEST_SCORE = 2.0**40

_LARGEST_SUM = 4000
"""The most tokens, positions and width of the head for which rounding is bounded."""


@cache
def _exponential_table() -> Float[np.ndarray, " step"]:
    """exp(-k / _STEPS) rounded to nearest, for k from -_FARTHEST · _STEPS to as far above."""
    library = flint()
    table = np.array(
        [float((library.arb(-k) / _STEPS).exp()) for k in range(-_FARTHEST * _STEPS, _FARTHEST * _STEPS + 1)]
    )
    table.flags.writeable = False
    return table


@dataclass(frozen=True)
class _Scores:
    """Token scores, where a[q, t] - a[q, s] differs from the exact difference by at most `error[q]`."""

    best: Float[np.ndarray, "v v"]
    worst: Float[np.ndarray, "v v"]
    own: Float[np.ndarray, "v v"]
    error: Float[np.ndarray, " v"]


def _scores(weights: Weights, remainder: str | None, operations: Operations) -> _Scores:
    v, d, h = weights.vocabulary, weights.E.shape[1], weights.head
    query = queries(weights)
    X = (query @ weights.Q).rounded() / np.sqrt(h)
    Y = (weights.E @ weights.K).rounded()
    size = np.abs(X) @ np.abs(Y).max(axis=0)
    if not size.max() < _LARGEST_SCORE:
        raise AssayError(f"attention scores may reach {size.max():.3g}; they must stay below 2^40 to be certified.")
    if remainder is None:
        own, error = X @ Y.T, np.zeros(v)
        for rows, inner, columns in ((v, d, h), (v, d, h), (v, h, v)):
            operations.product(rows, inner, columns)
    else:
        c, e = _leading(X, Y)
        circuit = Circuit(
            query.rounded(), weights.Q.rounded() / np.sqrt(h), weights.K.rounded(), weights.E.rounded(), X, Y, c, e
        )
        own, size = (X @ c)[:, None] * (Y @ e)[None, :], circuit.size
        with np.errstate(over="ignore", invalid="ignore"):
            error = REMAINDERS[remainder](circuit, operations)
        error = np.where(np.isfinite(error), error, np.inf)
    operations.add(comparisons=2 * v * v)
    return _Scores(
        np.maximum.accumulate(own, axis=1),
        np.minimum.accumulate(own, axis=1),
        own,
        (error + 4 * ROUNDING * size) * (1 + ROUNDING) + 2.0**-900,
    )


def _leading(X: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two vectors c and e such that (X c)(Y e)ᵀ is about the best approximation of X Yᵀ of rank 1.

    Both are zero where c would overflow: then all of X Yᵀ is the remainder.
    """
    outer, inner = np.linalg.qr(X)
    u = outer @ np.linalg.svd(inner @ np.linalg.qr(Y)[1].T)[0][:, 0]
    with np.errstate(over="ignore", invalid="ignore"):
        c: np.ndarray = np.linalg.pinv(X) @ u
    if not np.abs(c).max() < 2.0**1000:
        return np.zeros_like(c), np.zeros_like(c)
    return c, X.T @ u


@dataclass(frozen=True)
class _Logits:
    """Bounds of logit differences to m.

    `node` (m, node): the most an output can gain if m has this share of attention, without the last token's remainder;
    `rest` (q, m): the most it gains from that; `wrong` (m, t): from attention to tokens up to t.
    """

    node: Float[np.ndarray, "v node"]
    rest: Float[np.ndarray, "v v"]
    wrong: Float[np.ndarray, "v v"]
    slack: float


def _logits(weights: Weights, operations: Operations) -> _Logits:
    v, length, d, h = weights.vocabulary, weights.length, weights.E.shape[1], weights.head
    out = (weights.V @ weights.O) @ weights.U
    EU, EV, PV = (queries(weights) @ weights.U).rounded(), (weights.E @ out).rounded(), (weights.P @ out).rounded()
    operations.product(d, h, d)
    operations.product(d, d, v)
    for rows in (v, v, length):
        operations.product(rows, d, v)
    mean = EU.mean(axis=0)
    rest = EU - mean
    # max over p of PV[p, x] - PV[p, m] is at most max over p of PV[p, x] - min over p of PV[p, m].
    most, least = PV.max(axis=0), PV.min(axis=0)
    node = np.empty((v, len(_NODES)))
    for m in range(v):
        gain = (mean + most)[None] - (mean + least)[m] + _NODES[:, None] * (EV[m] - EV[m, m])[None]
        gain[:, m] = -np.inf
        node[m] = gain.max(axis=1)
    operations.add(
        arithmetic=2 * v * v + 2 * length * v + v * v * (2 + 2 * len(_NODES)) + 2 * v * v,
        comparisons=2 * length * v + v * v * len(_NODES) + 3 * v * v,
    )
    spread = 2.0 * (np.abs(EU).max() + np.abs(EV).max() + np.abs(PV).max())
    return _Logits(
        node,
        rest.max(axis=1, keepdims=True) - rest,
        np.maximum.accumulate(EV.max(axis=1)[None, :] - EV.T, axis=1),
        16 * ROUNDING * spread + 2.0**-900,
    )


class _Box:
    """Decides whether all inputs of a box are right, for many boxes at a time."""

    def __init__(self, weights: Weights, remainder: str | None, operations: Operations) -> None:
        self.scores, self.logits = _scores(weights, remainder, operations), _logits(weights, operations)
        self.table = _exponential_table()
        self.free, self.operations = weights.length - 1, operations
        keys = (queries(weights) @ weights.Q) @ weights.K.T
        powers = exponentials(keys @ weights.P.T, weights.head)
        operations.product(weights.vocabulary, weights.head, weights.length)
        operations.add(exponentials=weights.vocabulary * weights.length)
        position = scaled(powers, list(range(weights.vocabulary)), slice(None))[0]
        ordered = np.sort(position[:, :-1], axis=1)
        zero = np.zeros((len(ordered), 1))
        self.last = position[:, -1]
        self.lightest = np.hstack([zero, np.cumsum(ordered, axis=1)])
        self.heaviest = np.hstack([zero, np.cumsum(ordered[:, ::-1], axis=1)])
        operations.add(arithmetic=2 * ordered.size, comparisons=ordered.size * max(1, self.free))

    def _decay(self, difference: np.ndarray, *, up: bool) -> np.ndarray:
        """exp(-difference), rounded up or down."""
        step = (np.floor if up else np.ceil)(difference * _STEPS)
        limit = _FARTHEST * _STEPS
        value = self.table[np.clip(step, -limit, limit).astype(np.int64) + limit]
        if up:
            return np.where(step < -limit, np.inf, value * (1 + ROUNDING))
        return np.where(step > limit, 0.0, value * (1 - ROUNDING))

    def _best(self, m: np.ndarray, share: np.ndarray) -> np.ndarray:
        """The most that an output can gain with this share of attention on m, by interpolation of a convex function."""
        right = np.clip(np.searchsorted(_NODES, share, side="right"), 1, len(_NODES) - 1)
        a, b = _NODES[right - 1], _NODES[right]
        weight = (share - a) / (b - a)
        found: np.ndarray = (1 - weight) * self.logits.node[m, right - 1] + weight * self.logits.node[m, right]
        return found

    def right(
        self,
        q: Int[np.ndarray, " box"],
        m: Int[np.ndarray, " box"],
        smaller: Int[np.ndarray, " box"],
        reach: Int[np.ndarray, " box"],
    ) -> Bool[np.ndarray, " box"]:
        """Whether every input with `smaller` free tokens below m, all (and q, unless it is m) at most `reach`, is."""
        copies, own, error = self.free - smaller, self.scores.own[q, m], self.scores.error[q]
        with_copies, with_others = np.where(q == m, self.last[q], 0.0), np.where(q == m, 0.0, self.last[q])
        limits = []
        for side, of_copies, of_others in (
            (self.scores.best, self.lightest, self.heaviest),
            (self.scores.worst, self.heaviest, self.lightest),
        ):
            up = side is self.scores.best
            # Sums of positive numbers, never differences: a light position may hold a token with a high score.
            others = of_others[q, smaller] + with_others
            held = of_copies[q, copies] + with_copies
            difference = own - side[q, reach] + np.where(up, -1, 1) * error
            others = others * np.where(others > 0, self._decay(difference, up=up), 0.0)
            share = np.where(np.isinf(others), 0.0, held / np.where(np.isinf(others), 1.0, held + others))
            share = np.clip(share * (1 - 8 * ROUNDING) if up else share * (1 + 8 * ROUNDING), 0, 1)
            limits.append(self._best(m, share) + (1 - share) * self.logits.wrong[m, reach])
        self.operations.add(arithmetic=2 * 16 * len(q), comparisons=(2 * len(_NODES) + 2) * len(q))
        self.operations.add(exponentials=2 * len(q))
        good: np.ndarray = np.maximum(*limits) + self.logits.rest[q, m] + self.logits.slack < 0
        return good & (held > 0)


def subcubic(weights: Weights, inputs: InputSet, *, remainder: str | None, operations: Operations) -> list[Boxes]:
    """For every group of `inputs`, boxes of correct inputs: smaller tokens up to the largest bound that is proved.

    With a `remainder`, a name of `REMAINDERS`, token scores are a part of rank 1 and the rest bounded in that way;
    otherwise they are computed in full.
    """
    largest = max(weights.vocabulary, weights.length, weights.head)
    if largest > _LARGEST_SUM:
        raise AssayError(
            f"the subcubic proofs bound rounding for up to {_LARGEST_SUM} tokens, positions or dimensions of the head, "
            f"not {largest}."
        )
    box = _Box(weights, remainder, operations)
    found = list(cells(inputs))
    keys = [(index, smaller) for index, cell in enumerate(found) for smaller in cell.numbers_smaller]
    which = np.array([index for index, _ in keys])
    smaller = np.array([count for _, count in keys])
    q = np.array([cell.last for cell in found])[which]
    m = np.array([cell.maximum for cell in found])[which]
    # Without smaller free tokens only q itself has to be below the bound.
    low = np.where(q == m, np.where(smaller == 0, 0, -1), q)
    low = np.where(smaller > 0, np.maximum(low, [found[index].tokens[0] for index in which]), low)
    high = np.where(smaller == 0, low, m - 1)
    reach = np.full(len(keys), -1)
    # The largest bound at which the box is right: halving, starting from the smallest one.
    possible = np.flatnonzero(low <= high)
    good = box.right(q[possible], m[possible], smaller[possible], low[possible])
    active = possible[good]
    reach[active] = low[active]
    low = low.copy()
    while len(active := active[low[active] < high[active]]):
        middle = (low[active] + high[active] + 1) // 2
        good = box.right(q[active], m[active], smaller[active], middle)
        low[active[good]] = reach[active[good]] = middle[good]
        high[active[~good]] = middle[~good] - 1
    masks = [[0] * (cell.free + 1) for cell in found]
    for (index, count), bound in zip(keys, reach.tolist(), strict=True):
        cell = found[index]
        if bound >= 0:
            tokens = [token for token in cell.tokens[:-1] if token <= bound] if count else [cell.maximum]
            masks[index][count] = sum(1 << token for token in tokens)
    return [Boxes(last=c.last, maximum=c.maximum, tokens=mask) for c, mask in zip(found, masks, strict=True)]
