"""The strategies for linear models, put together: how many answers are right, and between what the mean loss lies."""

import base64
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate
from typing import Any

import numpy as np

from assay._errors import AssayError
from assay.proofs._certificate import LOSS_UNIT, Blocks
from assay.proofs._exact import flint
from assay.proofs._operations import Operations
from assay.proofs.linear._enclose import (
    BITS,
    ball,
    ceil_of,
    direct_error,
    exact_sum,
    floor_of,
    log_total,
    require_range,
    right,
    sum_error,
    surely_right,
    weighted,
)
from assay.proofs.linear._multisets import (
    Multisets,
    multisets,
    number_of_multisets,
    occurrences,
    sum_of_answers,
)
from assay.proofs.linear._sums import direct, doubled, exactly, in_blocks, keep_largest, products
from assay.proofs.linear._table import Exponentials, Table, exponentials
from assay.tasks import InputSet

LINEAR_STRATEGIES = {
    "brute-force": "every sequence, from its logits",
    "symmetry": "every multiset of tokens, from its logits: order does not matter",
    "convexity": "two different tokens are at most as bad as the mean of each of them twice",
    "blocks": "the largest outputs of each token exactly, the others by Cauchy and Schwarz in blocks",
    "gemm": "the sums of exponentials of all multisets as one matrix product",
}
"""The proof strategies for linear max-of-n models, in words."""

_LARGEST_ENUMERATION = 2**34
_LARGEST_TABLE = 2**25
_TINY = 2.0**-1000


@dataclass(frozen=True)
class Question:
    """What is to be proved: "accuracy" or "loss" of the model with this table, over these inputs."""

    table: Table
    inputs: InputSet
    quantity: str
    operations: Operations


@dataclass
class Proof:
    """What a strategy shows, and with what.

    At least and at most so many inputs are answered correctly, or the mean loss is so many units of 2^-50 nats.
    """

    at_least: int
    at_most: int
    unexplained_dimension: int
    parameters: dict[str, int | str] = field(default_factory=dict)
    blocks: Blocks | None = None


def packed(bits: np.ndarray) -> str:
    """A sequence of bits as text."""
    return base64.b64encode(zlib.compress(np.packbits(bits).tobytes(), 9)).decode()


def _sequences(inputs: InputSet) -> Iterator[Multisets]:
    """All sequences of a set, by their first token; each stands for itself only."""
    rest = np.indices((inputs.vocabulary,) * (inputs.length - 1)).reshape(inputs.length - 1, -1).T
    for first in range(inputs.vocabulary):
        tokens = np.column_stack([np.full(len(rest), first), rest])
        tokens = tokens[inputs.contains(tokens)]
        yield Multisets(tokens, np.ones(len(tokens), dtype=np.int64))


def _interval(question: Question, low: Any, high: Any, error: float) -> tuple[int, int]:
    """The mean loss from sums of logarithms over all inputs; each may be off by `error`, beyond the table's radius."""
    library, table, inputs = flint(), question.table, question.inputs
    answers, exponent = sum_of_answers(table, inputs)
    label = ball(Fraction(answers) * Fraction(2) ** exponent)
    slack = library.arb(0, 1) * (1.02 * inputs.length * table.radius + error)
    least = (low - label) / inputs.size + slack
    most = (high - label) / inputs.size + slack
    return max(0, floor_of(least, LOSS_UNIT)), ceil_of(most, LOSS_UNIT)


def _tops(inputs: InputSet, top: np.ndarray) -> Any:
    """The sum over all inputs and tokens of top[token], exactly."""
    changes, largest = [0] * (inputs.vocabulary + 1), [0] * inputs.vocabulary
    for maximum in inputs.maxima:
        each, own = occurrences(inputs, maximum)
        changes[inputs.lowest(maximum)] += each
        changes[maximum] -= each
        largest[maximum] += own
    counts = [smaller + own for smaller, own in zip(accumulate(changes), largest, strict=False)]
    return ball(weighted(top.tolist(), counts))


def prove(question: Question, strategy: str, *, width: int, top: int, refine: int) -> Proof:
    """Make the proof. Raises AssayError where a strategy does not apply."""
    with flint().ctx.workprec(BITS):
        if question.quantity == "loss":
            rows, columns = question.table.embedding.shape
            question.operations.add(arithmetic=8 * rows * columns)
        if strategy in ("brute-force", "symmetry"):
            return _one_by_one(question, strategy)
        work = _Work.of(question, strategy)
        if strategy == "convexity":
            return _convexity(work)
        if strategy == "gemm":
            return _gemm(work)
        return _blocks(work, width=width, top=top, refine=refine)


def _one_by_one(question: Question, strategy: str) -> Proof:
    table, inputs, operations = question.table, question.inputs, question.operations
    v, n = table.vocabulary, table.length
    number = inputs.size if strategy == "brute-force" else number_of_multisets(inputs)
    if number * v > _LARGEST_ENUMERATION:
        raise AssayError(f"strategy {strategy!r} would evaluate {number:.3g} × {v} logits; at most 2^34. Use 'gemm'.")
    operations.add(arithmetic=number * (n - 1) * v, comparisons=number * v)
    parts = _sequences(inputs) if strategy == "brute-force" else iter([multisets(inputs)])
    if question.quantity == "accuracy":
        count = sum(int(part.orders[right(table, part.tokens)].sum()) for part in parts)
        return Proof(count, count, number * v)
    operations.add(arithmetic=number * (2 * v + 3), exponentials=number * (v + 1))
    total = flint().arb(0)
    for part in parts:
        sums, references = direct(table, part.tokens)
        total += log_total(sums, part.orders) + exact_sum(references, part.orders)
    return Proof(*_interval(question, total, total, direct_error(table)), number * v)


