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
from assay.proofs.linear._sums import Bounds, direct, doubled, exactly, in_blocks, keep_largest, products
from assay.proofs.linear._table import Table, exponentials
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


@dataclass
class Proof:
    """What a strategy shows: at least and at most so many right answers, or so many units of 2^-50 nats of mean loss."""

    at_least: int
    at_most: int
    unexplained_dimension: int
    parameters: dict[str, int | str] = field(default_factory=dict)
    blocks: Blocks | None = None


def packed(bits: np.ndarray) -> str:
    """A sequence of bits as text."""
    return base64.b64encode(zlib.compress(np.packbits(bits).tobytes(), 9)).decode()


def _sequences(inputs: InputSet) -> Iterator[np.ndarray]:
    """All sequences of a set, by their first token."""
    rest = np.indices((inputs.vocabulary,) * (inputs.length - 1)).reshape(inputs.length - 1, -1).T
    for first in range(inputs.vocabulary):
        tokens = np.column_stack([np.full(len(rest), first), rest])
        yield tokens[inputs.contains(tokens)]


def _one_by_one(table: Table, inputs: InputSet, strategy: str, operations: Operations) -> Iterator[Multisets]:
    """The inputs of brute force, or of symmetry, with their numbers of orders."""
    v, n = inputs.vocabulary, inputs.length
    number = inputs.size if strategy == "brute-force" else number_of_multisets(inputs)
    if number * v > _LARGEST_ENUMERATION:
        raise AssayError(f"strategy {strategy!r} would evaluate {number:.3g} × {v} logits; at most 2^34. Use 'gemm'.")
    operations.add(arithmetic=number * (n - 1) * v, comparisons=number * v)
    if strategy == "symmetry":
        yield multisets(inputs)
    else:
        yield from (Multisets(tokens, np.ones(len(tokens), dtype=np.int64)) for tokens in _sequences(inputs))


def _interval(table: Table, inputs: InputSet, low: Any, high: Any, error: float) -> tuple[int, int]:
    """The mean loss from sums of logarithms over all inputs; each may be off by `error`, beyond the table's radius."""
    library = flint()
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


def prove(
    table: Table, inputs: InputSet, quantity: str, strategy: str, blocks: dict[str, int], operations: Operations
) -> Proof:
    """Make the proof. Raises AssayError where a strategy does not apply."""
    with flint().ctx.workprec(BITS):
        if quantity == "loss":
            operations.add(arithmetic=8 * table.embedding.shape[0] * table.embedding.shape[1])
        if strategy in ("brute-force", "symmetry"):
            return _enumerate(table, inputs, quantity, strategy, operations)
        return _from_products(table, inputs, quantity, strategy, blocks, operations)


def _enumerate(table: Table, inputs: InputSet, quantity: str, strategy: str, operations: Operations) -> Proof:
    number = inputs.size if strategy == "brute-force" else number_of_multisets(inputs)
    dimension = number * inputs.vocabulary
    parts = _one_by_one(table, inputs, strategy, operations)
    if quantity == "accuracy":
        count = sum(int(part.orders[right(table, part.tokens)].sum()) for part in parts)
        return Proof(count, count, dimension)
    operations.add(arithmetic=number * (2 * inputs.vocabulary + 3), exponentials=number * (inputs.vocabulary + 1))
    total = flint().arb(0)
    for part in parts:
        sums, references = direct(table, part.tokens)
        total += log_total(sums, part.orders) + exact_sum(references, part.orders)
    return Proof(*_interval(table, inputs, total, total, direct_error(table)), dimension)


def _from_products(
    table: Table, inputs: InputSet, quantity: str, strategy: str, blocks: dict[str, int], operations: Operations
) -> Proof:
    v, n = table.vocabulary, table.length
    if n not in (2, 3):
        raise AssayError(f"strategy {strategy!r} is for sequences of 2 or 3 tokens, not {n}; use 'symmetry'.")
    number = number_of_multisets(inputs)
    if max(number, v * v) > _LARGEST_TABLE:
        raise AssayError(f"strategy {strategy!r} would hold {max(number, v * v):.3g} sums; at most 2^25.")
    powers, sets = exponentials(table, operations), multisets(inputs)
    dimension = v * v + number
    parameters: dict[str, int | str] = {}
    record: Blocks | None = None
    if strategy == "convexity":
        repeated = doubled(powers, n, operations)
        first, second = sets.tokens[:, 0], sets.tokens[:, 1]
        if n == 3:
            first, second = sets.tokens[:, -1] * v + first, sets.tokens[:, -1] * v + second
        used = np.bincount(np.concatenate([first, second]), np.concatenate([sets.orders] * 2), repeated.size)
        dimension = v * v + int((used > 0).sum())
        require_range(repeated.ravel()[used > 0])
        bounds = Bounds(np.zeros(0), np.sqrt(repeated.ravel()[first] * repeated.ravel()[second]))
        if quantity == "loss":
            operations.add(arithmetic=2 * int((used > 0).sum()), exponentials=int((used > 0).sum()))
            total = log_total(repeated.ravel()[used > 0], used[used > 0].astype(np.int64)) / 2
            total += _tops(inputs, powers.top)
            return Proof(0, _interval(table, inputs, total, total, sum_error(table))[1], dimension)
        operations.add(arithmetic=number, exponentials=number)
    elif strategy == "gemm":
        sums = products(powers, sets, operations)
        bounds = Bounds(sums, sums)
    else:
        kept = keep_largest(powers, blocks["top"])
        operations.add(comparisons=v * v)
        bounds = in_blocks(powers, sets, kept, blocks["width"], operations)
        chosen = np.zeros(number, dtype=bool)
        if blocks["refine"]:
            loss = sets.orders * np.log(bounds.high / np.maximum(bounds.low, _TINY))
            chosen[np.argsort(-loss, kind="stable")[: blocks["refine"]]] = True
            operations.add(arithmetic=2 * number, comparisons=number, exponentials=number)
            refined = exactly(powers, sets.tokens[chosen], operations)
            bounds.low[chosen] = bounds.high[chosen] = refined
        parameters = {**blocks}
        record = Blocks(width=blocks["width"], kept=packed(kept), refined=packed(chosen))
    if quantity == "loss":
        require_range(bounds.low)
        tops = _tops(inputs, powers.top)
        high = log_total(bounds.high, sets.orders) + tops
        low = high if strategy == "gemm" else log_total(bounds.low, sets.orders) + tops
        logarithms = number * (1 if strategy == "gemm" else 2)
        operations.add(arithmetic=2 * logarithms, exponentials=logarithms)
        return Proof(*_interval(table, inputs, low, high, sum_error(table)), dimension, parameters, record)
    sure = surely_right(table, powers, sets.tokens, bounds.high)
    operations.add(arithmetic=n * number, comparisons=number)
    if strategy != "gemm":
        return Proof(int(sets.orders[sure].sum()), inputs.size, dimension, parameters, record)
    left = sets.tokens[~sure]
    operations.add(arithmetic=len(left) * (n - 1) * v, comparisons=len(left) * v)
    sure[~sure] = right(table, left)
    count = int(sets.orders[sure].sum())
    return Proof(count, count, dimension, {"direct": len(left)})
