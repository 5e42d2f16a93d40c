"""The checker for max-of-K attention: redoes the proof on another path.

It shares no code with what makes certificates. Products of weights and exponentials are enclosed by Arb at 320 bits and
turned into float64 intervals; the worst case of every group is taken over all outputs, positions and tokens, without
tiers; searches prune by one rule only; counting packs polynomials into single integers. It is meant to be read in one
sitting, next to docs/soundness.md, whose theorem numbers appear below. Everything it does not accept, it refuses.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import comb
from typing import Any

import numpy as np

from assay.proofs.checker._common import Budget, bounds, called, groups, identity, require, size_of, words

# The checker shares nothing with what it checks: numbers that both need are stated again.
_BITS = 320
"""Bits of Arb: products of several matrices lose some, and far more than a float's 53 have to be left."""

_U = 2.0**-53
_FRACTION = 6
_CHUNK = 2**18
"""Numbers that a search holds at a time, for each position."""

SHAPES = {
    "embed_tokens.weight": "vd",
    "embed_positions.weight": "pd",
    "layers.0.attn.q_proj.weight": "hd",
    "layers.0.attn.k_proj.weight": "hd",
    "layers.0.attn.v_proj.weight": "hd",
    "layers.0.attn.o_proj.weight": "dh",
    "lm_head.weight": "vd",
}
"""The arrays of the model: v tokens, p = K + 1 positions, width d, h the width of the head."""

NOT_CHECKED = ("strategy", "parameters", "operations")
"""Of a strategy's name only that the evidence and the unexplained dimension fit it, of parameters only their names."""

_PARAMETERS = {"separable": {"grid", "refine", "search", "two_sided"}, "subcubic-low-rank": {"remainder"}}
_BY_BOXES = ("subcubic-low-rank", "subcubic", "cubic")
_BY_SEARCH = ("brute-force", "exact")


# -- the model as tables (theorem 1) ----------------------------------------------------------------------------------


@dataclass
class _Model:
    """Logit tables, each entry within 2^-52 relative; weights e^score = mantissa · 2^exponent within 2^-51 relative."""

    EU: np.ndarray
    EV: np.ndarray
    PV: np.ndarray
    token: tuple[np.ndarray, np.ndarray]
    position: tuple[np.ndarray, np.ndarray]

    @property
    def slack(self) -> float:
        """18 u times a bound on all differences: rounding of a difference (7 u), of a weight and a product (11 u)."""
        return 36 * _U * float(abs(self.EU).max() + abs(self.EV).max() + abs(self.PV).max())


def _arb(values: np.ndarray) -> Any:
    from flint import arb, arb_mat  # noqa: PLC0415

    return arb_mat(values.shape[0], values.shape[1], [arb(float(x)) for x in values.ravel()])


def _floats(matrix: Any) -> np.ndarray:
    values = []
    for entry in matrix.entries():
        value = float(entry)
        require(np.isfinite(value) and abs(value) < 2.0**200, "a table entry is out of range")
        require(bool(entry.rad() <= 2.0**-60 * abs(value) + 2.0**-600), "a table entry could not be enclosed")
        values.append(value)
    return np.array(values).reshape(matrix.nrows(), matrix.ncols())


def _powers(matrix: Any) -> tuple[np.ndarray, np.ndarray]:
    from flint import arb  # noqa: PLC0415

    log2 = arb.const_log2()
    mantissas, exponents = [], []
    for score in matrix.entries():
        require(abs(float(score)) < 2.0**40, "an attention score is 2^40 or more")
        exponent = int(float(score) / 0.6931471805599453)
        mantissa = (score - exponent * log2).exp()
        require(bool(mantissa.rad() < 2.0**-80), "an exponential could not be enclosed")
        mantissas.append(float(mantissa))
        exponents.append(exponent)
    shape = matrix.nrows(), matrix.ncols()
    grid = np.array(exponents).reshape(shape)
    require(int(np.ptp(grid, axis=1).max()) <= 401, "the attention weights of one query span more than 2^400")
    return np.array(mantissas).reshape(shape), grid


def _table(values: list[list[float]], rows: int) -> Any:
    """Numbers of a proxy as a matrix, with no more columns than rows."""
    require(len(values) == rows >= len(values[0]), "the proxy does not fit the model")
    return _arb(np.array(values))


def _project(states: Any, subspace: Mapping[str, Any], one: Any, *, shifted: bool) -> Any:
    """mean + (state - mean) B Bᵀ for every row, or state B Bᵀ if not `shifted`."""
    basis = _table(subspace["basis"], states.ncols())
    # Of a mean that is not used, too: what it says is part of the statement.
    require(len(subspace["mean"]) == states.ncols(), "the proxy does not fit the model")
    if not shifted:
        return states * basis * basis.transpose()
    mean = one * _arb(np.array([subspace["mean"]]))
    return mean + (states - mean) * basis * basis.transpose()


@dataclass
class _Hard:
    """Attention to the best key only: for each last token, its (position, token) pairs from worst to best key.

    Of equal scores the earlier position is the better. `correct` (v, K, v, v) says by (last token, position, token,
    output) whether that output surely wins when that key is attended to.
    """

    order: list[list[tuple[int, int]]]
    correct: np.ndarray


