"""Estimates, intervals and tests: whole sequences are the unit, and training seeds where there are several.

Predictions of one sequence are not independent, so sequences are given random weights, never predictions. An interval
is made of draws of a mean under many sets of weights, and everything else is made of such draws: a gap is the
difference of the draws of two splits, a mean over training seeds the mean of theirs.

**Rates** (and their differences) are bounded, and their draws use that. Sequences get exponential weights, which are
Dirichlet(1, ..., 1) weights up to a factor that no ratio sees, and so does *one more sequence, which was wholly wrong*
(for the lower limit) or wholly right (for the upper):

    low draw = sum w_i s_i / (sum w_i m_i + w_0 L),    high draw = (sum w_i s_i + w_0 L) / (sum w_i m_i + w_0 L)

with s_i the sum and m_i the number of sequence i's predictions. With one prediction a sequence the limits are those of
Clopper and Pearson (1934, Biometrika 26); for bounded means they are the bound of Gaffke (2005) and of Learned-Miller
and Thomas (2019, arXiv 1905.06208). Both are about independent values of equal weight. Here sequences differ in length
and the mean is a ratio, for which no such theorem is known: that the limits cover is measured
(docs/results/intervals.md). L is the root mean square of the lengths. Their mean covers too seldom where lengths and
errors are both heavily clustered, and their size-biased mean covers more than asked and costs width. No draw can rise
because of an error: an error more never raises a limit of agreement, at any n.

**Other numbers** (divergences, differences of logits) have no bound that says anything. Their draws are those of the
studentised bootstrap (Efron 1982; Hall 1988, Annals of Statistics 16): T - t* x error, with t* = (T* - T) / error* of
resampled sequences, and the linearised standard error of a ratio. Their coverage for heavy tails is in the same table.

**Ratios of means** (the share of an effect) and their differences get the percentiles of resampled sequences, corrected
for bias and acceleration (BCa: Efron 1987, Journal of the American Statistical Association 82); see `smooth`.

**Training seeds.** With S of them a draw is the mean over seeds plus t x s / sqrt(S), with t from Student's t on S - 1
degrees of freedom and s the standard deviation of that draw over seeds: seeds that differ give a wide interval. Here an
error more can narrow an interval, if it is in the better of two seeds that differed. No method that covers can avoid
that: from seeds at 100% and 96% two degrees of freedom say that their mean is anything, and then nothing could be said
of seeds at 96% and 96%, either.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from numpy.typing import ArrayLike
from scipy import stats

FEW = 30
"""Below so many sequences more of them are asked for, before any extrapolation."""

DEEP = 10
"""The standard error that p-values are computed with is read off where so many draws are beyond: farther out in the
tail than a limit, since tests of whole families ask for small p-values, and not so far that single draws decide."""

RATE, CHANGE_OF_RATE, UNBOUNDED = (0.0, 1.0), (-1.0, 1.0), (-np.inf, np.inf)
"""The least and the most that a number can be at one prediction."""

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Estimates:
    """Means over predictions with confidence limits, one an entry of the trailing axis ("column").

    `low` and `high` are NaN where there is no interval (fewer than two sequences). `how` names the method of each:
    "one more" (rates and their differences), "studentized" (other numbers), "none". `error` is a standard error and
    `degrees` its degrees of freedom, for tests of "at most so much" (see `p_above`): the distance of the value from a
    quantile of its draws, over Student's quantile; on the side of zero.
    """

    value: Float[np.ndarray, " column"]
    low: Float[np.ndarray, " column"]
    high: Float[np.ndarray, " column"]
    error: Float[np.ndarray, " column"]
    degrees: Float[np.ndarray, " column"]
    how: tuple[str, ...]


@dataclass(frozen=True)
class Weights:
    """Random weights of the sequences of a split, the same for whatever is measured there.

    So two proxies on the same split are compared under the same weights: differences are paired. `units[i]` is the
    number of sequence i among the different ones: copies of a sequence are one unit, since they are no new evidence.
    """

    units: Int[np.ndarray, " sequence"]
    resamples: int
    seed: int

    @property
    def size(self) -> int:
        """How many different sequences there are."""
        return int(self.units.max()) + 1

    @cached_property
    def exponential(self) -> Float[np.ndarray, "draw unit"]:
        """Weights of sequences for bounded numbers."""
        return np.random.default_rng([self.seed, 0]).exponential(size=(self.resamples, self.size))

    @cached_property
    def one_more(self) -> Float[np.ndarray, " draw"]:
        """The weight of one more sequence."""
        return np.random.default_rng([self.seed, 1]).exponential(size=self.resamples)

    @cached_property
    def resampled(self) -> Float[np.ndarray, "draw unit"]:
        """How often each sequence was drawn in each bootstrap sample."""
        rng = np.random.default_rng([self.seed, 2])
        return rng.multinomial(self.size, np.full(self.size, 1 / self.size), size=self.resamples).astype(float)

    def student(self, seeds: int) -> Float[np.ndarray, " draw"]:
        """Draws of Student's t for a mean over seeds: its quantiles, in random order."""
        quantiles = stats.t.ppf((np.arange(self.resamples) + 0.5) / self.resamples, seeds - 1)
        return np.random.default_rng([self.seed, 3]).permutation(quantiles)

    def pooled(self, values: Num[np.ndarray, "seed sequence *rest"]) -> Float[np.ndarray, "seed unit *rest"]:
        """The sums over copies."""
        if self.size == len(self.units):
            return np.ascontiguousarray(values[:, np.argsort(self.units)], dtype=float)
        found = np.zeros((self.size, values.shape[0], *values.shape[2:]))
        np.add.at(found, self.units, values.swapaxes(0, 1))
        return found.swapaxes(0, 1)


