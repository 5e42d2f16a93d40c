"""What diagnostics of a circuit share: its pairs, the subject's effect on them, and numbers with limits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from assay._errors import AssayError
from assay.circuits import LEAST_PAIRS, Circuit, Problem, RandomCircuit
from assay.engine import Engine
from assay.faithfulness import UNBOUNDED, Weights, draws, estimate
from assay.faithfulness._statistics import smooth
from assay.faithfulness._summary import weights_of
from assay.subjects import Subject
from assay.tasks import Split

Function = Callable[[Float[np.ndarray, "column ..."]], Float[np.ndarray, "..."]]

CLEAR = 0.99
"""Shares of an effect are measured where this interval of the effect does not contain 0."""


class Estimate(NamedTuple):
    """A number with its confidence limits."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True)
class Setting:
    """A circuit on the pairs of a split.

    `kept` are its edges on paths; `subject` and `ablated` have m of every pair for the subject and with all edges
    ablated. `weights` are those that `compare` gives the split's sequences: whatever is measured there is paired.
    """

    problem: Problem
    kept: Bool[np.ndarray, "sender receiver"]
    weights: Weights
    subject: Float[np.ndarray, " pair"]
    ablated: Float[np.ndarray, " pair"]

    @classmethod
    def of(
        cls, circuit: Circuit | RandomCircuit, subject: Subject, split: Split, *, resamples: int, seed: int
    ) -> "Setting":
        """That of a fitted circuit.

        Raises AssayError for a split without pairs or with fewer than 30 different ones, and where ablating every edge
        is not shown to change m there.
        """
        weights = weights_of(split, seed=seed, resamples=resamples)
        check_pairs(split, weights)
        proxy = circuit.apply(subject)
        problem = Problem(Engine(subject), split, proxy.reference)
        found = cls(problem, proxy.pruned, weights, *problem.baseline)
        effect = found.mean(found.subject - found.ablated, level=CLEAR)
        if not (effect.low > 0 or effect.high < 0):
            raise AssayError(
                f"nothing to explain on split {split.name!r}: ablating every edge ({proxy.reference.ablation}) changes "
                f"the mean logit difference of answer and foils by {effect.value:.3g}, and the 99% interval "
                f"[{effect.low:.3g}, {effect.high:.3g}] contains 0."
            )
        return found

    def part(self, split: Split, chosen: Bool[np.ndarray, " pair"]) -> "Setting":
        """That of some of the pairs, with weights of their own."""
        index = np.flatnonzero(chosen)
        _, units = np.unique(self.weights.units[index], return_inverse=True)
        return Setting(
            replace(self.problem, split=split.take(index)),
            self.kept,
            replace(self.weights, units=units),
            self.subject[index],
            self.ablated[index],
        )

    def mean(self, values: Float[np.ndarray, " pair"], *, level: float) -> Estimate:
        """The mean over pairs of a number without bounds."""
        return mean_of(values, self.weights, level=level)

    def smooth(self, function: Function, columns: Sequence[Float[np.ndarray, " pair"]], *, level: float) -> Estimate:
        """A smooth function of sums over pairs."""
        return smooth_of(function, columns, self.weights, level=level)

    def share(self, part: Float[np.ndarray, " pair"], whole: Float[np.ndarray, " pair"], *, level: float) -> Estimate:
        """The mean of one number over that of another."""
        return share_of(part, whole, self.weights, level=level)


def mean_of(
    values: Float[np.ndarray, " pair"], weights: Weights, *, level: float, bounds: tuple[float, float] = UNBOUNDED
) -> Estimate:
    """The mean over pairs of a number, which lies within bounds."""
    found = draws(values[None, :, None], np.ones((1, len(values), 1)), weights, bounds=[bounds])
    limits = estimate(found, level=level, nonnegative=False)
    return Estimate(float(limits.value[0]), float(limits.low[0]), float(limits.high[0]))


def smooth_of(
    function: Function, columns: Sequence[Float[np.ndarray, " pair"]], weights: Weights, *, level: float
) -> Estimate:
    """A smooth function of sums over pairs, one a column."""
    return Estimate(*smooth(function, (np.stack(columns, axis=-1)[None], weights), level=level))


def share_of(
    part: Float[np.ndarray, " pair"], whole: Float[np.ndarray, " pair"], weights: Weights, *, level: float
) -> Estimate:
    """The mean of one number over that of another."""
    return smooth_of(lambda sums: np.asarray(sums[0] / sums[1]), (part, whole), weights, level=level)


def check_pairs(split: Split, weights: Weights) -> None:
    """Raise AssayError for a split without pairs, or with fewer than 30 different ones."""
    if not split.has_pairs:
        raise AssayError(
            f"split {split.name!r} has no pairs (counterfactuals, answers, foils), so nothing can be judged by them; "
            "give a split of pairs, such as those of assay.tasks.Pairs."
        )
    if weights.size < LEAST_PAIRS:
        raise AssayError(f"split {split.name!r} has only {weights.size} different pairs; give at least {LEAST_PAIRS}.")