def _hard(model: _Model, token_scores: Any, position_scores: Any) -> _Hard:
    def exact(matrix: Any) -> list[list[tuple[int, int]]]:
        require(all(entry.rad() == 0 for entry in matrix.entries()), "the scores cannot be ordered")
        parts = [entry.mid().man_exp() for entry in matrix.entries()]
        columns = matrix.ncols()
        return [[(int(m), int(e)) for m, e in parts[i * columns : (i + 1) * columns]] for i in range(matrix.nrows())]

    of_token, of_position = exact(token_scores), exact(position_scores)
    order = []
    for tokens, positions in zip(of_token, of_position, strict=True):
        unit = min(e for _, e in tokens + positions)
        scores = {
            (p, t): (m << (e - unit)) + (n << (f - unit))
            for p, (n, f) in enumerate(positions)
            for t, (m, e) in enumerate(tokens)
        }
        order.append(sorted(scores, key=lambda pair: (scores[pair], -pair[0])))
    correct = np.zeros((len(model.EU), len(model.PV), len(model.EU), len(model.EU)), dtype=bool)
    for last in range(len(model.EU)):
        logits = model.EU[last] + model.EV[None] + model.PV[:, None]
        second, first = np.moveaxis(np.partition(logits, -2, axis=2)[:, :, -2:], 2, 0)
        correct[last] = (logits == first[:, :, None]) & (first - second > model.slack)[:, :, None]
    return _Hard(order, correct)


def _proxy_words(proxy: Mapping[str, Any], head: int) -> str:
    """What the record of a proxy says that it is, with the largest rank that its matrices can have."""
    if proxy["kind"] == "one-hot":
        return "attention to the best key only, of equal ones the first"
    if proxy["kind"] == "uniform":
        return "equal attention to all keys"
    if proxy["kind"] == "projection":
        queries, keys = (len(proxy[side]["basis"][0]) for side in ("queries", "keys"))
        rank = str(queries) if queries == keys else f"{queries} (queries) and {keys} (keys)"
        return f"queries and keys projected, x -> mean + (x - mean) B B^T, with rank at most {rank} of {head}"
    require((proxy["left"] is None) == (proxy["right"] is None), "the proxy is half a matrix")
    require(proxy["left"] is not None or proxy["average_positions"], "the proxy is the subject itself")
    parts = []
    if proxy["left"] is not None:
        parts.append(f"scores of tokens replaced by a matrix of rank at most {len(proxy['left'][0])}")
    if proxy["average_positions"]:
        parts.append("scores of positions replaced by 0")
    return ", ".join(parts)


def _models(weights: Mapping[str, np.ndarray], length: int, head: int, proxy: Mapping[str, Any] | None) -> list[Any]:
    """The subject's tables and, where the certificate has a proxy, the proxy's."""
    from flint import arb, ctx  # noqa: PLC0415

    with ctx.workprec(_BITS):
        E = _arb(weights["embed_tokens.weight"])
        P = _arb(weights["embed_positions.weight"][:length])
        Q, K, V, O = (_arb(weights[f"layers.0.attn.{name}_proj.weight"]).transpose() for name in "qkvo")  # noqa: E741
        U = _arb(weights["lm_head.weight"]).transpose()
        one = _arb(np.ones((E.nrows(), 1)))
        query = E + one * _arb(weights["embed_positions.weight"][length - 1 : length])
        keys = (query * (Q * K.transpose())) * (1 / arb(head).sqrt())
        out = V * (O * U)
        EU, EV, PV = _floats(query * U), _floats(E * out), _floats(P * out)
        size = sum(float(np.abs(table).max()) for table in (EU, EV, PV))
        require(size == 0 or size > 2.0**-202, "the logits are too small to be enclosed")
        subject = _Model(EU, EV, PV, _powers(keys * E.transpose()), _powers(keys * P.transpose()))
        if proxy is None:
            return [subject]
        if proxy["kind"] == "one-hot":
            # The largest score takes all, however small its lead is.
            with ctx.workprec(64 * _BITS):
                keys = (E + one * _arb(weights["embed_positions.weight"][length - 1 : length])) * (Q * K.transpose())
                return [subject, _hard(subject, keys * E.transpose(), keys * P.transpose())]
        token, position = subject.token, subject.position
        if proxy["kind"] == "projection":
            queries = _project(query * Q, proxy["queries"], one, shifted=True)
            queries = queries * (1 / arb(head).sqrt())
            # The keys' mean moves all scores of a query alike and is left out.
            token, position = (
                _powers(queries * _project(side * K, proxy["keys"], one, shifted=False).transpose()) for side in (E, P)
            )
        if proxy["kind"] == "scores" and proxy["left"] is not None:
            left, right = _table(proxy["left"], E.nrows()), _table(proxy["right"], E.nrows())
            require(left.ncols() == right.ncols(), "the proxy does not fit the model")
            token = _powers(left * right.transpose())
        if proxy["kind"] == "uniform":
            token = np.ones_like(token[0]), np.zeros_like(token[1])
        if proxy["kind"] == "uniform" or (proxy["kind"] == "scores" and proxy["average_positions"]):
            position = np.ones_like(position[0]), np.zeros_like(position[1])
        return [subject, _Model(EU, EV, PV, token, position)]


