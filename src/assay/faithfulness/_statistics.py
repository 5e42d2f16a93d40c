"""Estimates, intervals and tests: everything resamples whole sequences, and training seeds where there are several.

Predictions of one sequence are not independent, so a sequence is the unit of resampling. With several seeds, seeds
and sequences are crossed (every seed is judged on the same sequences) and both are resampled, each on its own: the
pigeonhole bootstrap of Owen (2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1(2)), which is
conservative for the crossed part. With a handful of seeds, percentile and BCa intervals are known to be too narrow
over the seeds; they are still far wider than intervals that ignore them.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

Method = Literal["bca", "percentile"]


@dataclass(frozen=True)
class Estimates:
    """Means over predictions with confidence limits, one an entry of the trailing axis ("column").

    `low` and `high` are NaN where there is no interval (fewer than two sequences). `how` names the method of each:
    "bca", "percentile", "clopper-pearson" (all sequences alike at a rate of 0 or 1) or "mover" (a gap of such), "none".
    """

    value: Float[np.ndarray, " column"]
    low: Float[np.ndarray, " column"]
    high: Float[np.ndarray, " column"]
    error: Float[np.ndarray, " column"]
    how: tuple[str, ...]


def _counts(index: Int[np.ndarray, "*resample draw"], size: int) -> Float[np.ndarray, "*resample unit"]:
    """How often each of `size` units was drawn in each resample."""
    flat = index.reshape(-1, index.shape[-1])
    offset = np.arange(len(flat))[:, None] * size
    drawn = np.bincount((flat + offset).ravel(), minlength=len(flat) * size)
    return drawn.reshape(*index.shape[:-1], size).astype(np.float64)


def _ratio(
    sums: Float[np.ndarray, "seed sequence column"],
    counts: Int[np.ndarray, "seed sequence column"],
) -> Callable[..., np.ndarray]:
    """The mean over predictions as a function of drawn sequences and, if any, drawn seeds: (column, *resample).

    A resample in which a column has no prediction gets the column's mean.
    """
    seeds, sequences, columns = sums.shape
    by_sequence = np.concatenate((sums, counts), axis=2).transpose(1, 0, 2).reshape(sequences, -1)
    total = counts.sum(axis=(0, 1))
    overall = np.divide(sums.sum(axis=(0, 1)), total, out=np.full(columns, np.nan), where=total > 0)

    def statistic(drawn_sequences: np.ndarray, drawn_seeds: np.ndarray | None = None) -> np.ndarray:
        weights = _counts(drawn_sequences, sequences)
        both = (weights @ by_sequence).reshape(*weights.shape[:-1], seeds, 2 * columns)
        if drawn_seeds is None:
            pooled = both.sum(axis=-2)
        else:
            pooled = (both * _counts(drawn_seeds, seeds)[..., None]).sum(axis=-2)
        numerator, denominator = pooled[..., :columns], pooled[..., columns:]
        values = np.where(denominator > 0, numerator / np.maximum(denominator, 1e-300), overall)
        return np.moveaxis(values, -1, 0)

    return statistic


def _units(*sizes: int, seeds: int) -> list[np.ndarray]:
    """What is resampled: each split's sequences, and the seeds where there are several."""
    return [np.arange(size) for size in (*sizes, *([seeds] if seeds > 1 else []))]


