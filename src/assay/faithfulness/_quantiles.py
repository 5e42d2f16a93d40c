"""Quantiles of a number that every prediction has (a divergence, say), with whole sequences as the unit.

A quantile is that of all predictions together, by linear interpolation between the two nearest in order (numpy's
"linear", type 7 of Hyndman and Fan 1996, The American Statistician 50). Its interval is that of the percentile
bootstrap over sequences: whole sequences are drawn with replacement, and the limits are quantiles of the quantiles of
the draws. Copies of a sequence are one unit, drawn together (see `Weights`). With 300 sequences of lognormal values
that differ between sequences as much as within them, 95% intervals cover the median 94, the 90% quantile 95 and the 99%
quantile 92 times of 100; where they differ twice as much between sequences, that of 99% is covered 86 times, and 78
with 100 sequences. Predictions as if they were independent would give intervals that cover half of the time.

A draw is never written out. Values are sorted once, and cut into blocks of neighbours; the sums of a unit's values in
every block, times how often units were drawn, say for all draws at once in which block a place in the order falls, and
only in that one block values are counted one by one.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from assay._errors import AssayError
from assay.faithfulness._statistics import Weights

SHARES = (0.5, 0.9, 0.99)
"""The shares of predictions below the quantiles: median, 90% and 99%."""

LEAST_SEQUENCES = 100
"""With fewer sequences the intervals of high quantiles cover too seldom. That of 99.9% does so with 300, too, and is
not among the shares."""

_COST = 100
"""How many times as long it takes to count a value as to multiply by a sum."""

_COUNTED = 2**21
"""Values that are counted one by one at a time."""


@dataclass(frozen=True)
class Quantiles:
    """Quantiles by share of predictions below, with confidence limits, and the largest value.

    `low` and `high` are NaN where there is no interval, for the `reason` that is given then. `at` is the index of the
    largest value (the first of them). `sequences` is how many different ones have values.
    """

    shares: tuple[float, ...]
    value: Float[np.ndarray, " share"]
    low: Float[np.ndarray, " share"]
    high: Float[np.ndarray, " share"]
    largest: float
    at: int
    sequences: int
    reason: str | None


def quantiles(
    values: Float[np.ndarray, " prediction"],
    sequences: Int[np.ndarray, " prediction"],
    weights: Weights,
    *,
    level: float = 0.95,
) -> Quantiles:
    """Median, 90% and 99% of the values of predictions, with intervals over sequences, and their maximum.

    `sequences` has the number of each prediction's sequence, and `weights` those of the split's sequences, which say
    which of them are copies: there is no interval with fewer than 100 different ones. Raises AssayError where there are
    no values, for a value that is not finite, and for a sequence that the weights do not know.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise AssayError("quantiles(): there are no values; a split needs scored predictions.")
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise AssayError(f"quantiles(): value {wrong[0]:,} is {values[wrong[0]]}; they have to be finite.")
    known = len(weights.units)
    if sequences.min() < 0 or sequences.max() >= known:
        number = sequences.min() if sequences.min() < 0 else sequences.max()
        raise AssayError(f"quantiles(): there is a sequence {number} but weights of 0 to {known - 1} only.")
    order = np.argsort(values, kind="stable")
    ordered, units = values[order], weights.units[sequences[order]]
    at = int(np.argmax(values))
    different = int((np.bincount(units, minlength=weights.size) > 0).sum())
    shares = np.array(SHARES)
    value = _at(ordered, shares * (len(ordered) - 1))
    low = high = np.full(len(shares), math.nan)
    reason = None
    if different < LEAST_SEQUENCES:
        reason = f"{different} different sequences; below {LEAST_SEQUENCES} an interval of a quantile covers too seldom"
    else:
        drawn = np.sort(_drawn(ordered, units, weights, shares), axis=1)
        # The nearest ones outwards, as for means.
        outside = max(int((1 - level) / 2 * (drawn.shape[1] + 1)) - 1, 0)
        low, high = np.minimum(drawn[:, outside], value), np.maximum(drawn[:, -1 - outside], value)
    return Quantiles(SHARES, value, low, high, float(values[at]), at, different, reason)


def _at(ordered: Float[np.ndarray, " prediction"], places: Float[np.ndarray, " share"]) -> Float[np.ndarray, " share"]:
    """The values at places in their order, interpolated."""
    below = np.floor(places).astype(np.int64)
    above = np.minimum(below + 1, len(ordered) - 1)
    found: np.ndarray = ordered[below] + (places - below) * (ordered[above] - ordered[below])
    return found


def _drawn(
    ordered: Float[np.ndarray, " prediction"],
    units: Int[np.ndarray, " prediction"],
    weights: Weights,
    shares: Float[np.ndarray, " share"],
) -> Float[np.ndarray, "share draw"]:
    """The quantiles of every draw of units, those of draws that have values."""
    count, size = len(ordered), weights.size
    blocks = min(count, math.ceil(math.sqrt(_COST * count / size)))
    width = math.ceil(count / blocks)
    # The last block is filled up with values of a unit that is never drawn.
    filled = np.full(blocks * width, size)
    filled[:count] = units
    in_blocks = filled.reshape(blocks, width)
    cells = np.bincount(
        (np.arange(blocks)[:, None] * (size + 1) + in_blocks).reshape(-1), minlength=blocks * (size + 1)
    ).reshape(blocks, size + 1)
    times = np.pad(weights.resampled, ((0, 0), (0, 1)))
    ends = np.cumsum(times @ cells.T, axis=1)
    times, ends = times[ends[:, -1] > 0], ends[ends[:, -1] > 0]
    starts = np.pad(ends[:, :-1], ((0, 0), (1, 0)))
    some = max(1, _COUNTED // width)

    def value_at(rank: Float[np.ndarray, " draw"]) -> Float[np.ndarray, " draw"]:
        """The value before which, in its draw, there are `rank` others in order."""
        block = (ends <= rank[:, None]).sum(axis=1)
        left = rank - np.take_along_axis(starts, block[:, None], axis=1)[:, 0]
        within = np.empty_like(block)
        for start in range(0, len(rank), some):
            part = slice(start, start + some)
            counted = np.cumsum(np.take_along_axis(times[part], in_blocks[block[part]], axis=1), axis=1)
            within[part] = (counted <= left[part, None]).sum(axis=1)
        return ordered[block * width + within]

    found = np.empty((len(shares), len(ends)))
    for row, share in zip(found, shares, strict=True):
        place = share * (ends[:, -1] - 1)
        below = np.floor(place)
        first, second = value_at(below), value_at(np.minimum(below + 1, ends[:, -1] - 1))
        row[:] = first + (place - below) * (second - first)
    return found
