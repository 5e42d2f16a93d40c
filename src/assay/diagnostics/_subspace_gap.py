"""Whether the directions that vectors vary in have turned away from those that a dictionary writes in."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from assay._errors import AssayError
from assay._given import checked
from assay.diagnostics._encoded import Encoded, encoded
from assay.diagnostics._reconstruction import judged_splits
from assay.dictionaries._realigned import principal
from assay.engine import Engine
from assay.faithfulness import Weights
from assay.faithfulness._summary import weights_of
from assay.simplify import Simplification
from assay.subjects import Subject
from assay.tasks import Split, Task, bound

GAP_COLUMNS = (
    "place", "split", "role", "rank", "sequences", "vectors", "held", "chance",
    *(f"{name}{end}" for name in ("gap", "change") for end in ("", "_low", "_high")),
)  # fmt: skip

GROUPS = 20
"""Groups of sequences, each left out once for an interval: a subspace is no sum, and costs a decomposition."""

MOST_HELD = 0.9
"""The share of the variance of iid that the directions hold which are asked about, if no number is given."""


@checked
def subspace_gap(
    subject: Subject,
    task: Task,
    fitted: Simplification,
    *,
    place: str | None = None,
    rank: int | None = None,
    sequences: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """How far the directions that vectors vary in lie outside those that a dictionary writes in: one row a split.

    With U the `rank` leading directions of the decoder (right singular vectors of W_dec) and V those of the covariance
    of the vectors that are to be decoded, on the split,

        gap = 1 - |U^T V|_F^2 / rank,

    in [0, 1]: 0 where the two subspaces are one, `chance` = 1 - rank / width where one is random. `held` is the share
    of the split's variance along V. `rank` is the same for all splits, by default so many that V holds nine tenths of
    the variance of iid. `change` is the gap of a split minus that of iid: what the shift adds. Both have `_low` and
    `_high`, by a jackknife over 20 groups of sequences.

    Read `change`, and compare the gap with that of iid: the two kinds of directions differ without any shift, for a
    feature counts in U whether it is used or not, and with a rank of the whole width there is no gap at all. What a
    dictionary loses is `reconstruction`; what its decoder alone loses, `assay.dictionaries.RealignedDictionary` fitted
    on the shift gives back.

    Source: the faithfulness gap of arXiv 2605.21849. Differences: in [0, 1], that of iid beside it, and intervals.

    Raises AssayError for a recipe without dictionaries or not fitted, an autoencoder that normalizes vectors, a rank
    that there is not, and an unknown place.
    """
    task = bound(task, subject.tokenizer)
    engine, one = Engine(subject), encoded(fitted, place)
    one.check_not_normalizing("the subspace that it writes in is not defined")
    splits = judged_splits(task, sequences)
    moments = {
        split.name: _Moments.of(engine, one, split, weights_of(split, seed=seed, resamples=1), seed) for split in splits
    }
    iid = moments[splits[0].name]
    most = min(one.dictionary.out, one.dictionary.features)
    if rank is None:
        values = torch.linalg.eigvalsh(iid.covariance()).flip(0).clamp_min(0).cumsum(0)
        rank = min(most, int((values < MOST_HELD * values[-1]).sum()) + 1)
    if not 1 <= rank <= most:
        raise AssayError(
            f"subspace_gap(rank={rank}): the dictionary at {one.name} has {one.dictionary.features} features in "
            f"{one.dictionary.out} numbers; give a rank of 1 to {most}."
        )
    decoder = one.dictionary.W_dec.double().cpu()
    own = principal(decoder.T @ decoder, rank)
    first = iid.gaps(own)
    rows = []
    for split in splits:
        moment = moments[split.name]
        gaps, covariance = moment.gaps(own), moment.covariance()
        found = principal(covariance, rank)
        row: dict[str, Any] = {
            **dict.fromkeys(GAP_COLUMNS, np.nan),
            "place": one.name,
            "split": split.name,
            "role": split.role,
            "rank": rank,
            "sequences": len(split),
            "vectors": int(moment.count.sum()),
            "held": float(torch.trace(found.T @ covariance @ found) / torch.trace(covariance)),
            "chance": 1 - rank / one.dictionary.out,
        }
        row |= _limits("gap", gaps, None, level)
        if split.role != "iid":
            row |= _limits("change", gaps, first, level)
        rows.append(row)
    return pd.DataFrame(rows, columns=list(GAP_COLUMNS))


@dataclass(frozen=True)
class _Moments:
    """Number, sum and sum of products of vectors, by group of sequences; copies of a sequence are in one group."""

    count: Float[Tensor, " group"]
    first: Float[Tensor, "group width"]
    second: Float[Tensor, "group width width"]

    @classmethod
    def of(cls, engine: Engine, one: Encoded, split: Split, weights: Weights, seed: int) -> "_Moments":
        """Those of what is to be decoded on a split."""
        groups, out = min(GROUPS, weights.size), one.dictionary.out
        group_of = (np.random.default_rng(seed).permutation(weights.size) % groups)[weights.units]
        count, first = torch.zeros(groups, dtype=torch.float64), torch.zeros(groups, out, dtype=torch.float64)
        second = torch.zeros(groups, out, out, dtype=torch.float64)
        # Products about something near the mean: of vectors far from 0 the variance is lost in rounding.
        centre = None
        for batch in one.batches(engine, split):
            vectors, which = batch.wanted.double().cpu(), torch.from_numpy(group_of[batch.sequence])
            centre = vectors.mean(dim=0) if centre is None else centre
            for group in which.unique().tolist():
                own = vectors[which == group] - centre
                count[group] += len(own)
                first[group] += own.sum(dim=0)
                second[group] += own.T @ own
        return cls(count, first, second)

    def covariance(self, without: int | None = None) -> Float[Tensor, "width width"]:
        """That of all groups, or of all but one."""
        kept = torch.arange(len(self.count)) != (-1 if without is None else without)
        count, first = self.count[kept].sum(), self.first[kept].sum(dim=0)
        return self.second[kept].sum(dim=0) / count - torch.outer(first, first) / count**2

    def gaps(self, own: Float[Tensor, "width rank"]) -> Float[np.ndarray, " which"]:
        """The gap of all groups, and behind it that without each of them."""
        rank = own.shape[1]
        leaving = [None, *range(len(self.count))] if len(self.count) > 1 else [None]
        shared = [float((own.T @ principal(self.covariance(one), rank)).square().sum()) / rank for one in leaving]
        return 1 - np.minimum(shared, 1)  # in rounding, a little more


def _limits(
    name: str, found: Float[np.ndarray, " own"], first: Float[np.ndarray, " of_iid"] | None, level: float
) -> dict[str, float]:
    """A gap, or one less another, with limits by leaving groups out."""
    samples = [found] if first is None else [found, first]
    value = float(found[0]) - (0.0 if first is None else float(first[0]))
    if min(map(len, samples)) < 3:
        return {name: value}
    variance = sum((len(one) - 2) / (len(one) - 1) * float(((one[1:] - one[1:].mean()) ** 2).sum()) for one in samples)
    reach = float(stats.t.ppf((1 + level) / 2, min(map(len, samples)) - 2)) * variance**0.5
    least = 0.0 if first is None else -1.0
    return {name: value, f"{name}_low": max(least, value - reach), f"{name}_high": min(1.0, value + reach)}
