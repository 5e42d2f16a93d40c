"""Path interventions: edges whose effect is shown, with a bound on the share of those that have none."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from scipy import stats

from assay.circuits._measured import measured
from assay.circuits._parameters import check_number
from assay.circuits._problem import Problem


@dataclass
class PathInterventions:
    """The mean effect of ablating each edge alone, where it is shown to be other than 0; 0 elsewhere.

    score(e) = mean over pairs of m(M without e) - m(M), kept where it is in the set that Benjamini and Hochberg's
    procedure selects from Student's tests over pairs: of the edges in it, a share of at most `rate` has no mean effect
    (in expectation, for edges that are independent or depend positively). An effect that is positive on some pairs and
    negative on others may have mean 0, and of two edges of which either is enough, neither has an effect.

    One run an edge. Source: Ahmad et al., arXiv 2305.08950, of which the idea is taken from the abstract: the test, the
    edges of a Transformer and what they carry are ours. Raises AssayError for a rate outside (0, 1).
    """

    rate: float = 0.05

    pairwise: ClassVar[bool] = False

    def check(self, problem: Problem) -> None:
        """Raise AssayError for a rate outside (0, 1)."""
        check_number("rate", self.rate, lambda value: 0 < value < 1, "a number between 0 and 1")

    def scores(self, problem: Problem) -> Float[np.ndarray, "sender receiver"]:
        """The score of every edge, in the units of m; NaN where there is none."""
        self.check(problem)
        graph = problem.wiring.graph
        places = np.argwhere(graph.exists)
        masks = []
        for place in places:
            without = graph.exists.copy()
            without[tuple(place)] = False
            masks.append(without)
        whole, *others = measured(problem, [graph.exists, *masks])
        effects = np.stack(others) - whole
        means = effects.mean(axis=1)
        errors = effects.std(axis=1, ddof=1) / np.sqrt(effects.shape[1])
        # What no pair's m shows is rounding, not an effect.
        nothing = np.abs(effects).max(axis=1) <= 1e-6 * max(float(np.abs(whole).max()), 1e-30)
        with np.errstate(all="ignore"):
            p = 2 * stats.t.sf(np.abs(means / errors), effects.shape[1] - 1)
        p = np.where(nothing, 1.0, np.nan_to_num(p, nan=0.0))
        shown = stats.false_discovery_control(p) <= self.rate
        found = np.where(graph.exists, 0.0, np.nan)
        found[tuple(places.T)] = np.where(shown, means, 0.0)
        return found
