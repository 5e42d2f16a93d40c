"""How far a dictionary depends on the data that it was trained on: features matched between fits."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from assay._errors import AssayError, unknown_name
from assay._given import checked
from assay.diagnostics._encoded import Encoded, encoded
from assay.engine import Engine, Named, Samples, collect
from assay.faithfulness._summary import weights_of
from assay.simplify import Simplification, label
from assay.subjects import Subject
from assay.tasks import Split, Task, bound

ALIVE_ROWS = 20_000
"""Vectors of its own data on which a feature has to be on once, to be counted."""


@dataclass(frozen=True)
class ProbeSetDependence:
    """How far dictionaries of one distribution and of another have the same features.

    All are mean cosines of matched features, at most 1: of every two fits on different sequences of the train split
    (`within`) and of the shift (`within_shift`), of one of each (`between`), of fits that differ in nothing but their
    seed (`same_data`), and of as many random directions (`chance`). `alive` has the number of features of every fit
    that are ever on: of the train split first, then of the shift. `p` is the share of ways to call half of the fits
    those of the train split that give a `dependence` as large.
    """

    place: str
    shift: str
    within: Float[np.ndarray, " pair"]
    within_shift: Float[np.ndarray, " pair"]
    between: Float[np.ndarray, "fit other"]
    same_data: Float[np.ndarray, " pair"]
    chance: float
    alive: Int[np.ndarray, " fits"]
    p: float

    @property
    def dependence(self) -> float:
        """What is shared within a distribution beyond what is shared between both; 0 where it does not matter which."""
        return float((self.within.mean() + self.within_shift.mean()) / 2 - self.between.mean())

    @property
    def ceiling(self) -> float:
        """What fits share that differ in their seed alone: features that a dictionary has for its data."""
        return float(self.same_data.mean())

    def __str__(self) -> str:
        return (
            f"{self.place}: features of fits on the train split and on {self.shift} match at "
            f"{self.between.mean():.2f}, within each at {self.within.mean():.2f} and {self.within_shift.mean():.2f} "
            f"(dependence {self.dependence:+.2f}, p = {self.p:.2g}; seeds alone {self.ceiling:.2f}, "
            f"chance {self.chance:.2f})"
        )


@checked
def probe_set_dependence(
    recipe: Simplification,
    subject: Subject,
    task: Task,
    *,
    site: Named,
    shift: str,
    place: str | None = None,
    fits: int = 3,
    sequences: int = 600,
    seed: int = 0,
) -> ProbeSetDependence:
    """Whether a recipe of dictionaries gives other features on a shift than on the train split.

    `recipe` (not fitted) is fitted `fits` times on the train split and as often on the shift, each time on other
    sequences and with another seed, on equally many sequences and vectors; and `fits` - 1 times more on the first
    sequences, with seeds of their own. The features of two fits, of those that are ever on, are matched one to one so
    that the sum of the cosines of their decoder rows is largest (Hungarian method); the mean is over the features of
    the one that has more, and those without a partner count 0. `dependence` is

        (mean of all pairs within the train split + mean within the shift) / 2 - mean of all pairs between,

    higher where features depend more on the data; 0 in expectation where both are one distribution. Read it between
    `chance` and `ceiling`: where seeds alone change most features, no data can be blamed.

    It takes 3 `fits` - 1 fits. `sequences` of each split are dealt out. `p` cannot be below 2 fits!² / (2 fits)!, 0.1
    for three fits and 0.008 for five. `place` says which dictionary is meant, where `site` has several places.

    Source: dependence on the probe set as in Ramaswamy et al. (arXiv 2207.09615), here of dictionaries. Differences:
    fits are on sets without a common sequence, not on bootstrap samples of one: these share most of their sequences
    with each other and none with the shift, and seem to depend on the distribution where there is but one. Both
    distributions count within, so that a shift which merely gives less stable features does not count as another one.

    Raises AssayError for a recipe without seed or dictionaries, fewer than two fits, an unknown shift, and too few
    different sequences.
    """
    task = bound(task, subject.tokenizer)
    names = {item.name for item in fields(recipe)} if hasattr(recipe, "__dataclass_fields__") else set()  # type: ignore[arg-type]
    if "seed" not in names or not hasattr(recipe, "dictionaries_"):
        raise AssayError(
            f"{label(recipe)} trains no dictionary from a seed; give a recipe that does, such as SparseAutoencoder."
        )
    if fits < 2:
        raise AssayError(f"probe_set_dependence(fits={fits}): must be at least 2, to have pairs.")
    shifts = [name for name in task.split_names if name != task.split_names[0]]
    if shift not in shifts:
        raise unknown_name("shift", shift, shifts)
    engine = Engine(subject)
    splits = [task.split(name, sequences) for name in (task.split_names[0], shift)]
    parts = _dealt(splits, fits, seed)
    known: Any = recipe
    if "rows" in names:
        rows = min(int(part.lengths.sum()) for part in parts)
        known = replace(known, rows=rows if known.rows is None else min(rows, known.rows))
    again = range(2 * fits, 3 * fits - 1)
    jobs = [*enumerate(parts), *((number, parts[0]) for number in again)]
    found, name = [], ""
    for number, part in jobs:
        samples = collect(engine, part, ()).at(engine.site(site))
        one = encoded(replace(known, seed=known.seed + number).fit(samples), place)
        name = one.name
        found.append(_directions(one, samples, seed))
    same = np.eye(2 * fits)
    for first, second in combinations(range(2 * fits), 2):
        same[first, second] = same[second, first] = matched(found[first], found[second])
    of_first = [found[0], *found[2 * fits :]]
    alive = np.array([len(directions) for directions in found[: 2 * fits]])
    return ProbeSetDependence(
        place=name,
        shift=shift,
        within=_pairs(same, range(fits)),
        within_shift=_pairs(same, range(fits, 2 * fits)),
        between=same[:fits, fits:],
        same_data=np.array([matched(first, second) for first, second in combinations(of_first, 2)]),
        chance=_chance(alive, found[0].shape[1], seed),
        alive=alive,
        p=_p(same, fits),
    )


def _dealt(splits: Sequence[Split], fits: int, seed: int) -> list[Split]:
    """The sequences of each split dealt out, equally many to each part, no sequence to two."""
    different = [np.unique(weights_of(split, seed=seed, resamples=1).units, return_index=True)[1] for split in splits]
    each = min(map(len, different)) // fits
    if each < 1:
        least = min(zip(map(len, different), (split.name for split in splits), strict=True))
        raise AssayError(
            f"split {least[1]!r} has {least[0]} different sequences, too few for {fits} fits on sequences of their own."
        )
    rng = np.random.default_rng(seed)
    return [
        split.take(np.sort(part))
        for split, own in zip(splits, different, strict=True)
        for part in rng.permutation(own)[: fits * each].reshape(fits, each)
    ]


def _directions(one: Encoded, samples: Samples, seed: int) -> Float[Tensor, "feature width"]:
    """The unit decoder rows of the features that are ever on, on the data of the fit."""
    (vectors,) = samples.some(one.place, ALIVE_ROWS, seed=seed, streams=(one.reads,))
    on = torch.unique(one.dictionary.encode(vectors).index)
    return normalize(one.dictionary.W_dec[on].double())


def matched(first: Float[Tensor, "feature width"], second: Float[Tensor, "other width"]) -> float:
    """The mean cosine of unit rows that are matched one to one; those of the longer list without a partner count 0."""
    if not len(first) or not len(second):
        return 0.0
    cosines = (first @ second.T).cpu().numpy()
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    return float(cosines[rows, columns].sum()) / max(cosines.shape)


def _pairs(same: Float[np.ndarray, "fit fit"], chosen: Sequence[int]) -> Float[np.ndarray, " pair"]:
    return np.array([same[first, second] for first, second in combinations(chosen, 2)])


def _p(same: Float[np.ndarray, "fit fit"], fits: int) -> float:
    """How many ways to part the fits in two halves give a dependence as large as the halves that they are of."""
    everyone = range(2 * fits)

    def dependence(half: Sequence[int]) -> float:
        other = [one for one in everyone if one not in half]
        return float((_pairs(same, half).mean() + _pairs(same, other).mean()) / 2 - same[np.ix_(half, other)].mean())

    own = dependence(range(fits))
    ways = [dependence(half) for half in combinations(everyone, fits) if 0 in half]
    return sum(way >= own - 1e-12 for way in ways) / len(ways)


def _chance(alive: Int[np.ndarray, " fit"], width: int, seed: int) -> float:
    """What as many random directions match at."""
    generator = torch.Generator().manual_seed(seed)
    count = round(float(alive.mean()))
    draws = [normalize(torch.randn(count, width, generator=generator, dtype=torch.float64)) for _ in range(2)]
    return matched(*draws)
