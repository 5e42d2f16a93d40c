"""Estimates, intervals and tests: whole sequences are the unit, and training seeds where there are several.

Predictions of one sequence are not independent, so a sequence is the unit of resampling. With one seed and at least
`FEW` sequences, intervals are bootstrap intervals over sequences, from scipy. Otherwise they come from Student's t: a
bootstrap of a handful of units repeats the same few values, its intervals are far too narrow. The variance has two
parts, the bootstrap's over n sequences (V1) and that of the mean over S seeds (V2), each with its own quantile:
value +- sqrt(t(n - 1)^2 V1 + t(S - 1)^2 V2). So a few seeds that differ give a wide interval, and seeds that agree
cost nothing. The degrees of freedom of a test are those of Satterthwaite (1946, Biometrics Bulletin 2),
(V1 + V2)^2 / (V1^2 / (n - 1) + V2^2 / (S - 1)), and its standard error is the half width of the interval over the
quantile for them, so that test and interval agree.

A gap also gets apart what makes it: `matched_gap` compares at the same margin of the subject, `change` measures what
refitting on the shift alters.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy import stats

Method = Literal["bca", "percentile"]


FEW = 30
"""Below so many sequences, Student's t takes the place of the bootstrap's quantiles."""


@dataclass(frozen=True)
class Estimates:
    """Means over predictions with confidence limits, one an entry of the trailing axis ("column").

    `low` and `high` are NaN where there is no interval (fewer than two sequences). `how` names the method of each:
    "bca", "percentile", "t" (several seeds, or few sequences), "clopper-pearson" (all sequences alike at a rate of 0
    or 1), "mover" (a gap of such), "none". `error` is the standard error and `degrees` its degrees of freedom.
    """

    value: Float[np.ndarray, " column"]
    low: Float[np.ndarray, " column"]
    high: Float[np.ndarray, " column"]
    error: Float[np.ndarray, " column"]
    degrees: Float[np.ndarray, " column"]
    how: tuple[str, ...]

    def select(self, columns: Sequence[int]) -> "Estimates":
        """Some of the columns."""
        return Estimates(
            self.value[columns],
            self.low[columns],
            self.high[columns],
            self.error[columns],
            self.degrees[columns],
            tuple(self.how[column] for column in columns),
        )


def _counts(index: Int[np.ndarray, "*resample draw"], size: int) -> Float[np.ndarray, "*resample unit"]:
    """How often each of `size` units was drawn in each resample."""
    flat = index.reshape(-1, index.shape[-1])
    offset = np.arange(len(flat))[:, None] * size
    drawn = np.bincount((flat + offset).ravel(), minlength=len(flat) * size)
    return drawn.reshape(*index.shape[:-1], size).astype(np.float64)


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def _ratio(
    sums: Float[np.ndarray, "seed sequence column"],
    counts: Int[np.ndarray, "seed sequence column"],
) -> Callable[[np.ndarray], np.ndarray]:
    """The mean over predictions as a function of drawn sequences, seeds pooled: (column, *resample).

    A resample in which a column has no prediction gets the column's mean.
    """
    sequences, columns = sums.shape[1:]
    both = np.concatenate((sums.sum(axis=0), counts.sum(axis=0)), axis=1)
    overall = _divide(both[:, :columns].sum(axis=0), both[:, columns:].sum(axis=0))

    def statistic(drawn: np.ndarray) -> np.ndarray:
        pooled = _counts(drawn, sequences) @ both
        numerator, denominator = pooled[..., :columns], pooled[..., columns:]
        values = np.where(denominator > 0, numerator / np.maximum(denominator, 1e-300), overall)
        return np.moveaxis(values, -1, 0)

    return statistic


def _with_seeds(
    value: np.ndarray, error: np.ndarray, units: np.ndarray, by_seed: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Limits, standard error and degrees of freedom from Student's t.

    `error` is the bootstrap's over `units` sequences, `by_seed` (seed, column) the value of each seed.
    """
    seeds = len(by_seed)
    of_sequences = error**2 * units / np.maximum(units - 1, 1)
    of_seeds = by_seed.var(axis=0, ddof=1) / seeds if seeds > 1 else np.zeros_like(value)
    total = of_sequences + of_seeds
    parts = of_sequences**2 / np.maximum(units - 1, 1) + (of_seeds**2 / (seeds - 1) if seeds > 1 else 0)
    degrees = np.divide(total**2, parts, out=np.full(total.shape, np.inf), where=parts > 0)
    tail = (1 + level) / 2
    half = np.sqrt(
        stats.t.ppf(tail, np.maximum(units - 1, 1)) ** 2 * of_sequences
        + (stats.t.ppf(tail, seeds - 1) ** 2 * of_seeds if seeds > 1 else 0)
    )
    return value - half, value + half, half / stats.t.ppf(tail, degrees), degrees


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
    signed: bool = False,
) -> Estimates:
    """Mean over predictions of every column, with an interval over sequences (and seeds).

    The estimate is the ratio of sums to counts. `rates[c]` says that column c is made of zeros and ones; where all of
    its sequences agree, a resample can only repeat them, and the interval is the exact one of Clopper and Pearson
    (1934) with sequences as trials: an upper limit for the share of sequences with any exception, and so a cautious
    one for the rate. Other columns without any variation get a point as interval. With `signed`, columns may be
    negative even where none of these sequences is (differences); without it, a limit is not.
    """
    seeds, sequences, columns = sums.shape
    value = _divide(sums.sum(axis=(0, 1)), counts.sum(axis=(0, 1)))
    present = (counts.sum(axis=0) > 0).sum(axis=0)
    low, high, error = (np.full(columns, np.nan) for _ in range(3))
    degrees = np.full(columns, np.inf)
    how = ["none"] * columns
    chosen = np.flatnonzero(present >= 2)
    if len(chosen):
        low[chosen], high[chosen], error[chosen] = _bootstrap(
            [np.arange(sequences)],
            _ratio(sums[..., chosen], counts[..., chosen]),
            rng=rng,
            resamples=resamples,
            level=level,
            method=method,
        )
    by_t = np.flatnonzero((present >= 2) & ((seeds > 1) | (present < FEW)))
    if len(by_t):
        by_seed = _divide(sums[..., by_t].sum(axis=1), counts[..., by_t].sum(axis=1))
        low[by_t], high[by_t], error[by_t], degrees[by_t] = _with_seeds(
            value[by_t], error[by_t], present[by_t], by_seed, level
        )
    is_rate = np.asarray(rates)[chosen]
    never_below = is_rate | (sums[..., chosen].min(axis=(0, 1)) >= 0)
    least = np.where(never_below & ~np.bool_(signed), 0, -np.inf)
    low[chosen] = np.maximum(low[chosen], least)
    high[chosen] = np.minimum(high[chosen], np.where(is_rate, 1, np.inf))
    for column in chosen.tolist():
        how[column] = "t" if column in by_t else method
    tail = (1 - level) / 2
    for column in chosen.tolist():
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
    return Estimates(value, low, high, error, degrees, tuple(how))


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
    more faithful and -1 otherwise: gap = sign x (mean on iid - mean on shift). The sequences of the two splits are
    resampled independently; seeds are paired. Where either side has a Clopper-Pearson interval, the gap's limits are
    combined from those of the two sides (MOVER: Zou and Donner 2008, Statistics in Medicine 27).

    Also returns two-sided p-values of "no gap": gap over its standard error against Student's t (the normal
    distribution for one seed and many sequences). NaN where it cannot be told.
    """
    (sums_a, counts_a), (sums_b, counts_b) = iid, shift
    seeds, _, columns = sums_a.shape
    first, second = limits
    value = signs * (first.value - second.value)
    usable = np.isfinite(value) & np.isfinite(first.low) & np.isfinite(second.low)
    low, high, error = (np.full(columns, np.nan) for _ in range(3))
    degrees = np.full(columns, np.inf)
    how = ["none"] * columns
    chosen = np.flatnonzero(usable)
    if len(chosen):
        on_iid = _ratio(sums_a[..., chosen], counts_a[..., chosen])
        on_shift = _ratio(sums_b[..., chosen], counts_b[..., chosen])

        def difference(rows_a: np.ndarray, rows_b: np.ndarray) -> np.ndarray:
            both = on_iid(rows_a) - on_shift(rows_b)
            return both * signs[chosen].reshape(-1, *([1] * (both.ndim - 1)))

        low[chosen], high[chosen], error[chosen] = _bootstrap(
            [np.arange(sums_a.shape[1]), np.arange(sums_b.shape[1])],
            difference,
            rng=rng,
            resamples=resamples,
            level=level,
            method=method,
        )
    present = np.minimum(*((side.sum(axis=0) > 0).sum(axis=0) for side in (counts_a, counts_b)))
    by_t = np.flatnonzero(usable & ((seeds > 1) | (present < FEW)))
    if len(by_t):
        by_seed = signs[by_t] * (
            _divide(sums_a[..., by_t].sum(axis=1), counts_a[..., by_t].sum(axis=1))
            - _divide(sums_b[..., by_t].sum(axis=1), counts_b[..., by_t].sum(axis=1))
        )
        low[by_t], high[by_t], error[by_t], degrees[by_t] = _with_seeds(
            value[by_t], error[by_t], present[by_t], by_seed, level
        )
    for column in chosen.tolist():
        how[column] = "t" if column in by_t else method
        if "clopper-pearson" in (first.how[column], second.how[column]):
            a = (first.value[column], first.low[column], first.high[column])
            b = (second.value[column], second.low[column], second.high[column])
            if signs[column] < 0:
                a, b = b, a
            low[column] = value[column] - np.hypot(a[0] - a[1], b[2] - b[0])
            high[column] = value[column] + np.hypot(a[2] - a[0], b[0] - b[1])
            how[column] = "mover"
            below = value[column] - low[column]
            half = below if value[column] > 0 else high[column] - value[column]
            error[column] = half / stats.t.ppf((1 + level) / 2, degrees[column])
    with np.errstate(all="ignore"):
        p = 2 * stats.t.sf(np.abs(value) / error, degrees)
    p = np.where(np.isfinite(error) & (error > 0), p, np.where(value == 0, 1.0, np.nan))
    return Estimates(value, low, high, error, degrees, tuple(how)), p


def change(
    before: Float[np.ndarray, "seed sequence column"],
    after: Float[np.ndarray, "seed sequence column"],
    counts: Int[np.ndarray, "seed sequence column"],
    *,
    rates: Sequence[bool],
    rng: np.random.Generator,
    resamples: int = 2_000,
    level: float = 0.95,
    method: Method = "bca",
) -> Estimates:
    """The mean of `after` minus that of `before` on the same predictions (sums as for `estimate`), sequences paired.

    Where two rates differ by the same on all sequences (mostly: nowhere), the limits are that difference plus and
    minus the upper Clopper-Pearson limit for the share of sequences that are otherwise.
    """
    found = estimate(
        after - before,
        counts,
        rates=[False] * counts.shape[-1],
        rng=rng,
        resamples=resamples,
        level=level,
        method=method,
        signed=True,
    )
    low, high, how = found.low.copy(), found.high.copy(), list(found.how)
    present = (counts.sum(axis=0) > 0).sum(axis=0)
    for column in np.flatnonzero(np.asarray(rates) & (found.low == found.high)).tolist():
        wide = 1 - ((1 - level) / 2) ** (1 / int(present[column]))
        low[column], high[column] = max(-1.0, low[column] - wide), min(1.0, high[column] + wide)
        how[column] = "clopper-pearson"
    return Estimates(found.value, low, high, found.error, found.degrees, tuple(how))


NO_MARGIN = "there is no margin"
"""The reason where a metric is not about predictions of tokens, so that no gap can be compared at equal margin."""

LEAST_SEQUENCES = 5
"""A stratum can be compared if at least so many iid sequences have a prediction in it."""

LEAST_OVERLAP = 0.5
"""A gap is matched only if at least this share of the shift's predictions is in strata that can be compared."""