def every(sequences: int, *, resamples: int = 2_000, seed: int = 0) -> Weights:
    """Weights of sequences that all differ."""
    return Weights(np.arange(sequences), resamples, seed)


@dataclass(frozen=True)
class Draws:
    """Draws of a mean by seed, under the bound that is against a high value (`low`) and against a low one (`high`).

    `value` is the mean over predictions, `by_seed` that of each seed. `usable` says which columns have an interval;
    `bounds` has the least and most of a mean.
    """

    value: Float[np.ndarray, " column"]
    by_seed: Float[np.ndarray, "seed column"]
    low: Float[np.ndarray, "seed column draw"]
    high: Float[np.ndarray, "seed column draw"]
    usable: Bool[np.ndarray, " column"]
    bounds: tuple[Bounds, ...]
    student: Float[np.ndarray, " draw"] | None

    @property
    def bounded(self) -> Bool[np.ndarray, " column"]:
        """Which columns have bounds."""
        return np.isfinite([bound[0] for bound in self.bounds])

    def __neg__(self) -> "Draws":
        bounds = tuple((-most, -least) for least, most in self.bounds)
        return replace(self, value=-self.value, by_seed=-self.by_seed, low=-self.high, high=-self.low, bounds=bounds)

    def select(self, columns: Sequence[int]) -> "Draws":
        """Some of the columns."""
        chosen = list(columns)
        return replace(
            self,
            value=self.value[chosen],
            by_seed=self.by_seed[:, chosen],
            low=self.low[:, chosen],
            high=self.high[:, chosen],
            usable=self.usable[chosen],
            bounds=tuple(self.bounds[column] for column in chosen),
        )


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def _weighted(
    weights: Float[np.ndarray, "draw unit"], parts: Sequence[Num[np.ndarray, "seed unit _"]]
) -> list[Float[np.ndarray, "seed _ draw"]]:
    """Weighted sums over units of several arrays, by one product of matrices.

    Equal columns (predictions are counted alike for all metrics and seeds, and without errors they are the sums, too)
    are multiplied once.
    """
    number: dict[bytes, int] = {}
    different: list[np.ndarray] = []
    places = []
    for part in parts:
        columns = np.ascontiguousarray(part.transpose(0, 2, 1), dtype=float).reshape(-1, part.shape[1])
        place = np.empty(len(columns), dtype=np.int64)
        for index, column in enumerate(columns):
            place[index] = number.setdefault(column.tobytes(), len(number))
            if place[index] == len(different):
                different.append(column)
        places.append(place.reshape(part.shape[0], part.shape[2]))
    product = np.stack(different) @ weights.T if different else np.zeros((0, len(weights)))
    return [product[place] for place in places]


def _length(counts: Float[np.ndarray, "seed unit ..."]) -> Float[np.ndarray, "seed ..."]:
    """The root mean square of the lengths of the units that have predictions."""
    found: np.ndarray = np.sqrt(_divide((counts**2).sum(axis=1), (counts > 0).sum(axis=1)))
    return found


