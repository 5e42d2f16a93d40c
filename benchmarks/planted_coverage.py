"""How often the intervals of a gap cover it, on planted subjects whose gap is known exactly.

Run `python benchmarks/planted_coverage.py`. Every row is one planted case (`assay.testing.planted.Lookup`), drawn anew
for each seed and judged by `assay.compare`; a seed counts as covered if the 95% interval contains the true gap. The
widths are means over seeds in points, `zero` counts intervals at equal margin that are a single point, and the last
column counts verdicts (at most a gap of 2 points, and an agreement of 90%, which all cases keep well, so that gaps
decide). The exit status is 1 if a row covers in less than 94% of its seeds by more than chance allows.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats

import assay
from assay.testing.planted import Lookup

CASES = (
    *(Lookup(gap, questions=questions) for questions in (1, 4) for gap in (0.0, 0.02, 0.1, 0.3)),
    Lookup(0.1, questions=4, rho=0.3),
    *(Lookup(0.1, cause="structure", questions=questions) for questions in (1, 4)),
    *(Lookup(0.3, cause="difficulty", questions=questions) for questions in (1, 4)),
    Lookup(0.0, rare_share=0.0, questions=4),
)

BAR, CHANCE = 0.94, 0.005
"""Coverage asked for, and the probability with which a method that has just that falls short by chance."""


class Coverage(NamedTuple):
    """Seeds whose raw and matched interval contained the truth, mean widths as shares, and verdicts."""

    seeds: int
    raw: int
    matched: int
    width: float
    matched_width: float
    points: int
    verdicts: Counter[str]

    @property
    def holds(self) -> bool:
        """Whether both cover in `BAR` of the seeds, as far as so many can tell."""
        return min(self.raw, self.matched) >= stats.binom.ppf(CHANCE, self.seeds, BAR)


def coverage(case: Lookup, seeds: Iterable[int], *, sequences: int = 150, resamples: int = 1_000) -> Coverage:
    """Judge a case on sequences drawn with each seed."""
    subject, recipe = case.subject(), assay.SVD(rank=case.rank)
    rows, verdicts = [], Counter[str]()
    for seed in seeds:
        comparison = assay.compare(
            subject, replace(case, seed=seed), [recipe],
            sequences=sequences, fit_sequences=100, resamples=resamples, seed=seed, controls=False, refit=False,
        )  # fmt: skip
        gaps = comparison.gaps()
        rows.append(gaps[["low", "high", "matched_low", "matched_high"]].to_numpy(dtype=float)[0])
        verdicts[comparison.verdicts(min_agreement=0.9, max_gap=0.02)[0].judgement] += 1
    low, high, matched_low, matched_high = np.array(rows).T
    truth = case.truth
    return Coverage(
        seeds=len(rows),
        raw=int(((low <= truth.gap) & (truth.gap <= high)).sum()),
        matched=int(((matched_low <= truth.matched) & (truth.matched <= matched_high)).sum()),
        width=float((high - low).mean()),
        matched_width=float((matched_high - matched_low).mean()),
        points=int((matched_high == matched_low).sum()),
        verdicts=verdicts,
    )


def main() -> None:
    """Print the table; the exit status is 1 if the bar is missed anywhere."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--sequences", type=int, default=150)
    options = parser.parse_args()
    if min(options.seeds, options.sequences) < 2:
        parser.error("--seeds and --sequences must be at least 2.")
    torch.set_num_threads(1)
    print(
        "| cause | rare in distribution | gap, at equal margin | questions, rho | raw covered | matched covered "
        "| width | matched width (zero) | verdicts |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    missed = False
    for place, case in enumerate(CASES):
        # Every row has seeds of its own: the same ones would draw the same sequences, and chance strike rows alike.
        seeds = range(place * options.seeds, (place + 1) * options.seeds)
        found = coverage(case, seeds, sequences=options.sequences)
        missed |= not found.holds
        gap, matched = (f"{100 * value:g}" for value in (case.truth.gap, case.truth.matched))
        print(
            f"| {case.cause} | {100 * case.rare_share:g} | {gap}, {matched} | {case.questions}, {case.rho:g} "
            f"| {found.raw}/{found.seeds} | {found.matched}/{found.seeds} | {100 * found.width:.1f} "
            f"| {100 * found.matched_width:.1f} ({found.points}) "
            f"| {', '.join(f'{name} {count}' for name, count in sorted(found.verdicts.items()))} |",
            flush=True,
        )
    sys.exit(missed)


if __name__ == "__main__":
    main()