@dataclass(frozen=True)
class _Work:
    """What the strategies that look at sums of exponentials share."""

    question: Question
    powers: Exponentials
    sets: Multisets

    @staticmethod
    def of(question: Question, strategy: str) -> "_Work":
        """The table's exponentials and the multisets. Raises AssayError where they are too many."""
        v, n = question.table.vocabulary, question.table.length
        if n not in (2, 3):
            raise AssayError(f"strategy {strategy!r} is for sequences of 2 or 3 tokens, not {n}; use 'symmetry'.")
        number = max(number_of_multisets(question.inputs), v * v)
        if number > _LARGEST_TABLE:
            raise AssayError(f"strategy {strategy!r} would hold {number:.3g} sums; at most 2^25.")
        return _Work(question, exponentials(question.table, question.operations), multisets(question.inputs))

    @property
    def scalars(self) -> int:
        """The unexplained dimension: every entry of the table, and every sum."""
        return self.powers.values.size + len(self.sets.tokens)

    def mean_loss(self, low: np.ndarray, high: np.ndarray) -> tuple[int, int]:
        """The mean loss from bounds on the sum of every multiset."""
        require_range(low)
        tops, orders = _tops(self.question.inputs, self.powers.top), self.sets.orders
        most = log_total(high, orders) + tops
        least = most if low is high else log_total(low, orders) + tops
        logarithms = len(orders) * (1 if low is high else 2)
        self.question.operations.add(arithmetic=2 * logarithms, exponentials=logarithms)
        return _interval(self.question, least, most, sum_error(self.question.table))

    def surely_right(self, high: np.ndarray) -> np.ndarray:
        """The multisets whose answer is right by an upper bound on the sum."""
        table = self.question.table
        self.question.operations.add(arithmetic=table.length * len(high), comparisons=len(high))
        return surely_right(table, self.powers, self.sets.tokens, high)


def _gemm(work: _Work) -> Proof:
    table, operations = work.question.table, work.question.operations
    sums = products(work.powers, work.sets, operations)
    if work.question.quantity == "loss":
        return Proof(*work.mean_loss(sums, sums), work.scalars)
    sure = work.surely_right(sums)
    left = work.sets.tokens[~sure]
    v, n = table.vocabulary, table.length
    operations.add(arithmetic=len(left) * (n - 1) * v, comparisons=len(left) * v)
    sure[~sure] = right(table, left)
    count = int(work.sets.orders[sure].sum())
    return Proof(count, count, work.scalars, {"direct": len(left)})


def _convexity(work: _Work) -> Proof:
    table, inputs, operations = work.question.table, work.question.inputs, work.question.operations
    tokens, orders = work.sets.tokens, work.sets.orders
    v, number = table.vocabulary, len(tokens)
    repeated = doubled(work.powers, table.length, operations).ravel()
    # Where the sum with one token twice, beside the largest in a triple, stands.
    base = tokens[:, -1] * v if table.length == 3 else np.zeros(number, dtype=np.int64)
    first, second = base + tokens[:, 0], base + tokens[:, 1]
    weights = np.bincount(np.concatenate([first, second]), np.concatenate([orders, orders]), len(repeated))
    used = np.flatnonzero(weights)
    require_range(repeated[used])
    dimension = v * v + len(used)
    if work.question.quantity == "loss":
        operations.add(arithmetic=2 * len(used), exponentials=len(used))
        total = log_total(repeated[used], weights[used].astype(np.int64)) / 2 + _tops(inputs, work.powers.top)
        return Proof(0, _interval(work.question, total, total, sum_error(table))[1], dimension)
    operations.add(arithmetic=number, exponentials=number)
    sure = work.surely_right(np.sqrt(repeated[first] * repeated[second]))
    return Proof(int(orders[sure].sum()), inputs.size, dimension)


def _blocks(work: _Work, *, width: int, top: int, refine: int) -> Proof:
    tokens, orders, operations = work.sets.tokens, work.sets.orders, work.question.operations
    v, number = work.question.table.vocabulary, len(tokens)
    kept = keep_largest(work.powers, top)
    operations.add(comparisons=v * v)
    bounds = in_blocks(work.powers, work.sets, kept, width, operations)
    refined = np.zeros(number, dtype=bool)
    if refine:
        undecided = orders * np.log(bounds.high / np.maximum(bounds.low, _TINY))
        refined[np.argsort(-undecided, kind="stable")[:refine]] = True
        operations.add(arithmetic=2 * number, comparisons=number, exponentials=number)
        bounds.low[refined] = bounds.high[refined] = exactly(work.powers, tokens[refined], operations)
    parameters: dict[str, int | str] = {"width": width, "top": top, "refine": refine}
    record = Blocks(width=width, kept=packed(kept), refined=packed(refined))
    if work.question.quantity == "loss":
        return Proof(*work.mean_loss(bounds.low, bounds.high), work.scalars, parameters, record)
    count = int(orders[work.surely_right(bounds.high)].sum())
    return Proof(count, work.question.inputs.size, work.scalars, parameters, record)