def draws(
    sums: Float[np.ndarray, "seed sequence column"],
    counts: Num[np.ndarray, "seed sequence column"],
    weights: Weights,
    *,
    bounds: Sequence[Bounds],
) -> Draws:
    """Draws of the mean over predictions of every column (see the module).

    `bounds` is what a column can be at one prediction: `RATE`, `CHANGE_OF_RATE` or `UNBOUNDED`.
    """
    sums, counts = weights.pooled(sums), weights.pooled(counts)
    seeds, _, columns = sums.shape
    by_seed = _divide(sums.sum(axis=1), counts.sum(axis=1))
    usable = ((counts > 0).sum(axis=1) >= 2).all(axis=0)
    low = np.full((seeds, columns, weights.resamples), np.nan)
    high = low.copy()
    limited = np.isfinite([bound[0] for bound in bounds])
    chosen = np.flatnonzero(usable & limited)
    if len(chosen):
        least, most = np.array([bounds[column] for column in chosen.tolist()]).T[..., None]
        above, below = _weighted(weights.exponential, (sums[..., chosen], counts[..., chosen]))
        more = weights.one_more * _length(counts[..., chosen])[..., None]
        low[:, chosen] = (above + more * least) / (below + more)
        high[:, chosen] = (above + more * most) / (below + more)
    chosen = np.flatnonzero(usable & ~limited)
    if len(chosen):
        found = _studentized(sums[..., chosen], counts[..., chosen], weights.resampled)
        low[:, chosen] = high[:, chosen] = found
    student = weights.student(seeds) if seeds > 1 else None
    return Draws(by_seed.mean(axis=0), by_seed, low, high, usable, tuple(bounds), student)


def _studentized(
    sums: Float[np.ndarray, "seed unit column"],
    counts: Float[np.ndarray, "seed unit column"],
    resampled: Float[np.ndarray, "draw unit"],
) -> Float[np.ndarray, "seed column draw"]:
    """Draws of the studentised bootstrap."""
    units = (counts > 0).sum(axis=1)
    correction = (units / (units - 1))[..., None]
    below = counts.sum(axis=1)
    value = sums.sum(axis=1) / below
    # Centred first: the squares are then of residuals, and no large numbers cancel.
    residuals = sums - value[:, None] * counts
    error = np.sqrt((residuals**2).sum(axis=1)[..., None] * correction) / below[..., None]
    parts = (counts, residuals, residuals**2, residuals * counts, counts**2)
    drawn_counts, drawn, squared, crossed, squared_counts = _weighted(resampled, parts)
    ratio = _divide(drawn, drawn_counts)
    squares = squared - 2 * ratio * crossed + ratio**2 * squared_counts
    errors = _divide(np.sqrt(np.maximum(squares, 0) * correction), drawn_counts)
    # A resample of equal sequences has no error of its own; it counts as one without surprise.
    return value[..., None] - error * np.nan_to_num(_divide(ratio, errors))


def _over_seeds(
    drawn: Float[np.ndarray, "seed *column draw"], student: Float[np.ndarray, " draw"] | None
) -> Float[np.ndarray, "*column draw"]:
    """Draws of the mean over seeds."""
    if student is None:
        return drawn[0]
    found: np.ndarray = drawn.mean(axis=0) + student * drawn.std(axis=0, ddof=1) / np.sqrt(len(drawn))
    return found


