"""Whether a model's flips (right to wrong, wrong to right) go one way: a test with whole sequences as the unit.

Flips of one sequence are not independent, and McNemar's test of all flips together, which takes them as if they were,
finds a difference far too often where there is none. Here a sequence has d, by how much its flips from right to wrong
outnumber those from wrong to right, and the test is of the sum of d, which is the difference of the two accuracies in
predictions. Copies of a sequence are no new evidence: their d is to be summed first.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

EXACT = 12
"""Up to so many sequences with d ≠ 0 all signs are enumerated."""

DRAWS = 9_999
"""With the observed signs as one more, p-values are multiples of 1 in 10,000."""


def sign_flip_test(
    differences_by_sequence: Int[np.ndarray, " sequence"] | Sequence[int], *, draws: int = DRAWS, seed: int = 0
) -> float:
    """Two-sided p-value of "no sequence favours either model": the sign of every d is as likely + as −.

    p is the share of signs s for which |Σ s d| ≥ |Σ d|, of all 2^k where at most 12 sequences have d ≠ 0, otherwise of
    `draws` random ones together with the observed ones: (1 + hits) / (1 + draws). So p is never 0, and 1 if nothing
    flips. If sequences favour one model and the other equally on the average, but not symmetrically, this holds in the
    limit of many sequences (Romano 1990, Journal of the American Statistical Association 85).
    """
    found = np.asarray(differences_by_sequence, dtype=np.int64)
    sizes = np.abs(found[found != 0])
    observed = abs(int(found.sum()))
    if len(sizes) <= EXACT:
        totals = np.zeros(1, dtype=np.int64)
        for size in sizes:
            totals = np.concatenate((totals - size, totals + size))
        return float((np.abs(totals) >= observed).mean())
    rng = np.random.default_rng(seed)
    totals = np.zeros(draws, dtype=np.int64)
    # Of k sequences of one size it only matters how many are positive.
    for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
        totals += size * (2 * rng.binomial(count, 0.5, draws) - count)
    return float((1 + (np.abs(totals) >= observed).sum()) / (1 + draws))
