"""The checker for linear max-of-n models: redoes the bound of a certificate on another path.

Logits and their exponentials are enclosed by Arb at 192 bits and rounded once. Sums of products of such floats, all of
one sign, are off by a relative error that depends only on the number of terms. Logarithms, and everything that is added
up over inputs, are Arb's; answers that floats leave in doubt are decided in rational numbers. It is meant to be read in
one sitting, next to docs/soundness.md, whose theorem numbers appear below. Everything it does not accept, it refuses.
"""

import base64
import zlib
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import combinations_with_replacement
from math import comb, factorial
from typing import Any

import numpy as np

from assay.proofs.checker._common import Budget, bounds, called, groups, identity, require, size_of, words

_BITS = 192
_U = 2.0**-53
_UNIT = 2**50
_LEAST = 2.0**-420
"""Sums below this may have lost terms to underflow, and are added up again."""

_ROWS = 128
"""Tokens whose logits Arb holds at a time: numbers of Arb take many times the memory of floats."""

_EXACT = ("brute-force", "symmetry", "gemm")
_LONGEST = 20
"""Tokens: 21! exceeds 63 bits."""

SHAPES = {"embed_tokens.weight": "vd", "linear.weight": "dd", "lm_head.weight": "vd"}
"""The arrays of the model: v tokens, width d."""

NOT_CHECKED = ()