LEAST_EFFECTIVE = 30
"""… and if the re-weighted iid is worth at least so many predictions (Kish), of `LEAST_SEQUENCES` sequences."""


class Matched(NamedTuple):
    """A gap between equal strata, its limits, standard error and degrees of freedom.

    `effective` is the effective sample size of the re-weighted iid in predictions, `overlap` the share of the shift's
    predictions that could be compared. `outside` is the most that the others can add to the gap over all of the
    shift's predictions, (overlap x value + outside); NaN for what is no rate and so has no bound. Where `reason` is
    given, the gap was not measured and is NaN.
    """

    value: float
    low: float
    high: float
    error: float
    degrees: float
    effective: float
    overlap: float
    outside: float
    reason: str | None

    @classmethod
    def nothing(
        cls, reason: str, effective: float = np.nan, overlap: float = np.nan, outside: float = np.nan
    ) -> "Matched":
        """A gap that was not measured, and why."""
        return cls(np.nan, np.nan, np.nan, np.nan, np.nan, effective, overlap, outside, reason)


def matched_gap(
    iid: tuple[Float[np.ndarray, "seed sequence stratum"], Int[np.ndarray, "seed sequence stratum"]],
    shift: tuple[Float[np.ndarray, "seed other stratum"], Int[np.ndarray, "seed other stratum"]],
    *,
    sign: float,
    rate: bool,
    level: float = 0.95,
) -> Matched:
    """The generalization gap after re-weighting iid to the shift's distribution over strata.

    `iid` and `shift` are sums and counts of one metric by stratum (here: bins of the subject's margin within a kind).
    With a_g and b_g the means on iid and on the shift in stratum g, and p_g the share of the shift's predictions in g,

        gap = sign x sum_g p_g (a_g - b_g),

    direct standardisation (Miettinen 1972, American Journal of Epidemiology 96), also called post-stratification:
    what is left of the gap between predictions of which the subject is equally sure. Training seeds are strata too,
    for a margin is that of one model. A stratum counts if at least `LEAST_SEQUENCES` iid sequences have a prediction
    in it, and p is over the strata that count; `overlap` is their share of the shift. Nothing is extrapolated to the
    others: for a rate, `outside` is what they would add if iid were perfectly faithful there (a worst case in the
    sense of Manski 1990, American Economic Review 80). Below `LEAST_OVERLAP`, or with fewer than `LEAST_EFFECTIVE`
    effective predictions, nothing is measured.

    The effective sample size is that of Kish (1965, Survey Sampling), (sum w)^2 / sum w^2 over iid predictions with
    weights p_g / n_g, which is 1 / sum_g (p_g^2 / n_g), for one seed.

    The variance over sequences of each split is that of the linearised statistic (Binder 1983, International
    Statistical Review 51): p is estimated too. Student's t has as degrees of freedom the effective number of the
    split's sequences less one; both parts, and that of seeds, are combined as for any gap. Where a rate is 0 or 1 in
    all strata of a split, that split's half of the interval is the Clopper-Pearson limit for as many trials as there
    are effective sequences.

    Limits: what differs between the splits other than the margin is not taken off; a margin that the shift itself
    made small (the subject fails there, too) is. Within a bin margins may still differ a little, and a margin knows the
    nearest rival only: where more of them are close behind on the shift, a part of the harder inputs' gap is left in.
    """
    (sums_a, counts_a), (sums_b, counts_b) = iid, shift
    seeds = len(sums_a)
    on_iid, on_shift = counts_a.sum(axis=1), counts_b.sum(axis=1)
    usable = ((counts_a > 0).sum(axis=1) >= LEAST_SEQUENCES) & (on_shift > 0)
    total = float(on_shift.sum())
    overlap = float(on_shift[usable].sum()) / total if total else np.nan
    missed = on_shift[~usable].sum() - sums_b.sum(axis=1)[~usable].sum()
    outside = float(missed) / total if rate and total else 0.0 if overlap == 1 else np.nan

    if not total or not on_iid.sum():
        return Matched.nothing("no such prediction in one of the splits")
    if overlap < LEAST_OVERLAP or not usable.any(axis=1).all():
        return Matched.nothing(
            f"only {100 * overlap:.0f}% of the shift's predictions have a margin that at least {LEAST_SEQUENCES} iid "
            "sequences have, too",
            overlap=overlap,
            outside=outside,
        )
    share = np.where(usable, on_shift, 0) / on_shift[usable].sum()
    per_iid, per_shift = _divide(share, on_iid), 1 / on_shift[usable].sum()
    per_iid = np.where(usable, per_iid, 0)
    effective = float(1 / (share * per_iid).sum() / seeds)
    sequences_a = float(1 / (np.einsum("sng,sg->n", counts_a, per_iid) ** 2).sum())
    sequences_b = float(1 / (np.einsum("sng,sg->n", counts_b, usable * per_shift) ** 2).sum())
    if effective < LEAST_EFFECTIVE or min(sequences_a, sequences_b) < LEAST_SEQUENCES:
        return Matched.nothing(
            f"the re-weighted iid is worth only {effective:.1f} predictions of {sequences_a:.1f} sequences "
            f"({sequences_b:.1f} of the shift)",
            effective,
            overlap,
            outside,
        )
    mean_a = np.where(usable, _divide(sums_a.sum(axis=1), on_iid), 0)
    mean_b = np.where(usable, _divide(sums_b.sum(axis=1), on_shift), 0)
    by_stratum = mean_a - mean_b
    value = float((share * by_stratum).sum())
    from_a = np.einsum("sng,sg->n", sums_a - mean_a[:, None] * counts_a, per_iid)
    from_b = np.einsum("sng,sg->n", (mean_a[:, None] - value) * counts_b - sums_b, usable * per_shift)
    by_seed = (share * by_stratum).sum(axis=1) / share.sum(axis=1)
    parts = [(float((one**2).sum()) * len(one) / (len(one) - 1), units - 1)
             for one, units in ((from_a, sequences_a), (from_b, sequences_b))]  # fmt: skip
    if seeds > 1:
        parts.append((float(by_seed.var(ddof=1)) / seeds, seeds - 1))
    tail = (1 + level) / 2
    halves = [float(stats.t.ppf(tail, free)) * variance**0.5 for variance, free in parts]
    below_a, above_a = _half(mean_a[usable], halves[0], sequences_a, rate=rate, level=level)
    below_b, above_b = _half(mean_b[usable], halves[1], sequences_b, rate=rate, level=level)
    low = value - float(np.hypot.reduce([below_a, above_b, *halves[2:]]))
    high = value + float(np.hypot.reduce([above_a, below_b, *halves[2:]]))
    variance = sum(part for part, _ in parts)
    smaller = sum(part**2 / free for part, free in parts)
    degrees = variance**2 / smaller if smaller > 0 else np.inf
    if sign < 0:
        value, low, high = -value, -high, -low
    error = (value - low if value > 0 else high - value) / float(stats.t.ppf(tail, degrees))
    return Matched(value, low, high, error, degrees, effective, overlap, outside, None)


def _half(
    means: Float[np.ndarray, " stratum"], half: float, units: float, *, rate: bool, level: float
) -> tuple[float, float]:
    """How far a split's mean may lie below and above: `half`, and more where a rate is 0 or 1 in all strata."""
    exact = 1 - ((1 - level) / 2) ** (1 / units)
    below = exact if rate and means.min() >= 1 - 1e-12 else 0.0
    above = exact if rate and means.max() <= 1e-12 else 0.0
    return float(np.hypot(half, below)), float(np.hypot(half, above))


def p_above(gaps: ArrayLike, errors: ArrayLike, degrees: ArrayLike, bound: float) -> Float[np.ndarray, " gap"]:
    """One-sided p-values of "the gap is at most `bound`" from Student's t; NaN where a gap has no standard error."""
    gap_, error, free = (np.asarray(values, dtype=float) for values in (gaps, errors, degrees))
    with np.errstate(all="ignore"):
        p = stats.t.sf((gap_ - bound) / error, free)
    return np.where(error > 0, p, np.where(np.isfinite(gap_), np.where(gap_ > bound, np.nan, 1.0), np.nan))


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