def _bootstrap(
    samples: Sequence[np.ndarray],
    statistic: Callable[..., np.ndarray],
    *,
    rng: np.random.Generator,
    resamples: int,
    level: float,
    method: Method,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower limits, upper limits and standard errors through scipy, percentile where BCa is degenerate."""

    def along_last(*drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        return statistic(*drawn)

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        result = stats.bootstrap(
            tuple(samples),
            along_last,
            n_resamples=resamples,
            confidence_level=level,
            method="BCa" if method == "bca" else "percentile",
            vectorized=True,
            axis=-1,
            rng=rng,
        )
        low, high = np.asarray(result.confidence_interval.low), np.asarray(result.confidence_interval.high)
        tails = (1 - level) / 2
        plain = np.quantile(result.bootstrap_distribution, (tails, 1 - tails), axis=-1)
    degenerate = ~(np.isfinite(low) & np.isfinite(high))
    return (
        np.where(degenerate, plain[0], low),
        np.where(degenerate, plain[1], high),
        np.asarray(result.standard_error),
    )


def estimate(
    sums: Float[np.ndarray, "seed sequence column"],
    counts: Int[np.ndarray, "seed sequence column"],
    *,
    rates: Sequence[bool],
    rng: np.random.Generator,
    resamples: int = 2_000,
    level: float = 0.95,
    method: Method = "bca",
) -> Estimates:
    """Mean over predictions of every column, with an interval over sequences (and seeds).

    The estimate is the ratio of sums to counts. `rates[c]` says that column c is made of zeros and ones; where all of
    its sequences agree, a resample can only repeat them, and the interval is the exact one of Clopper and Pearson
    (1934) with sequences as trials: an upper limit for the share of sequences with any exception, and so a cautious
    one for the rate. Other columns without any variation get a point as interval.
    """
    seeds, sequences, columns = sums.shape
    total = counts.sum(axis=(0, 1))
    value = np.divide(sums.sum(axis=(0, 1)), total, out=np.full(columns, np.nan), where=total > 0)
    present = (counts.sum(axis=0) > 0).sum(axis=0)
    enough = present >= 2
    low, high, error = (np.full(columns, np.nan) for _ in range(3))
    how = ["none"] * columns
    if enough.any():
        chosen = np.flatnonzero(enough)
        found = _bootstrap(
            _units(sequences, seeds=seeds),
            _ratio(sums[:, :, chosen], counts[:, :, chosen]),
            rng=rng,
            resamples=resamples,
            level=level,
            method=method,
        )
        low[chosen], high[chosen], error[chosen] = found
        for column in chosen.tolist():
            how[column] = method
    tail = (1 - level) / 2
    for column in np.flatnonzero(enough).tolist():
        here = counts[:, :, column] > 0
        means = sums[:, :, column][here] / counts[:, :, column][here]
        if means.max() - means.min() > 1e-12:
            continue
        trials = int(present[column])
        if rates[column] and means[0] <= 1e-12:
            how[column], low[column], high[column] = "clopper-pearson", 0.0, 1 - tail ** (1 / trials)
        elif rates[column] and means[0] >= 1 - 1e-12:
            how[column], low[column], high[column] = "clopper-pearson", tail ** (1 / trials), 1.0
        else:
            low[column] = high[column] = value[column]
    return Estimates(value, low, high, error, tuple(how))


def gap(
    iid: tuple[np.ndarray, np.ndarray],
    shift: tuple[np.ndarray, np.ndarray],
    limits: tuple[Estimates, Estimates],
    *,
    signs: Float[np.ndarray, " column"],
    rng: np.random.Generator,
    resamples: int = 2_000,
    level: float = 0.95,
    method: Method = "bca",
) -> tuple[Estimates, Float[np.ndarray, " column"]]:
    """The generalization gap of every column, signed so that positive means less faithful under the shift.

    `iid` and `shift` are (sums, counts) as for `estimate`, `limits` their estimates; `signs` is +1 where higher is
    more faithful and -1 otherwise: gap = sign x (mean on iid - mean on shift). The two splits are resampled
    independently, seeds jointly. Where either side has a Clopper-Pearson interval, the gap's limits are combined from
    those of the two sides (MOVER: Zou and Donner 2008, Statistics in Medicine 27).

    Also returns two-sided p-values of "no gap": gap over its standard error against the normal distribution, or
    Student's t with (seeds - 1) degrees of freedom where there are several seeds. NaN where it cannot be told.
    """
    (sums_a, counts_a), (sums_b, counts_b) = iid, shift
    seeds, _, columns = sums_a.shape
    first, second = limits
    value = signs * (first.value - second.value)
    usable = np.isfinite(value) & np.isfinite(first.low) & np.isfinite(second.low)
    low, high, error = (np.full(columns, np.nan) for _ in range(3))
    how = ["none"] * columns
    if usable.any():
        chosen = np.flatnonzero(usable)
        on_iid = _ratio(sums_a[:, :, chosen], counts_a[:, :, chosen])
        on_shift = _ratio(sums_b[:, :, chosen], counts_b[:, :, chosen])

        def difference(rows_a: np.ndarray, rows_b: np.ndarray, *drawn_seeds: np.ndarray) -> np.ndarray:
            both = on_iid(rows_a, *drawn_seeds) - on_shift(rows_b, *drawn_seeds)
            return both * signs[chosen].reshape(-1, *([1] * (both.ndim - 1)))

        low[chosen], high[chosen], error[chosen] = _bootstrap(
            _units(sums_a.shape[1], sums_b.shape[1], seeds=seeds),
            difference,
            rng=rng,
            resamples=resamples,
            level=level,
            method=method,
        )
        for column in chosen.tolist():
            how[column] = method
    for column in np.flatnonzero(usable).tolist():
        if "clopper-pearson" in (first.how[column], second.how[column]):
            a = (first.value[column], first.low[column], first.high[column])
            b = (second.value[column], second.low[column], second.high[column])
            if signs[column] < 0:
                a, b = b, a
            low[column] = value[column] - np.hypot(a[0] - a[1], b[2] - b[0])
            high[column] = value[column] + np.hypot(a[2] - a[0], b[0] - b[1])
            how[column] = "mover"
            half = stats.norm.ppf((1 + level) / 2)
            below = value[column] - low[column]
            error[column] = (below if value[column] > 0 else high[column] - value[column]) / half
    with np.errstate(all="ignore"):
        z = np.abs(value) / error
        p = 2 * (stats.norm.sf(z) if seeds == 1 else stats.t.sf(z, seeds - 1))
    p = np.where(np.isfinite(error) & (error > 0), p, np.where(value == 0, 1.0, np.nan))
    return Estimates(value, low, high, error, tuple(how)), p


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, valid under any dependence; NaN stays NaN and is no member of the family."""
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    members = np.flatnonzero(np.isfinite(p))
    order = members[np.argsort(p[members], kind="stable")]
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p[index]))
        adjusted[index] = running
    return adjusted.tolist()