def _multisets(inputs: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The multisets of the set, each ascending, sorted by their largest, then second largest token …; their orders."""
    n = inputs["length"]
    every = combinations_with_replacement(range(inputs["vocabulary"]), n)
    tokens = np.fromiter(every, dtype=np.dtype((np.int64, n)))
    keep = tokens[:, -1] >= inputs["minimum_maximum"]
    if inputs["within"] is not None:
        keep &= tokens[:, 0] >= tokens[:, -1] - inputs["within"]
    if inputs["copies"] is not None:
        keep &= (tokens == tokens[:, -1:]).sum(axis=1) == inputs["copies"]
    tokens = tokens[keep]
    tokens = tokens[np.lexsort(tokens.T)]
    # n! over the product of the factorials of the copies: a token's rank among those equal to it, over all positions.
    ranks = np.array([(tokens[:, : i + 1] == tokens[:, i : i + 1]).sum(axis=1) for i in range(n)])
    return tokens, factorial(n) // ranks.prod(axis=0)


class _Model:
    """The table of logits l, and of its exponentials with each row scaled by its largest.

    `logits` is within u relative plus 2^-70 of l, `A` within 2 u relative or 2^-699 of e^(l - top). `answers` is the
    sum of `counts[t, m]` times the logit of output m in row t.
    """

    def __init__(self, weights: Mapping[str, np.ndarray], counts: np.ndarray, budget: Budget) -> None:
        from flint import arb  # noqa: PLC0415

        self.E, self.W, self.U = (weights[name] for name in SHAPES)
        (self.v, self.d), self.budget = self.E.shape, budget
        self.unembed = (_arb_matrix(self.U) * _arb_matrix(self.W)).transpose()
        self.logits, self.A = np.empty((self.v, self.v)), np.empty((self.v, self.v))
        self.top, self.answers = [], arb(0)
        for begin in range(0, self.v, _ROWS):
            entries = self._rows(range(begin, min(begin + _ROWS, self.v)))
            for token, start in enumerate(range(0, len(entries), self.v), begin):
                row = entries[start : start + self.v]
                self.logits[token] = [float(x) for x in row]
                require(bool((np.abs(self.logits[token]) < 2.0**900).all()), "a logit is out of range")
                self.top.append(row[int(self.logits[token].argmax())].mid())
                shifted = [x - self.top[-1] for x in row]
                self.A[token] = [float(x.exp()) if x > -485 else 0.0 for x in shifted]
                for m in np.flatnonzero(counts[token]).tolist():
                    self.answers += int(counts[token, m]) * row[m]

    def _rows(self, tokens: Sequence[int]) -> list[Any]:
        """The logits that tokens contribute, one row after the other."""
        entries: list[Any] = (_arb_matrix(self.E[list(tokens)]) * self.unembed).entries()
        require(all(x.rad() < 2.0**-70 for x in entries), "a logit could not be enclosed")
        return entries

    def error(self, n: int) -> float:
        """Relative error of the sums below over n tokens: 2 n u from entries, the rest from additions and products."""
        return 1.02 * _U * (4 * n + 2 * self.v + 16)

    def sums(self, tokens: np.ndarray) -> np.ndarray:
        """Σ_x Π_i A[t_i, x] for each row of tokens."""
        return self._entries(tokens, lambda weight, _: (self.A * weight) @ self.A.T)

    def bounds(self, tokens: np.ndarray, kept: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds on these sums: outputs that are kept, then Cauchy and Schwarz (theorem L4)."""
        edges = np.arange(0, self.v, width)

        def split(largest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            mask = kept.copy()
            mask[:, largest] = True
            return np.where(mask, self.A, 0), np.where(mask, 0, self.A)

        def exact(weight: np.ndarray, largest: np.ndarray) -> np.ndarray:
            top, rest = split(largest)
            matrix: np.ndarray = (top * weight) @ self.A.T + (rest * weight) @ top.T
            return matrix

        def remainder(weight: np.ndarray, largest: np.ndarray) -> np.ndarray:
            norms = np.sqrt(np.add.reduceat(split(largest)[1] ** 2 * weight, edges, axis=1) + 2.0**-960)
            return norms @ norms.T

        low = self._entries(tokens, exact)
        return low, low + self._entries(tokens, remainder)

    def _entries(self, tokens: np.ndarray, matrix_of: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """Per row of tokens, the entry at its first two of a matrix that depends on the others and on their largest."""
        others = tokens[:, 2:]
        ends = np.flatnonzero(np.append((others[1:] != others[:-1]).any(axis=1), True)) + 1
        values, begin = np.empty(len(tokens)), 0
        for end in ends.tolist():
            matrix = matrix_of(self.A[others[begin]].prod(axis=0), others[begin, -1:])
            values[begin:end] = matrix[tokens[begin:end, 0], tokens[begin:end, 1]]
            begin = end
        return values

    def logarithms(self, values: np.ndarray, weights: np.ndarray, tokens: np.ndarray) -> Any:
        """Σ weight · log(value) over rows of tokens; sums near underflow are added up again by Arb."""
        from flint import arb  # noqa: PLC0415

        small = values < _LEAST
        each = tokens.shape[1] * self.v * (50 * self.d + 5_000)
        self.budget.spend(int(small.sum()) * each, "adding up sums of exponentials that are near underflow")
        total = arb(0)
        for weight in np.unique(weights):
            product = arb(1)
            for value in values[~small & (weights == weight)].tolist():
                product *= value
            total += int(weight) * product.log()
        for row, weight in zip(tokens[small].tolist(), weights[small].tolist(), strict=True):
            shifted = [[x - self.top[token] for x in self._rows([token])] for token in row]
            total += weight * sum((sum(column, arb(0)).exp() for column in zip(*shifted, strict=True)), arb(0)).log()
        return total

    def surely_right(self, tokens: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Whether an upper bound on the sum is below twice the term of the answer (theorem L5)."""
        own = np.prod([self.A[tokens[:, i], tokens[:, -1]] for i in range(tokens.shape[1])], axis=0)
        found: np.ndarray = (own > _LEAST) & (high < 2 * own * (1 - 2 * self.error(tokens.shape[1])))
        return found

    def right(self, tokens: list[int]) -> bool:
        """Whether the answer's logit is strictly largest, in rational numbers where floats leave a doubt."""
        each = self.logits[tokens]
        logits, answer = each.sum(axis=0), max(tokens)
        doubt = 16 * len(tokens) * (_U * float(np.abs(each).sum(axis=0).max()) + 2.0**-70)
        rivals = [x for x in np.flatnonzero(logits >= logits[answer] - doubt).tolist() if x != answer]
        if not rivals or logits[rivals].max() > logits[answer] + doubt:
            return not rivals
        self.budget.spend(2_000 * self.d * (len(tokens) + self.d + len(rivals) + 1), "logits in rational numbers")
        hidden = [sum(Fraction(float(self.E[t, k])) for t in tokens) for k in range(self.d)]
        mapped = [sum(Fraction(float(w)) * h for w, h in zip(row, hidden, strict=True)) for row in self.W]

        def logit(x: int) -> Fraction:
            return sum((Fraction(float(u)) * h for u, h in zip(self.U[x], mapped, strict=True)), Fraction(0))

        return all(logit(x) < logit(answer) for x in rivals)


def _arb_matrix(values: np.ndarray) -> Any:
    from flint import arb, arb_mat  # noqa: PLC0415

    rows, columns = values.shape
    return arb_mat(rows, columns, [arb(float(x)) for x in values.ravel()])


def _bits(text: str, number: int, what: str) -> np.ndarray:
    """The bits that a certificate records."""
    try:
        packed = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), -(-number // 8) + 1)
    except (ValueError, zlib.error):
        packed = b""
    require(len(packed) == -(-number // 8), f"the bits of {what} are malformed")
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8))
    require(not bits[number:].any(), f"the bits of {what} are malformed")
    return bits[:number].astype(bool)


def _repeated(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows with their first token twice instead of the first two, and with their second twice (theorem L3)."""
    first, second = tokens.copy(), tokens.copy()
    first[:, 1], second[:, 0] = tokens[:, 0], tokens[:, 1]
    return first, second


def _length(
    content: Mapping[str, Any], model: _Model, tokens: np.ndarray, kept: np.ndarray
) -> tuple[dict[str, int], int]:
    """The operations of the strategy and its unexplained dimension, by the rules of docs/soundness.md."""
    v, d, n, number = model.v, model.d, tokens.shape[1], len(tokens)
    strategy, loss = content["strategy"], content["quantity"] == "loss"
    arithmetic, comparisons, exponentials = 2 * d * d * v + 2 * v * d * v + 8 * v * d * loss, 0, 0

    def total() -> dict[str, int]:
        return {"arithmetic": arithmetic, "comparisons": comparisons, "exponentials": exponentials}

    if strategy in ("brute-force", "symmetry"):
        number = content["inputs"]["size"] if strategy == "brute-force" else number
        arithmetic += number * (n - 1) * v + number * (2 * v + 3) * loss
        comparisons, exponentials = number * v, number * (v + 1) * loss
        return total(), number * v
    arithmetic, comparisons, exponentials = arithmetic + v * v, v * v, v * v
    dimension, logarithms = v * v + number, number
    # One matrix for pairs; one for each largest token of triples, between it and the smallest token beside it.
    tables = [(0, v)]
    if n == 3:
        tables = [(int(m), int(m - tokens[tokens[:, -1] == m, 0].min() + 1)) for m in np.unique(tokens[:, -1])]
        exponentials += 0 if strategy == "convexity" else v * v
    if strategy == "gemm":
        arithmetic += sum(rows * (rows + 1) * v + (rows * v if n == 3 else 0) for _, rows in tables)
    elif strategy == "convexity":
        arithmetic += 2 * v * v if n == 2 else v * v + 2 * v**3
        logarithms = len(np.unique(np.concatenate([rows[:, 1:] for rows in _repeated(tokens)]), axis=0))
        dimension = v * v + logarithms
        arithmetic, exponentials = arithmetic + number * (not loss), exponentials + number * (not loss)
    else:
        logarithms, blocks, refine = 2 * number, -(-v // content["blocks"]["width"]), content["parameters"]["refine"]
        comparisons += v * v
        for largest, rows in tables:
            mask = kept[largest - rows + 1 : largest + 1].copy() if n == 3 else kept
            mask[:, largest] |= n == 3
            arithmetic += 4 * int(mask.sum()) * rows + 2 * rows * rows + blocks * rows * (rows + 1)
            arithmetic += (3 if n == 3 else 2) * rows * v
            exponentials += rows * blocks
        if refine:
            arithmetic += 2 * number + min(refine, number) * v * n
            comparisons, exponentials = comparisons + number, exponentials + number
    if loss:
        arithmetic, exponentials = arithmetic + 2 * logarithms, exponentials + logarithms
    else:
        direct = content["parameters"]["direct"] if strategy == "gemm" else 0
        arithmetic += n * number + direct * (n - 1) * v
        comparisons += number + direct * v
    return total(), dimension


def check(
    content: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    config: Mapping[str, Any],
    budget: Budget,
) -> None:
    """Check a certificate about a LinearMaxForCausalLM; silence means that it holds."""
    from flint import ctx  # noqa: PLC0415

    with ctx.workprec(_BITS):
        _check(content, weights, sizes, config.get("length"), budget)


def _spend(content: Mapping[str, Any], v: int, d: int, n: int, budget: Budget) -> None:
    """What is known from sizes alone: the table, the multisets, and a matrix product for every n - 2 tokens."""
    budget.spend(10 * v * d * (v + d) + 1_000 * v * v, "the table")
    matrices = {"convexity": 2, "blocks": 4}.get(content["strategy"], 1)
    budget.spend(comb(v + n - 3, n - 2) * matrices * (v**3 // 2 + 50 * v * v), "the sums of exponentials")
    budget.spend(comb(v + n - 1, n) * (1_000 + 200 * n + 2 * v), "the multisets of tokens")


def _check(
    content: Mapping[str, Any], weights: Mapping[str, np.ndarray], sizes: Mapping[str, int], n: Any, budget: Budget
) -> None:
    v, d = sizes["v"], sizes["d"]
    subject, inputs, strategy, quantity = (content[key] for key in ("subject", "inputs", "strategy", "quantity"))
    require((subject["vocabulary"], inputs["vocabulary"]) == (v, v), "the subject has another vocabulary")
    require(subject["length"] == inputs["length"] == n, "the subject reads another number of tokens")
    require(2 <= n <= _LONGEST, f"the subject reads {n} tokens, and not 2 to {_LONGEST}")
    require(quantity in ("accuracy", "loss"), "the quantity is unknown")
    require(strategy in (*_EXACT, "convexity", "blocks"), "the strategy is unknown")
    require(strategy in ("brute-force", "symmetry") or n in (2, 3), "the strategy is for two or three tokens")
    evidence = content["proxy"], content["pieces"], content["boxes"]
    require(evidence == (None, None, None), "the evidence does not belong to a linear model")
    require((content["blocks"] is not None) == (strategy == "blocks"), "the strategy does not fit the proof")
    named = {"blocks": {"width", "top", "refine"}, "gemm": {"direct"} if quantity == "accuracy" else set()}
    require(content["parameters"].keys() == named.get(strategy, set()), "the parameters are not the strategy's")
    require(all(type(x) is int for x in content["parameters"].values()), "a parameter is not a number")

    _spend(content, v, d, n, budget)
    size = sum(size_of(n - 1, m - low, copies) for _, m, low, copies in groups(inputs))
    require(size == inputs["size"] > 0, f"the set has {size} inputs, not {inputs['size']}")
    # Numbers of inputs and of tokens in them are added up in 64 bits below.
    require(n * size < 2**63, "the inputs of the set hold 2^63 tokens or more")
    tokens, orders = _multisets(inputs)
    counts = np.zeros((v, v), dtype=np.int64)
    if quantity == "loss":
        for column in tokens.T:
            np.add.at(counts, (column, tokens[:, -1]), orders)
    model = _Model(weights, counts, budget)
    kept, low, high = _sums(content, model, tokens)
    if quantity == "loss":
        least, most = _loss(content, model, tokens, orders, occurrences=counts.sum(axis=1), low=low, high=high)
        require(content["at_least"] == 0 or 0 < content["at_least"] <= least, "the loss may be smaller than stated")
        require(most <= content["at_most"], "the loss may be larger than stated")
        least, most = _decimals(content["at_least"], False), _decimals(content["at_most"], True)
        claim = f"the mean cross-entropy of {called(subject)} is at least {least} and at most {most} nats."
        claim = f"Over {words(inputs)}, {claim}"
    else:
        least = _right(content, model, tokens, orders, high)
        most = least if strategy in _EXACT else size
        stated = content["at_least"], content["at_most"]
        require(0 <= stated[0] <= least, f"at least {least} inputs are shown to be right, not {stated[0]}")
        require(stated[0] == least or strategy not in _EXACT, f"{least} inputs are right, not {stated[0]}")
        require(stated[1] == most, f"at most {most} inputs are right, not {stated[1]}")
        number = bounds(stated[0], most, size, exact=False)
        claim = f"{called(subject)} predicts the largest token on {number}; a tie does not count."
        claim = f"Of {words(inputs)}, {claim}"
    model_words = f"embeddings of width {d} added up, one linear map, no attention, no normalisation, no bias"
    claim += f" {identity(subject, model_words)}"
    require(content["statement"] == claim, f"the statement should read: {claim}")
    operations, dimension = _length(content, model, tokens, kept)
    require(content["operations"] == operations, f"the proof takes {operations}")
    require(content["unexplained_dimension"] == dimension, f"the unexplained dimension is {dimension}")


def _sums(content: Mapping[str, Any], model: _Model, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outputs kept, and lower and upper bounds on the sum of each multiset as the strategy has them."""
    kept = np.zeros((model.v, model.v), dtype=bool)
    if content["strategy"] == "convexity":
        first, second = (model.sums(rows) for rows in _repeated(tokens))
        return kept, np.zeros(len(tokens)), np.sqrt(first) * np.sqrt(second)
    sums = model.sums(tokens)
    if content["strategy"] != "blocks":
        return kept, sums, sums
    blocks, parameters = content["blocks"], content["parameters"]
    require(blocks["width"] == parameters["width"] >= 1, "the width of the blocks is not the one stated")
    kept = _bits(blocks["kept"], model.v**2, "outputs").reshape(model.v, model.v)
    most = min(parameters["top"], model.v)
    fitting = (np.diag(kept) & (most <= kept.sum(axis=1)) & (kept.sum(axis=1) <= most + 1)).all()
    require(bool(fitting), "the outputs kept are not as many as stated, or not the tokens themselves")
    refined = _bits(blocks["refined"], len(tokens), "multisets")
    require(int(refined.sum()) == min(parameters["refine"], len(tokens)), "not as many multisets refined as stated")
    low, high = model.bounds(tokens, kept, blocks["width"])
    return kept, np.where(refined, sums, low), np.where(refined, sums, high)


def _loss(
    content: Mapping[str, Any],
    model: _Model,
    tokens: np.ndarray,
    orders: np.ndarray,
    *,
    occurrences: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> tuple[Any, Any]:
    """What the mean loss surely lies between, in units of 2^-50 nats, as balls of Arb (theorem L1)."""
    from flint import arb  # noqa: PLC0415

    tops = sum((int(k) * top for k, top in zip(occurrences, model.top, strict=True)), arb(0))
    if content["strategy"] == "convexity":
        logs = sum((model.logarithms(model.sums(rows), orders, rows) for rows in _repeated(tokens)), arb(0)) / 2
    else:
        logs = model.logarithms(high, orders, tokens)
    slack = arb(0, 1.01 * model.error(tokens.shape[1]))
    most = ((logs + tops - model.answers) / content["inputs"]["size"] + slack) * _UNIT
    if content["strategy"] == "convexity":
        return arb(0), most
    logs = logs if low is high else model.logarithms(low, orders, tokens)
    return ((logs + tops - model.answers) / content["inputs"]["size"] + slack) * _UNIT, most


def _right(content: Mapping[str, Any], model: _Model, tokens: np.ndarray, orders: np.ndarray, high: np.ndarray) -> int:
    """How many inputs the strategy shows to be right (theorem L5)."""
    sure = model.surely_right(tokens, high)
    if content["strategy"] in _EXACT:
        if content["strategy"] == "gemm":
            direct = content["parameters"]["direct"]
            require(int((~sure).sum()) <= direct <= len(tokens), "fewer answers were compared than had to be")
        model.budget.spend(int((~sure).sum()) * (50_000 + 20 * tokens.shape[1] * model.v), "comparing logits")
        sure[~sure] = [model.right(row) for row in tokens[~sure].tolist()]
    return int(orders[sure].sum())


def _decimals(units: int, up: bool) -> str:
    """A number of nats with twelve decimals, rounded down, or up."""
    scaled = Fraction(units * 10**12, _UNIT)
    whole = -(-scaled.numerator // scaled.denominator) if up else scaled.numerator // scaled.denominator
    return f"{whole // 10**12}.{whole % 10**12:012d}"