def _limits(
    value: Float[np.ndarray, " column"],
    low: Float[np.ndarray, "column draw"],
    high: Float[np.ndarray, "column draw"],
    *,
    usable: Bool[np.ndarray, " column"],
    bounded: Bool[np.ndarray, " column"],
    level: float,
    seeds: int,
) -> Estimates:
    """Quantiles of draws, the nearest ones outwards, with standard errors for tests."""
    number = low.shape[-1]
    outside = max(int((1 - level) / 2 * (number + 1)) - 1, 0)
    deep = min(DEEP, max(number // 4, 1)) - 1
    below = np.partition(low, (deep, outside))
    above = np.partition(high, (number - 1 - deep, number - 1 - outside))
    degrees = seeds - 1.0 if seeds > 1 else np.inf
    side = np.where(value > 0, value - below[:, deep], above[:, number - 1 - deep] - value)
    error = np.maximum(side, 0) / stats.t.ppf(1 - (deep + 1) / (number + 1), degrees)
    how = np.where(usable, np.where(bounded, "one more", "studentized"), "none")
    nothing = np.where(usable, 0.0, np.nan)
    return Estimates(
        value,
        np.minimum(below[:, outside], value) + nothing,
        np.maximum(above[:, number - 1 - outside], value) + nothing,
        error + nothing,
        np.full(value.shape, degrees),
        tuple(how.tolist()),
    )


def estimate(found: Draws, *, level: float = 0.95, nonnegative: Bool[np.ndarray, " column"] | bool = True) -> Estimates:
    """The mean over predictions of every column, with an interval over sequences (and seeds).

    No limit of an unbounded number that is `nonnegative` is below 0.
    """
    bounded = found.bounded
    low, high = (_over_seeds(side, found.student) for side in (found.low, found.high))
    limits = _limits(
        found.value, low, high, usable=found.usable, bounded=bounded, level=level, seeds=len(found.by_seed)
    )
    least = np.where(bounded, [bound[0] for bound in found.bounds], np.where(nonnegative, 0.0, -np.inf))
    most = np.array([bound[1] for bound in found.bounds])
    return replace(limits, low=np.clip(limits.low, least, None), high=np.clip(limits.high, None, most))


def gap(
    iid: Draws, shift: Draws, *, signs: Float[np.ndarray, " column"], level: float = 0.95
) -> tuple[Estimates, Float[np.ndarray, " column"]]:
    """The generalization gap of every column, signed so that positive means less faithful under the shift.

    `signs` is +1 where higher is more faithful and -1 otherwise: gap = sign x (mean on iid - mean on shift). The draws
    of the two splits are independent, each under the bound that is against the limit; seeds are paired. Limits lie
    where a difference can: two seeds that differ say nothing, but not more than nothing.

    Also returns two-sided p-values of "no gap": gap over its standard error against Student's t (the normal
    distribution for one seed). NaN where it cannot be told.
    """
    value = signs * (iid.value - shift.value)
    usable, bounded = iid.usable & shift.usable, iid.bounded
    up = signs[:, None] > 0
    low = np.where(up, iid.low - shift.high, shift.low - iid.high)
    high = np.where(up, iid.high - shift.low, shift.high - iid.low)
    limits = _limits(
        value,
        _over_seeds(low, iid.student),
        _over_seeds(high, iid.student),
        usable=usable,
        bounded=bounded,
        level=level,
        seeds=len(iid.by_seed),
    )
    widest = np.array([most - least for least, most in iid.bounds])
    limits = replace(limits, low=np.maximum(limits.low, -widest), high=np.minimum(limits.high, widest))
    with np.errstate(all="ignore"):
        p = 2 * stats.t.sf(np.abs(value) / limits.error, limits.degrees)
    p = np.where(limits.error > 0, p, np.where((value == 0) & usable, 1.0, np.nan))
    return limits, p


def share_recovered(
    of_proxy: Float[np.ndarray, "seed sequence 1"],
    of_ablation: Float[np.ndarray, "seed sequence 1"],
    counts: Int[np.ndarray, "seed sequence 1"],
    weights: Weights,
    *,
    level: float = 0.95,
) -> tuple[float, float, float] | None:
    """The share of an ablation's effect that a proxy recovers, with its limits: 1 - errors / errors of the ablation.

    That is (proxy - ablation) / (subject - ablation) for a rate of agreement, which is 1 for the subject itself. The
    arguments are errors by sequence, of `counts` predictions; sequences are paired, and seeds too. One more sequence is
    wholly wrong for one of the two and wholly right for the other. The loss recovered of the field, for rates: 1 is
    perfect, 0 as bad as the ablation, negative worse. None where the ablation has no errors.
    """
    errors, whole = weights.pooled(of_proxy), weights.pooled(of_ablation)
    if not (whole.sum(axis=1) > 0).all():
        return None
    value = float((1 - errors.sum(axis=1) / whole.sum(axis=1)).mean())
    above, below = _weighted(weights.exponential, (errors, whole))
    more = weights.one_more * _length(weights.pooled(counts))[..., None]
    student = weights.student(len(errors)) if len(errors) > 1 else None
    limits = _limits(
        np.array([value]),
        _over_seeds(1 - (above + more) / below, student),
        _over_seeds(1 - above / (below + more), student),
        usable=np.array([True]),
        bounded=np.array([True]),
        level=level,
        seeds=len(errors),
    )
    return value, float(limits.low[0]), min(float(limits.high[0]), 1.0)


Sample = tuple[Float[np.ndarray, "seed _ column"], Weights]
"""Sums over the predictions of every sequence, and the weights of the split that they are of."""


def smooth(
    function: Callable[..., Float[np.ndarray, "..."]], *samples: Sample, level: float = 0.95
) -> tuple[float, float, float]:
    """A smooth function of sums over sequences, such as a ratio of means, with its limits.

    `function` takes an array a sample with the columns' sums over its sequences along the first axis, and whatever
    other axes there are: it is asked for the value, for resamples and with each sequence left out. Samples are of
    different splits and resampled independently; their seeds are paired.

    Limits are percentiles of the function of resampled sequences, corrected for bias and acceleration (BCa). The
    acceleration is a sixth of the skewness of the value as far as it is linear in sequences, from values with each left
    out. Training seeds add to its variance, and no skewness: with S of them the value is their mean and its draws have
    the spread of seeds, as everywhere (see the module). Plain percentiles are taken where the correction is not
    defined: all draws on one side of the value, or no spread at all. Of 50 sequences, 93 to 94 in 100 intervals of a
    ratio contain it where effects are normal or gamma, and 90 where they are log-normal. The value is NaN where the
    function is not finite, and the limits are where that is so or there are fewer than two sequences.
    """
    pooled = [weights.pooled(sums) for sums, weights in samples]
    totals = [np.moveaxis(units.sum(axis=1), -1, 0)[..., None] for units in pooled]
    third = second = 0.0
    with np.errstate(all="ignore"):
        by_seed = function(*totals)[:, 0]
        seeds, value = len(by_seed), float(by_seed.mean())
        student = samples[0][1].student(seeds) if seeds > 1 else None
        resampled = [_weighted(own.resampled, [units])[0] for units, (_, own) in zip(pooled, samples, strict=True)]
        drawn = _over_seeds(function(*(sums.swapaxes(0, 1) for sums in resampled)), student)
        for place, units in enumerate(pooled):
            without = totals[place] - np.moveaxis(units, -1, 0)
            left = function(*totals[:place], without, *totals[place + 1 :]).mean(axis=0)
            influence = (units.shape[1] - 1) / units.shape[1] * (left.mean() - left)
            third += float((influence**3).sum())
            second += float((influence**2).sum())
        second += float(by_seed.var(ddof=1)) / seeds if seeds > 1 else 0.0
        acceleration = float(np.divide(third, 6 * second**1.5))
    drawn = np.sort(drawn[np.isfinite(drawn)])
    if not np.isfinite(value) or not len(drawn) or min(units.shape[1] for units in pooled) < 2:
        return value if np.isfinite(value) else np.nan, np.nan, np.nan
    left_out = _outside(drawn, value, acceleration, level)
    below, above = (max(int(share * (len(drawn) + 1)) - 1, 0) for share in left_out)
    return value, min(float(drawn[below]), value), max(float(drawn[-1 - above]), value)


def _outside(drawn: Float[np.ndarray, " draw"], value: float, acceleration: float, level: float) -> tuple[float, float]:
    """Which shares of the draws are left out below and above by BCa; those of plain percentiles if it is undefined."""
    plain = (1 - level) / 2
    with np.errstate(all="ignore"):
        bias = stats.norm.ppf(((drawn < value).mean() + (drawn <= value).mean()) / 2)
        far = bias + stats.norm.ppf([plain, 1 - plain])
        scale = 1 - acceleration * far
        if not np.isfinite(far).all() or not (scale > 0).all():
            return plain, plain
        low, high = stats.norm.cdf(bias + far / scale).tolist()
    return low, 1 - high


LEAST_SEQUENCES = 5
"""A stratum can be compared if at least so many iid sequences have a prediction in it."""

NO_MARGIN = "embeddings have no margin"

LEAST_OVERLAP = 0.5
"""A gap is matched only if at least this share of the shift's predictions is in strata that can be compared."""

LEAST_EFFECTIVE = 30
"""… and if the re-weighted iid is worth at least so many predictions (Kish), of `LEAST_SEQUENCES` sequences."""


class Matched(NamedTuple):
    """A gap between equal strata, its limits, standard error and degrees of freedom.

    `effective` is the effective sample size of the re-weighted iid in predictions, `overlap` the share of the shift's
    predictions that could be compared. `outside` is the most that the others can add to the gap over all of the
    shift's predictions, (overlap x value + outside); NaN for what is no rate and so has no bound. Both have limits.
    Where `reason` is given, the gap was not measured and is NaN.
    """

    value: float
    low: float
    high: float
    error: float
    degrees: float
    effective: float
    overlap: float
    overlap_low: float
    overlap_high: float
    outside: float
    outside_low: float
    outside_high: float
    reason: str | None

    @classmethod
    def nothing(cls, reason: str, effective: float = np.nan, **known: float) -> "Matched":
        """A gap that was not measured, and why."""
        missing = {name: np.nan for name in cls._fields if name not in known}
        return cls(**{**missing, **known, "effective": effective, "reason": reason})  # type: ignore[arg-type]


Strata = tuple[Float[np.ndarray, "seed _ _"], Int[np.ndarray, "seed _ _"]]
"""Sums and counts by sequence and stratum; every pair has strata of its own, every split its own sequences."""


def matched_gaps(
    iid: Sequence[Strata],
    shift: Sequence[Strata],
    weights: tuple[Weights, Weights],
    *,
    signs: Sequence[float],
    bounds: Sequence[Bounds],
    level: float = 0.95,
) -> list[Matched]:
    """Generalization gaps after re-weighting iid to the shift's distribution over strata, one a metric and kind.

    `iid` and `shift` are sums and counts by stratum (here: bins of the subject's margin within a kind), `weights` those
    of the sequences of the two splits. With a_g and b_g the means on iid and on the shift in stratum g, and p_g the
    share of the shift's predictions in g,

        gap = sign x sum_g p_g (a_g - b_g),

    direct standardisation (Miettinen 1972, American Journal of Epidemiology 96), also called post-stratification:
    what is left of the gap between predictions of which the subject is equally sure. Every training seed has strata of
    its own, for a margin is that of one model, and the gap is the mean over seeds. A stratum counts if at least
    `LEAST_SEQUENCES` different iid sequences have a prediction in it, and p is over the strata that count; `overlap` is
    their share of the shift. Nothing is extrapolated to the others: for a rate, `outside` is what they would add if iid
    were perfectly faithful there (a worst case in the sense of Manski 1990, American Economic Review 80). Below
    `LEAST_OVERLAP`, or with fewer than `LEAST_EFFECTIVE` effective predictions, nothing is measured.

    The effective sample size is that of Kish (1965, Survey Sampling), (sum w)^2 / sum w^2 over iid predictions with
    weights p_g / n_g, which is 1 / sum_g (p_g^2 / n_g), for one seed.

    Limits are made of draws, as everywhere: p, a and b are taken again under every set of weights. Of a rate on iid,
    the one more sequence has as many predictions as others have (root mean square) in the one stratum in which it harms
    most, or as others have in all of them: whichever is worse. So the exact limits are used stratum by stratum, and a
    gap between pure strata has a width. What has no bounds gets the draws of the studentised bootstrap of each side's
    linearised contributions (Binder 1983, International Statistical Review 51).

    Limits: what differs between the splits other than the margin is not taken off; a margin that the shift itself
    made small (the subject fails there, too) is. Within a bin margins may still differ a little, and a margin knows the
    nearest rival only: where more of them are close behind on the shift, a part of the harder inputs' gap is left in.
    """
    if not iid:
        return []
    pairs = [
        _Pair.of(*(own.pooled(values) for own, side in zip(weights, (a, b), strict=True) for values in side))
        for a, b in zip(iid, shift, strict=True)
    ]
    overlaps = _overlaps(pairs, weights[1], [bound == RATE for bound in bounds], level)
    reasons = [pair.too_little(known["overlap"]) for pair, known in zip(pairs, overlaps, strict=True)]
    chosen = [place for place, reason in enumerate(reasons) if reason is None]
    limited = [place for place in chosen if np.isfinite(bounds[place][0])]
    others = [place for place in chosen if place not in limited]
    drawn = dict(zip(limited, _standardised([pairs[one] for one in limited], weights, [bounds[one] for one in limited]),
                     strict=True))  # fmt: skip
    drawn |= dict(zip(others, _linearised([pairs[one] for one in others], weights), strict=True))
    found = []
    for place, (pair, known, reason) in enumerate(zip(pairs, overlaps, reasons, strict=True)):
        if reason is not None:
            found.append(Matched.nothing(reason, pair.effective, **known))
            continue
        seeds, sign = len(pair.by_seed), signs[place]
        low, high = drawn[place] if sign > 0 else tuple(-side for side in reversed(drawn[place]))
        student = weights[0].student(seeds) if seeds > 1 else None
        limits = _limits(
            np.array([sign * pair.by_seed.mean()]),
            _over_seeds(low[:, None], student),
            _over_seeds(high[:, None], student),
            usable=np.array([True]),
            bounded=np.array([place in limited]),
            level=level,
            seeds=seeds,
        )
        numbers = {name: float(getattr(limits, name)[0]) for name in ("value", "low", "high", "error", "degrees")}
        widest = bounds[place][1] - bounds[place][0]
        numbers |= {"low": max(numbers["low"], -widest), "high": min(numbers["high"], widest)}
        found.append(Matched(**numbers, effective=pair.effective, reason=None, **known))
    return found


@dataclass(frozen=True)
class _Pair:
    """Two splits by stratum, of one metric and kind: (seed, unit, stratum), of the strata that can be compared."""

    sums_a: Float[np.ndarray, "seed unit stratum"]
    counts_a: Float[np.ndarray, "seed unit stratum"]
    sums_b: Float[np.ndarray, "seed other stratum"]
    counts_b: Float[np.ndarray, "seed other stratum"]
    usable: Bool[np.ndarray, "seed stratum"]
    whole_b: Float[np.ndarray, "seed other"]
    wrong_b: Float[np.ndarray, "seed other"]
    nothing: bool

    @classmethod
    def of(cls, sums_a: np.ndarray, counts_a: np.ndarray, sums_b: np.ndarray, counts_b: np.ndarray) -> "_Pair":
        """Strata that cannot be compared are left out, in each seed."""
        usable = ((counts_a > 0).sum(axis=1) >= LEAST_SEQUENCES) & (counts_b.sum(axis=1) > 0)
        kept = np.flatnonzero(usable.any(axis=0))
        inside = usable[:, None, :]
        return cls(
            sums_a=(sums_a * inside)[..., kept],
            counts_a=(counts_a * inside)[..., kept],
            sums_b=(sums_b * inside)[..., kept],
            counts_b=(counts_b * inside)[..., kept],
            usable=usable[:, kept],
            whole_b=counts_b.sum(axis=2),
            wrong_b=((counts_b - sums_b) * ~inside).sum(axis=2),
            nothing=not counts_a.any() or not counts_b.any(),
        )

    @cached_property
    def share(self) -> Float[np.ndarray, "seed stratum"]:
        """How the shift's predictions are distributed over the strata."""
        on_shift = self.counts_b.sum(axis=1)
        return on_shift / on_shift.sum(axis=1, keepdims=True)

    @cached_property
    def mean_a(self) -> Float[np.ndarray, "seed stratum"]:
        """The means on iid; 0 where a stratum does not count."""
        return np.nan_to_num(_divide(self.sums_a.sum(axis=1), self.counts_a.sum(axis=1)))

    @cached_property
    def per_prediction(self) -> Float[np.ndarray, "seed stratum"]:
        """The weight of an iid prediction."""
        return np.nan_to_num(_divide(self.share, self.counts_a.sum(axis=1)))

    @cached_property
    def by_seed(self) -> Float[np.ndarray, " seed"]:
        """The mean on the re-weighted iid less that on the shift."""
        on_shift = self.sums_b.sum(axis=(1, 2)) / self.counts_b.sum(axis=(1, 2))
        found: np.ndarray = (self.share * self.mean_a).sum(axis=1) - on_shift
        return found

    @property
    def effective(self) -> float:
        """Kish's effective number of iid predictions, the mean over seeds."""
        if self.nothing or not self.usable.any(axis=1).all():
            return np.nan
        return float((1 / (self.share * self.per_prediction).sum(axis=1)).mean())

    def too_little(self, overlap: float) -> str | None:
        """Why the gap cannot be measured; None if it can."""
        if self.nothing:
            return "no such prediction in one of the splits"
        if overlap < LEAST_OVERLAP or not self.usable.any(axis=1).all():
            return (
                f"only {100 * overlap:.0f}% of the shift's predictions have a margin that at least {LEAST_SEQUENCES} "
                "iid sequences have, too"
            )
        sides = np.einsum("sng,sg->sn", self.counts_a, self.per_prediction), self.counts_b.sum(axis=2)
        on_iid, on_shift = (float((side.sum(axis=1) ** 2 / (side**2).sum(axis=1)).mean()) for side in sides)
        if self.effective < LEAST_EFFECTIVE or min(on_iid, on_shift) < LEAST_SEQUENCES:
            return (
                f"the re-weighted iid is worth only {self.effective:.1f} predictions of {on_iid:.1f} sequences "
                f"({on_shift:.1f} of the shift)"
            )
        return None


def _overlaps(pairs: Sequence[_Pair], weights: Weights, rates: Sequence[bool], level: float) -> list[dict[str, float]]:
    """The share of predictions inside the strata, and of those that are outside and wrong, each with its limits."""
    whole = np.stack([pair.whole_b for pair in pairs], axis=2)
    within = np.stack([pair.counts_b.sum(axis=2) for pair in pairs], axis=2)
    wrong = np.stack(
        [pair.wrong_b if rate else 0 * pair.wrong_b for pair, rate in zip(pairs, rates, strict=True)], axis=2
    )
    units = every(weights.size, resamples=weights.resamples, seed=weights.seed)
    found = [estimate(draws(part, whole, units, bounds=[RATE] * len(pairs)), level=level) for part in (within, wrong)]
    known = []
    for place, rate in enumerate(rates):
        overlap, outside = ((side.value[place], side.low[place], side.high[place]) for side in found)
        if not rate:
            outside = (0.0,) * 3 if overlap[0] == 1 else (np.nan,) * 3
        names = [f"{name}{end}" for name in ("overlap", "outside") for end in ("", "_low", "_high")]
        known.append(dict(zip(names, map(float, (*overlap, *outside)), strict=True)))
    return known


_LowHigh = tuple[Float[np.ndarray, "seed draw"], Float[np.ndarray, "seed draw"]]


def _standardised(
    pairs: Sequence[_Pair], weights: tuple[Weights, Weights], bounds: Sequence[Bounds]
) -> Iterator[_LowHigh]:
    """Low and high draws of the matched differences (iid less shift) of bounded numbers."""
    if not pairs:
        return
    of_iid, of_shift = weights
    on_iid = _weighted(of_iid.exponential, [part for pair in pairs for part in (pair.sums_a, pair.counts_a)])
    on_shift = _weighted(
        of_shift.exponential,
        [part for pair in pairs for part in (pair.counts_b, pair.sums_b.sum(axis=2, keepdims=True))],
    )
    for place, (pair, (least, most)) in enumerate(zip(pairs, bounds, strict=True)):
        above, below, counts, hits = *on_iid[2 * place : 2 * place + 2], *on_shift[2 * place : 2 * place + 2]
        within = counts.sum(axis=1)
        share = counts / within[:, None]
        more = of_shift.one_more * _length(pair.counts_b.sum(axis=2))[:, None]
        low_b, high_b = ((hits[:, 0] + more * bound) / (within + more) for bound in (least, most))
        means = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
        centre = (share * means).sum(axis=1)
        alone = np.nan_to_num(_length(pair.counts_a))
        everywhere = _length(pair.counts_a.sum(axis=2))[:, None] * pair.counts_a.sum(axis=1)
        everywhere /= pair.counts_a.sum(axis=(1, 2))[:, None]
        pulls = []
        for length in (alone, everywhere):
            heavy = of_iid.one_more * length[..., None]
            pulls.append(share * np.divide(heavy, below + heavy, out=np.zeros_like(below), where=below + heavy > 0))
        down = [pull * (least - means) for pull in pulls]
        up = [pull * (most - means) for pull in pulls]
        low_a = centre + np.minimum(down[0].min(axis=1), down[1].sum(axis=1))
        high_a = centre + np.maximum(up[0].max(axis=1), up[1].sum(axis=1))
        yield low_a - high_b, high_a - low_b


def _linearised(pairs: Sequence[_Pair], weights: tuple[Weights, Weights]) -> Iterator[_LowHigh]:
    """Draws of the matched differences (iid less shift) of unbounded numbers, twice."""
    if not pairs:
        return
    from_iid, from_shift = [], []
    for pair in pairs:
        residuals = pair.sums_a - pair.mean_a[:, None] * pair.counts_a
        from_iid.append(np.einsum("sng,sg->sn", residuals, pair.per_prediction))
        difference = np.einsum("sng,sg->sn", pair.counts_b, pair.mean_a) - pair.sums_b.sum(axis=2)
        own = pair.counts_b.sum(axis=2)
        from_shift.append((difference - pair.by_seed[:, None] * own) / own.sum(axis=1, keepdims=True))
    sides = []
    for parts, own in ((from_iid, weights[0]), (from_shift, weights[1])):
        stacked = np.stack(parts, axis=2)
        sides.append(_studentized(stacked, np.ones_like(stacked), own.resampled) * own.size)
    for place, pair in enumerate(pairs):
        found = pair.by_seed[:, None] + sides[0][:, place] + sides[1][:, place]
        yield found, found


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
