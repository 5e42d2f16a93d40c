"""How far an explanation of a function is off: everywhere, where the function departs from its rule, and elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from assay._errors import AssayError
from assay._given import checked
from assay.diagnostics._setting import Estimate

Real = Callable[[np.ndarray], np.ndarray]

PASSES = 0.1
"""A normalised error below this counts as success in FIND."""

FOUND = 0.25
"""A departure counts as found where the explanation's error there is below this share of what missing it costs."""

_RESAMPLES = 1_000


@dataclass(frozen=True)
class FunctionErrors:
    """Normalised squared errors of an explanation of a function; lower is better, 0 is exact.

    All are mean squared errors over the variance of the function on all inputs: `everywhere`, `inside` the part where
    it departs from its rule, and `outside`. `of_ranks` is that of ranks, everywhere, which no tail dominates. `missed`
    is the share of the departure that is missing from the explanation (1: it says the rule; None without a rule), and
    `found` whether it is shown to be below .25 (None where that is not decided, or there is no rule). `told` is the
    probability that the explanation doubts an input inside more than one outside (.5: no information; None where it
    tells no doubts).
    """

    everywhere: Estimate
    inside: Estimate
    outside: Estimate
    of_ranks: Estimate
    missed: Estimate | None
    found: bool | None
    told: float | None
    inputs: int
    inputs_inside: int

    @property
    def passes(self) -> bool:
        """Whether the error everywhere is below .1, which a departure that was missed may be, too."""
        return self.everywhere.value < PASSES

    def __str__(self) -> str:
        of = "" if self.missed is None else f"; {self.missed} of the departure is missing"
        return (
            f"error {self.everywhere} of the variance ({'passes' if self.passes else 'does not pass'} {PASSES:g}): "
            f"inside {self.inside}, outside {self.outside}{of}"
        )


@checked
def function_errors(
    truth: Real,
    explanation: Real,
    inputs: np.ndarray,
    inside: np.ndarray,
    *,
    rule: Real | None = None,
    doubts: Real | None = None,
    noise: float = 0.0,
    exhaustive: bool = False,
    level: float = 0.95,
    seed: int = 0,
) -> FunctionErrors:
    """How far an explanation of a function of one number is off, with the part where the function departs apart.

    `truth`, `explanation`, `rule` (the function without its departure) and `doubts` (how unsure the explanation is,
    higher is less sure) answer an array of inputs with an array. `inside` says of each of the `inputs` whether the
    function departs there from its rule. `noise` is the standard deviation of what `truth` adds at random: its square
    is taken off the errors. Limits are for other inputs drawn alike (percentiles of resamples, of which each has a
    variance of its own); with `exhaustive=True`, where the inputs are all there are, they are the values themselves.

    An error everywhere says little of a departure: where a constant c on a share p of the inputs is missed, it is
    p c² / variance, which passes .1 for .0023 with f(x) = x, p = 1/8 and c = 10. Errors are over the variance of the
    *whole*: over that of the part they are huge where the part is narrow.

    Source: Schwettmann et al., arXiv 2309.03886 (FIND; success is a normalised error below .1, there over all inputs).
    Differences: errors inside and outside, limits, noise taken off.

    Raises AssayError for answers of another shape or that are not finite, fewer than 8 inputs inside or outside, a
    function that does not vary, or a rule that does not differ from it inside.
    """
    where = np.asarray(inputs, dtype=np.float64)
    if where.ndim != 1 or np.shape(inside) != where.shape or not np.isfinite(where).all():
        raise AssayError("function_errors(inputs=..., inside=...): must be finite numbers, and True or False of each.")
    if not 0 < level < 1 or not 0 <= noise < np.inf:
        raise AssayError(f"function_errors(level={level}, noise={noise}): a level within (0, 1), and noise from 0 on.")
    for part, count in (("inside", int(inside.sum())), ("outside", int((~inside).sum()))):
        if count < 8:
            raise AssayError(f"function_errors(): {count} inputs are {part} the departure; give at least 8.")
    real, said = (_answers(name, one, where) for name, one in (("truth", truth), ("explanation", explanation)))
    if float(real.var()) <= 1e-12 * max(1.0, float((real**2).mean())):
        raise AssayError("function_errors(): the function is constant on these inputs, so no error can be normalised.")
    off = (said - real) ** 2 - noise**2
    size = None
    if rule is not None:
        size = (_answers("rule", rule, where) - real) ** 2 - noise**2
        if size[inside].mean() <= 0:
            raise AssayError("function_errors(rule=...): is what the function is, inside too; nothing departs.")
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(where), np.full(len(where), 1 / len(where)), size=0 if exhaustive else _RESAMPLES)
    weights = np.concatenate([np.ones((1, len(where)), dtype=drawn.dtype), drawn])
    everyone = np.ones(len(where), dtype=bool)

    def error(values: Float[np.ndarray, " input"], part: Bool[np.ndarray, " input"], of: np.ndarray = real) -> Estimate:
        return _limits(_mean(values, part, weights) / _variance(of, weights), level)

    ranks = stats.rankdata(real)
    missed = None
    if size is not None:
        missed = _limits(_mean(off, inside, weights) / _mean(size, inside, weights), level)
    decided = missed is not None and (missed.high < FOUND or missed.low >= FOUND)
    return FunctionErrors(
        everywhere=error(off, everyone),
        inside=error(off, inside),
        outside=error(off, ~inside),
        of_ranks=error((stats.rankdata(said) - ranks) ** 2, everyone, ranks),
        missed=missed,
        found=missed.high < FOUND if decided and missed is not None else None,
        told=None if doubts is None else _told(_answers("doubts", doubts, where), inside),
        inputs=len(where),
        inputs_inside=int(inside.sum()),
    )


def _mean(
    values: Float[np.ndarray, " input"], part: Bool[np.ndarray, " input"], weights: Int[np.ndarray, "resample input"]
) -> Float[np.ndarray, " resample"]:
    """Of a part of the inputs, as they are and resampled."""
    found: np.ndarray = (weights[:, part] @ values[part]) / weights[:, part].sum(axis=1)
    return found


def _variance(
    values: Float[np.ndarray, " input"], weights: Int[np.ndarray, "resample input"]
) -> Float[np.ndarray, " resample"]:
    everyone = np.ones(len(values), dtype=bool)
    centred = values - values.mean()
    found: np.ndarray = _mean(centred**2, everyone, weights) - _mean(centred, everyone, weights) ** 2
    return found


def _limits(found: Float[np.ndarray, " resample"], level: float) -> Estimate:
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2]) if len(found) > 1 else (found[0], found[0])
    return Estimate(float(found[0]), float(low), float(high))


def _answers(name: str, function: Real, where: Float[np.ndarray, " input"]) -> Float[np.ndarray, " input"]:
    found = np.asarray(function(where.copy()), dtype=np.float64)
    if found.shape != where.shape or not np.isfinite(found).all():
        raise AssayError(
            f"function_errors({name}=...): answers {len(where)} numbers with shape {found.shape}"
            + ("" if found.shape != where.shape else " and some that are not finite")
            + "; it must give one finite number an input."
        )
    return found


def _told(doubts: Float[np.ndarray, " input"], inside: Bool[np.ndarray, " input"]) -> float:
    """The area under the ROC curve."""
    count = int(inside.sum())
    ranks = stats.rankdata(doubts)[inside].sum()
    return float((ranks - count * (count + 1) / 2) / (count * (len(doubts) - count)))