def _contributions(model: _Model, q: int, m: int, low: int) -> tuple[np.ndarray, np.ndarray, int]:
    """f(output, position, token low … m, then q): upper and lower bounds, in units of 2^exponent."""
    tokens = np.append(np.arange(low, m + 1), q)
    shift = model.token[1][q, tokens].max() + model.position[1][q].max()
    exponent = model.position[1][q][:, None] + model.token[1][q, tokens][None] - shift
    weight = np.ldexp(model.position[0][q][:, None] * model.token[0][q, tokens][None], exponent)
    difference = (
        (model.EU[q] - model.EU[q, m])[:, None, None]
        + (model.EV[tokens] - model.EV[tokens, m, None]).T[:, None, :]
        + (model.PV - model.PV[:, m, None]).T[:, :, None]
    )
    # A product that underflows loses at most 2^-1074.
    slack = model.slack
    return weight * (difference + slack) + 2.0**-1000, weight * (difference - slack) - 2.0**-1000, int(shift)


def _integers(upper: np.ndarray, lower: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds rounded outward to integers, in a unit so small that sums over positions just fit 63 bits."""
    size = max(float(np.abs(upper).max()), float(np.abs(lower).max())) * (upper.shape[1] + 3)
    scale = 62 - int(np.frexp(size)[1])
    return np.ceil(np.ldexp(upper, scale)).astype(np.int64), np.floor(np.ldexp(lower, scale)).astype(np.int64)


def _reaches(upper: np.ndarray, whole: np.ndarray, need: bool) -> np.ndarray:
    """Per output, whether some input of the group could take it to 0 (theorem 2).

    Asked twice: in integers, and in floats with a bound on their rounding, which sees further below the unit.
    """

    def largest(values: np.ndarray, rounding: float) -> np.ndarray:
        """The largest sum, over the positions that could hold the largest token where one is needed."""
        best, last = values[:, None, :-1, :-1].max(axis=3), values[:, -1:, -1]
        if need:
            copy = np.eye(best.shape[2], dtype=bool)
            best = np.where(copy, values[:, None, :-1, -2], best)
        total: np.ndarray = best.sum(axis=2) + last
        if rounding:
            total = total + rounding * (np.abs(best).sum(axis=2) + np.abs(last))
        return total.max(axis=1)

    possible: np.ndarray = largest(upper, 2 * (upper.shape[1] + 8) * _U) >= 0
    return possible & (largest(whole, 0.0) >= 0)


# -- counting -------------------------------------------------------------------------------------------------------


def _scaled(values: np.ndarray, unit: int, multiplier: int, power: int, *, up: bool) -> np.ndarray:
    """`values`, in units of 2^unit, times multiplier / 2^power, rounded outward."""
    require(1 <= multiplier < 2**12, "a scaling is out of range")
    require(unit - power < 900, "a power is out of range")
    values = np.nextafter(values * multiplier, np.inf if up else -np.inf)
    # Far below the grid only the sign matters; what is negative there is rounded up to 0, what is positive down.
    if unit - power <= -900:
        values = np.maximum(values, 0) if up else np.minimum(values, 0)
    return np.ldexp(values, max(unit - power, -900))


@dataclass
class _Count:
    """How many ways there are to fill the free positions with slacks that add up to at most `limit`, and its use.

    `slack` is by position and token, the largest token last; of it there are copies[0] to copies[1]. `recorded` must be
    no fewer if `up`, no more otherwise.
    """

    slack: np.ndarray
    limit: int
    copies: tuple[int, int]
    recorded: int
    up: bool

    @property
    def length(self) -> int:
        """Bytes of the largest number of ways."""
        free, tokens = self.slack.shape
        return int(tokens**free).bit_length() // 8 + 1

    def cost(self) -> int:
        """What counting takes, from sizes alone."""
        require(self.limit < 2**24, "the grid is finer than the checker accepts")
        free, tokens = self.slack.shape
        states = self.copies[0] + 1 if self.copies[1] == free else self.copies[1] + 1
        return free * (3_000 * tokens + states * (10_000 + 20 * self.length * max(0, self.limit + 1)))

    def check(self) -> None:
        """Count, and refuse a number that was recorded wrongly."""
        found = _ways(self.slack, self.limit, self.copies, self.length) if self.limit >= 0 else 0
        right = found <= self.recorded if self.up else self.recorded <= found
        require(right, f"a {'relaxation' if self.up else 'credit'} holds {found} inputs, not {self.recorded}")


def _ways(slack: np.ndarray, limit: int, copies: tuple[int, int], length: int) -> int:
    """How many ways there are, each number in `length` bytes of one integer."""
    from flint import fmpz  # noqa: PLC0415

    free, (least, most), width = len(slack), copies, 8 * length
    open_end = most == free
    whole = (fmpz(1) << (width * (limit + 1))) - 1
    state = {0: fmpz(1)}
    for p in range(free):
        reachable = slack[p] <= limit
        bins, numbers = np.unique(slack[p, :-1][reachable[:-1]].astype(np.int64), return_counts=True)
        smaller = sum((fmpz(int(n)) << (width * int(b)) for b, n in zip(bins, numbers, strict=True)), fmpz(0))
        copy = fmpz(1) << (width * int(slack[p, -1])) if reachable[-1] else fmpz(0)
        following: dict[int, Any] = {}
        for taken, ways in state.items():
            if open_end and taken == least:
                following[taken] = following.get(taken, fmpz(0)) + (ways * (smaller + copy) & whole)
                continue
            following[taken] = following.get(taken, fmpz(0)) + (ways * smaller & whole)
            if taken + 1 <= most:
                following[taken + 1] = following.get(taken + 1, fmpz(0)) + (ways * copy & whole)
        state = following
    total = int(sum((ways for taken, ways in state.items() if taken >= least), fmpz(0)))
    digits = np.frombuffer(total.to_bytes(length * (limit + 1), "little"), dtype=np.uint8).reshape(-1, length)
    return sum(int(digit) << (8 * place) for place, digit in enumerate(digits.sum(axis=0, dtype=np.int64)))


def _on_grid(tops: list[int], last: float) -> tuple[np.ndarray, float]:
    """Tops in steps, and what is given away at each rounding: 2^-34 of a step and the rounding of sums of tops."""
    top = np.array(tops, dtype=np.float64) / 2**_FRACTION
    require(bool((np.abs(top) < 2.0**40).all()) and abs(last) < 2.0**40, "a top is out of range")
    return top, 2.0**-34 + 4 * _U * (float(np.abs(top).sum()) + abs(last))


def _at_most(values: np.ndarray, last: float, tops: list[int]) -> tuple[np.ndarray, int]:
    """Slacks and a limit that all inputs keep whose `values` (position, token) and `last` add up to 0 or more.

    Theorems 3 and 4.
    """
    top, guard = _on_grid(tops, last)
    require(bool((values <= top[:, None] + guard).all()), "a contribution exceeds its recorded top")
    slack = np.maximum(np.floor(top[:, None] - np.maximum(values, -(2.0**60)) - guard), 0)
    # Each position may exceed its top, and the sum may be off, by what is given away.
    return slack, int(np.floor(float(top.sum()) + last + (len(top) + 1) * guard))


def _at_least(values: np.ndarray, last: float, tops: list[int]) -> tuple[np.ndarray, int]:
    """Slacks and a limit that only inputs keep whose sum is above 0 (theorem 9)."""
    top, guard = _on_grid(tops, last)
    slack = np.maximum(np.ceil(top[:, None] - np.maximum(values, -(2.0**60)) + guard), 0)
    return slack, int(np.ceil(float(top.sum()) + last - guard)) - 1


_Bounds = tuple[np.ndarray, np.ndarray, int]
_Group = tuple[int, int, int, tuple[int, int]]


def _named(
    names: list[list[int]], entry: Mapping[str, Any], found: list[_Bounds], budget: Budget
) -> list[tuple[int, int]]:
    """The (model, output) pairs that an entry lists, which must be fit for use and have a scaling each."""
    budget.spend(50_000 + len(names) * (10_000 + 20 * found[0][0][0].size), "counting on a grid")
    pairs = [(index, x) for index, x in names]
    rows = len(entry["multipliers"]), len(entry["powers"]), len(pairs), len(set(pairs))
    require(rows[0] == rows[1] == rows[2] == rows[3] > 0, "a list of outputs is malformed")
    require(len(entry["tops"]) == found[0][0].shape[1] - 1, "a list of tops is malformed")
    outputs = len(found[0][0])
    require(all(0 <= i < len(found) and 0 <= x < outputs for i, x in pairs), "an output is out of range")
    return pairs


def _check_relaxation(
    relaxation: Mapping[str, Any], found: list[_Bounds], m: int, copies: tuple[int, int], budget: Budget
) -> _Count:
    """The inputs that a relaxation admits, to be counted; it holds all that one of its outputs makes wrong."""
    names = _named(relaxation["outputs"], relaxation, found, budget)
    require(all(x != m for _, x in names), "a relaxation lists the largest token")
    joint = np.full(found[0][0].shape[1:], -np.inf)
    for (index, x), multiplier, power in zip(names, relaxation["multipliers"], relaxation["powers"], strict=True):
        joint = np.maximum(joint, _scaled(found[index][0][x], found[index][2], multiplier, power, up=True))
    grid = _at_most(joint[:-1, :-1], float(joint[-1, -1]), relaxation["tops"])
    return _Count(*grid, copies, relaxation["count"], up=True)


def _check_credit(
    credit: Mapping[str, Any],
    found: list[_Bounds],
    suspects: set[tuple[int, int]],
    m: int,
    copies: tuple[int, int],
    *,
    budget: Budget,
) -> _Count:
    """The inputs that a credit surely holds, to be counted, on which every model prefers its output to all others."""
    x, rivals = credit["output"], _named(credit["rivals"], credit, found, budget)
    require(0 <= x < len(found[0][0]) and x != m, "an output is out of range")
    needed = {(index, m) for index in range(len(found))} | {name for name in suspects if name[1] != x}
    require(needed <= set(rivals), "a credit leaves out an output that could win")
    require(all(y != x for _, y in rivals), "a credit lists its own output")
    joint = np.full(found[0][0].shape[1:], np.inf)
    for (index, y), multiplier, power in zip(rivals, credit["multipliers"], credit["powers"], strict=True):
        upper, lower, unit = found[index]
        lead = lower[x] if y == m else np.nextafter(lower[x] - upper[y], -np.inf)
        joint = np.minimum(joint, _scaled(lead, unit, multiplier, power, up=False))
    grid = _at_least(joint[:-1, :-1], float(joint[-1, -1]), credit["tops"])
    return _Count(*grid, copies, credit["count"], up=False)


def _predicted(high: np.ndarray, low: np.ndarray, outputs: list[int], m: int) -> np.ndarray:
    """What surely wins on each input (row) given bounds on the leads of `outputs` over m, or -1."""
    token = np.where((high < 0).all(axis=1), m, -1)
    if not outputs:
        return token
    # The largest lead, m's own 0 included, and the next: one of them is the best rival's.
    whole = np.concatenate([high, np.zeros((len(high), 2), dtype=high.dtype)], axis=1)
    second, first = np.partition(whole, -2, axis=1)[:, -2:].T[:, :, None]
    wins = low > np.where(high < first, first, second)
    return np.where(wins.any(axis=1), np.array(outputs)[wins.argmax(axis=1)], token)


_Block = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Partial inputs of a group: upper and lower sums by (input, output), and the copies of the largest token so far."""


def _extended(block: _Block, upper: np.ndarray, lower: np.ndarray, likely: int, budget: Budget) -> Iterator[_Block]:
    """The same inputs with every token at one more position, whose bounds are given by (output, token).

    The best tokens of the output `likely` come first, so that a search soon comes upon a wrong input.
    """
    order = np.argsort(-upper[likely], kind="stable")
    upper, lower, copy = upper[:, order], lower[:, order], order == len(order) - 1
    outputs, step = len(upper), max(1, _CHUNK // upper.size)
    for begin in range(0, len(block[0]), step):
        high, low, taken = (part[begin : begin + step] for part in block)
        budget.spend(50_000 + 20 * len(high) * upper.size, "searching a group")
        yield (
            (high[:, None] + upper.T).reshape(-1, outputs),
            (low[:, None] + lower.T).reshape(-1, outputs),
            (taken[:, None] + copy).ravel(),
        )


def _search(
    found: list[_Bounds], suspects: list[tuple[int, int]], m: int, copies: tuple[int, int], *, most: int, budget: Budget
) -> tuple[int, int]:
    """How many inputs of a group are surely, and how many possibly, wrong: all of them, one position at a time.

    `found` holds each model's bounds of contributions by (output, position, token), of which the `suspects` are
    looked at. A partial input is dropped when no output's best completion reaches 0. With two models an input is wrong
    when they predict different tokens. The search ends early where more than `most` inputs are possibly wrong.
    """
    whole = [_integers(upper, lower) for upper, lower, _ in found]
    upper = np.array([whole[index][0][x] for index, x in suspects])
    lower = np.array([whole[index][1][x] for index, x in suspects])
    free = upper.shape[1] - 1
    # Positions whose contributions vary most come first; the last one is fixed.
    order = [*np.argsort(-np.ptp(upper[:, :-1, :-1], axis=2).max(axis=0), kind="stable"), free]
    upper, lower = upper[:, order], lower[:, order]
    rest = np.zeros((free + 1, len(upper)), dtype=np.int64)
    for p in range(free - 1, -1, -1):
        rest[p] = rest[p + 1] + upper[:, p, :-1].max(axis=1)
    likely = int((rest[0] + upper[:, -1, -1]).argmax())
    start = upper[None, :, -1, -1], lower[None, :, -1, -1], np.zeros(1, dtype=np.int64)
    stack: list[Iterator[_Block]] = [iter([start])]
    surely = possibly = 0
    while stack and possibly <= most:
        block = next(stack[-1], None)
        if block is None:
            stack.pop()
            continue
        p, (high, low, taken) = len(stack) - 1, block
        keep = (high + rest[p] >= 0).any(axis=1) & (taken <= copies[1])
        high, low, taken = high[keep], low[keep], taken[keep]
        if p < free:
            stack.append(_extended((high, low, taken), upper[:, p, :-1], lower[:, p, :-1], likely, budget))
            continue
        member = taken >= copies[0]
        if len(whole) == 1:
            possibly += int(member.sum())
            surely += int(((low >= 0).any(axis=1) & member).sum())
            continue
        first, second = (
            _predicted(high[member][:, rows], low[member][:, rows], [suspects[row][1] for row in rows], m)
            for rows in ([row for row, name in enumerate(suspects) if name[0] == index] for index in (0, 1))
        )
        possibly += int(((first != second) | (first < 0)).sum())
        surely += int(((first != second) & (first >= 0) & (second >= 0)).sum())
    return surely, possibly


def _hard_wrong(hard: _Hard, group: _Group, free: int, budget: Budget) -> int:
    """On how many inputs of a group hard attention may not predict m (theorem 10).

    The keys are let in from worst to best; the inputs that a new key completes are those in which it wins.
    """
    q, m, low, copies = group
    keys = free * (m - low + 1)
    budget.spend(200 * len(hard.order[q]) + keys * (1_500 + 50 * free**2), "letting keys in")
    allowed, maxima = [0] * (free + 1), [0] * free
    found = before = 0
    for p, t in hard.order[q]:
        if not low <= t <= m or (p == free and t != q):
            continue
        allowed[p] += 1
        if p < free and t == m:
            maxima[p] += 1
        if not all(allowed):
            continue
        ways = [1]
        for a, b in zip(allowed, maxima, strict=False):
            longer = [way * (a - b) for way in ways] + [0]
            for taken, way in enumerate(ways):
                longer[taken + 1] += way * b
            ways = longer
        now = sum(ways[copies[0] : copies[1] + 1])
        if not hard.correct[q, p, t, m]:
            found += now - before
        before = now
    return found


def _hard_differs(
    hard: _Hard, upper: np.ndarray, lower: np.ndarray, outputs: list[int], group: _Group, *, budget: Budget
) -> tuple[int, int]:
    """On how many inputs of a group subject and hard attention surely, and possibly, predict different tokens."""
    q, m, low, copies = group
    free, tokens = upper.shape[1] - 1, m - low + 1
    budget.spend(tokens**free * (20 * (free + 1) * (len(outputs) + 5) + 5 * len(upper)), "looking at every input")
    place = np.full((free + 1, m + 1), -1)
    for index, (p, t) in enumerate(hard.order[q]):
        if t <= m:
            place[p, t] = index
    surely = possibly = 0
    for start in range(0, tokens**free, 2**16):
        number = np.arange(start, min(start + 2**16, tokens**free))
        inputs = np.array([number // tokens**p % tokens for p in range(free)], dtype=np.int64).reshape(free, -1)
        taken = (inputs == tokens - 1).sum(axis=0)
        inputs = inputs[:, (taken >= copies[0]) & (taken <= copies[1])]
        high = np.zeros((inputs.shape[1], len(outputs)), dtype=np.int64) + upper[outputs, -1, -1]
        small = np.zeros_like(high) + lower[outputs, -1, -1]
        for p in range(free):
            high += upper[outputs, p][:, inputs[p]].T
            small += lower[outputs, p][:, inputs[p]].T
        first = _predicted(high, small, outputs, m)
        whole = np.vstack([inputs + low, np.full(inputs.shape[1], q)])
        winner = place[np.arange(free + 1)[:, None], whole].argmax(axis=0)
        wins = hard.correct[q, winner, whole[winner, np.arange(whole.shape[1])]]
        second = np.where(wins.any(axis=1), wins.argmax(axis=1), -1)
        possibly += int(((first != second) | (first < 0)).sum())
        surely += int(((first != second) & (first >= 0) & (second >= 0)).sum())
    return surely, possibly


# -- the two kinds of proof -------------------------------------------------------------------------------------------


def _check_piece(
    piece: Mapping[str, Any],
    found: list[_Bounds],
    suspects: set[tuple[int, int]],
    group: _Group,
    size: int,
    *,
    counts: list[_Count],
    budget: Budget,
) -> tuple[int, int]:
    """How many inputs of a group surely, and possibly, are wrong, as far as the piece shows if `counts` are right."""
    _, m, _, copies = group
    if not piece["relaxations"]:
        require(piece["credits"] == [], "a searched group has credits")
        if not suspects:
            return 0, 0
        most = piece["wrong"] - piece["proxy_wrong"]
        return _search(found, sorted(suspects), m, copies, most=most, budget=budget)
    covered: set[tuple[int, int]] = set()
    for relaxation in piece["relaxations"]:
        require(relaxation["count"] <= size, f"a relaxation holds more than the {size} inputs of its group")
        count = _check_relaxation(relaxation, found, m, copies, budget)
        if relaxation["count"] < size:
            counts.append(count)
        covered |= {(index, x) for index, x in relaxation["outputs"]}
    require(suspects <= covered, "an output that could win is left out")
    possibly, surely = min(sum(relaxation["count"] for relaxation in piece["relaxations"]), size), 0
    require(
        len({credit["output"] for credit in piece["credits"]}) == len(piece["credits"]), "two credits for one output"
    )
    for credit in piece["credits"]:
        counts.append(_check_credit(credit, found, suspects, m, copies, budget=budget))
        surely += credit["count"]
    # Of two models, the inputs of credits are agreed upon (theorem 7); of one, they are wrong.
    return (surely, possibly) if len(found) == 1 else (0, possibly - surely)


def _check_pieces(content: Mapping[str, Any], models: list[Any], budget: Budget) -> tuple[int, int]:
    """Returns possibly and surely wrong inputs; every group that is not listed is shown to be right throughout."""
    listed: dict[tuple[int, int], Mapping[str, Any]] = {}
    for piece in content["pieces"]:
        require((piece["last"], piece["maximum"]) not in listed, "a group is listed twice")
        listed[piece["last"], piece["maximum"]] = piece
    hard = models[1] if isinstance(models[-1], _Hard) else None
    soft = models[:1] if hard else models
    counts: list[_Count] = []
    free, wrong, surely_wrong = content["inputs"]["length"] - 1, 0, 0
    for q, m, low, copies in groups(content["inputs"]):
        size = size_of(free, m - low, copies)
        if size == 0:
            continue
        found = [_contributions(model, q, m, low) for model in soft]
        whole = [_integers(upper, lower) for upper, lower, _ in found]
        suspects: set[tuple[int, int]] = set()
        for index in range(len(soft)):
            reach = _reaches(found[index][0], whole[index][0], copies[0] >= 1)
            reach[m] = False
            suspects |= {(index, int(x)) for x in np.flatnonzero(reach)}
        misled = _hard_wrong(hard, (q, m, low, copies), free, budget) if hard else 0
        piece = listed.pop((q, m), None)
        if piece is None:
            require(not suspects and not misled, f"group {(q, m)} is not shown to be right")
            continue
        if hard and content["strategy"] == "brute-force":
            require(piece["relaxations"] == piece["credits"] == [], "the strategy does not fit the proof")
            outputs = sorted(x for _, x in suspects)
            surely, possibly = _hard_differs(hard, *whole[0], outputs, (q, m, low, copies), budget=budget)
        else:
            surely, possibly = _check_piece(
                piece, found, suspects, (q, m, low, copies), size, counts=counts, budget=budget
            )
            if hard:
                require(misled <= piece["proxy_wrong"] <= size, f"hard attention is wrong on {misled} inputs")
                require(piece["credits"] == [], "credits do not fit hard attention")
                surely, possibly = 0, min(possibly + piece["proxy_wrong"], size)
        require(possibly <= piece["wrong"] <= size, f"group {(q, m)} has {possibly} inputs that may be wrong, or more")
        require(0 <= piece["surely_wrong"] <= surely, f"group {(q, m)} has only {surely} surely wrong inputs")
        require(hard is not None or piece["proxy_wrong"] == 0, "there is no hard attention")
        wrong += piece["wrong"]
        surely_wrong += piece["surely_wrong"]
    require(not listed, "a listed group is not in the set of inputs")
    budget.spend(sum(count.cost() for count in counts), "counting on grids")
    for count in counts:
        count.check()
    return wrong, surely_wrong


def _largest(at_maximum: np.ndarray, best: np.ndarray, last: float, smaller: int) -> Fraction:
    """The largest sum with `smaller` of the free positions at their best, the others at the largest token, exactly."""
    held = [Fraction(float(x)) for x in at_maximum]
    gains = sorted(Fraction(float(x)) - y for x, y in zip(best, held, strict=True))
    return sum(held) + sum(gains[len(gains) - smaller :]) + Fraction(float(last))


def _check_boxes(content: Mapping[str, Any], model: _Model, budget: Budget) -> int:
    """Returns how many inputs the boxes hold; each box is shown to be right by its exact worst case (theorem 5)."""
    boxes: dict[tuple[int, int], list[int]] = {}
    for box in content["boxes"]:
        require((box["last"], box["maximum"]) not in boxes, "a box is listed twice")
        boxes[box["last"], box["maximum"]] = box["tokens"]
    free, correct = content["inputs"]["length"] - 1, 0
    for q, m, low, copies in groups(content["inputs"]):
        masks = boxes.pop((q, m), [])
        require(len(masks) <= free + 1, "a box is malformed")
        upper = np.delete(_contributions(model, q, m, low)[0], m, axis=0)
        at_maximum = upper[:, :-1, -2]
        for smaller, mask in enumerate(masks):
            inside = (1 << m) - (1 << low) if smaller else 1 << m
            require(mask & ~inside == 0 <= mask, f"a box of group {(q, m)} holds a token outside the set")
            if mask == 0:
                continue
            possible = copies[0] <= free - smaller <= copies[1]
            require(possible, f"a box of group {(q, m)} has a number of copies that the set does not")
            budget.spend(40_000 + 3 * at_maximum.size * (mask.bit_count() + 5), "the worst cases of boxes")
            members = [t for t in range(low, m) if mask >> t & 1]
            last, best = upper[:, -1, -1], at_maximum
            if smaller:
                best = upper[:, :-1][:, :, [t - low for t in members]].max(axis=2)
            gains = np.sort(best - at_maximum, axis=1)[:, free - smaller :].sum(axis=1)
            worst = at_maximum.sum(axis=1) + gains + last
            size = (np.abs(best) + 2 * np.abs(at_maximum)).sum(axis=1) + np.abs(last)
            # Twice the rounding of sums of fewer than 2 (K + 4) terms; within it, added up again in rational numbers.
            doubtful = np.flatnonzero(worst + 4 * (free + 9) * _U * size >= 0)
            budget.spend(10_000 * free * len(doubtful), "the worst cases of boxes in rational numbers")
            right = all(_largest(at_maximum[x], best[x], last[x], smaller) < 0 for x in doubtful)
            require(right, f"a box of group {(q, m)} holds a wrong input")
            correct += comb(free, smaller) * len(members) ** smaller
    require(not boxes, "a listed box is not in the set of inputs")
    return correct


def _spend(content: Mapping[str, Any], sizes: Mapping[str, int], budget: Budget) -> None:
    """What is known from sizes alone: the tables, the bounds of contributions in every group, inputs to be visited."""
    proxy, inputs, v, d, h, length = content["proxy"], content["inputs"], *(sizes[letter] for letter in "vdhp")
    soft = 2 if proxy is not None and proxy["kind"] != "one-hot" else 1
    budget.spend(soft * (20_000 * v * (3 * v + 2 * length) + 200 * d * (v + d) * (v + h + length)), "the tables")
    if proxy is not None and proxy["kind"] == "one-hot":
        budget.spend(v * v * length * (3_000 + 20 * v) + 1_000 * d * (v + d) * (v + h), "the order of all keys")
    size = length * (1_000 + length * v.bit_length())
    total = 0
    for m in range(inputs["minimum_maximum"], v):
        tokens = m + 1 if inputs["within"] is None else min(m, inputs["within"]) + 1
        total += tokens * (size + soft * (100_000 + 12 * v * length * (tokens + length)))
    budget.spend(total, "the worst case of every group")
    # A search visits the wrong inputs of its group one by one.
    searched = [piece for piece in content["pieces"] or () if not piece["relaxations"]]
    visited = sum(max(0, piece["wrong"] - piece["proxy_wrong"]) for piece in searched)
    budget.spend(20 * visited, "searching the groups that were not counted")


def check(
    content: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    config: Mapping[str, Any],
    budget: Budget,
) -> None:
    """Check a certificate about a MaxOfKForCausalLM; silence means that it holds."""
    subject, inputs, proxy, strategy = (content[key] for key in ("subject", "inputs", "proxy", "strategy"))
    v, h, length = sizes["v"], sizes["h"], sizes["p"] - 1
    require(config.get("head_dim") == h, "the model scales its scores by another width than that of its head")
    require(v >= 2 and length >= 2, "there is nothing to compare")
    require((subject["vocabulary"], subject["length"]) == (v, length), "the subject has other sizes")
    require((inputs["vocabulary"], inputs["length"]) == (v, length), "the set of inputs is not the subject's")
    require(strategy in ("separable", *_BY_SEARCH, *_BY_BOXES), "the strategy is unknown")
    require((proxy is None) == (content["quantity"] == "accuracy"), "the quantity does not fit the proxy")
    require(content["quantity"] in ("accuracy", "agreement"), "the quantity is unknown")
    require(content["blocks"] is None, "the evidence does not belong to an attention model")
    require(content["parameters"].keys() == _PARAMETERS.get(strategy, set()), "the parameters are not the strategy's")

    described = "" if proxy is None else f" The proxy: {_proxy_words(proxy, h)}."
    _spend(content, sizes, budget)
    size = sum(size_of(length - 1, m - low, copies) for _, m, low, copies in groups(inputs))
    require(size == inputs["size"] > 0, f"the set has {size} inputs, not {inputs['size']}")
    dimension = {"brute-force": size * v, "subcubic-low-rank": 2 * v * v + (2 * length + 3) * v}
    stated = dimension.get(strategy, 3 * v * v + 2 * length * v)
    require(content["unexplained_dimension"] == stated, f"the unexplained dimension is {stated}")
    models = _models(weights, length, h, proxy)
    if strategy in _BY_BOXES:
        require(content["pieces"] is None and content["boxes"] is not None, "the strategy does not fit the proof")
        require(content["quantity"] == "accuracy", "boxes prove accuracy only")
        at_least, at_most = _check_boxes(content, models[0], budget), size
    else:
        require(content["boxes"] is None and content["pieces"] is not None, "the strategy does not fit the proof")
        counted = any(piece["relaxations"] for piece in content["pieces"])
        require(not counted or strategy == "separable", "the strategy does not fit the proof")
        wrong, surely_wrong = _check_pieces(content, models, budget)
        at_least, at_most = size - wrong, size - surely_wrong
    require(content["at_least"] == at_least, f"at least {at_least} inputs are right, not {content['at_least']}")
    require(content["at_most"] == at_most, f"at most {at_most} inputs are right, not {content['at_most']}")
    claim = f"{called(subject)} predicts the largest token"
    if proxy is not None:
        claim = f"{called(subject)} and its proxy predict the same token"
    number = bounds(at_least, at_most, size, exact=strategy in _BY_SEARCH)
    model = f"one attention layer with one head, scale 1/sqrt({h}), no normalisation, no MLP, no bias"
    claim = f"Of {words(inputs)}, {claim} on {number}; a tie does not count.{described} {identity(subject, model)}"
    require(content["statement"] == claim, f"the statement should read: {claim}")
