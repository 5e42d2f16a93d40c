"""Absorption: concepts whose own features are silent where another feature has taken their direction over."""

import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from assay._errors import AssayError
from assay._given import checked
from assay.diagnostics._concepts import Concept, concept_of, concepts_of
from assay.diagnostics._encoded import Batch, Encoded, encoded
from assay.diagnostics._reconstruction import judged_splits
from assay.engine import Engine
from assay.faithfulness import RATE, Draws, Weights, draws, estimate, gap
from assay.faithfulness._summary import weights_of
from assay.simplify import Simplification
from assay.subjects import Subject
from assay.tasks import UNSCORED, Split, Task, bound

ABSORPTION_COLUMNS = (
    "place", "concept", "split", "role", "sequences", "positives", "found", "main", "main_on",
    *(f"{name}{end}" for name in ("absorbed", "gap") for end in ("", "_low", "_high")),
    "absorber", "reason",
)  # fmt: skip

ALIGNED, SHARE, JUMP, MOST_MAIN = 0.025, 0.4, 0.03, 10
"""The least cosine of an absorbing feature with the probe, the least share of the vector's component along the probe
that it makes, the least gain of F1 for which one more feature is a main one, and the most of these."""

FIT_ROWS = 20_000
"""Vectors that probes are fitted on, at most."""

LEAST = 10
"""Vectors of each answer that a probe needs."""


@checked
def absorption(
    subject: Subject,
    task: Task,
    fitted: Simplification,
    *,
    concepts: Collection[str] | None = None,
    place: str | None = None,
    sequences: int = 500,
    resamples: int = 2_000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """How often a concept's own features are off because another has absorbed it: one row a (concept, split).

    A concept is a yes or no question about a prediction: a kind of the task ("closing_far"), or one of its features
    ("depth>=3", "depth=3", "class=digit"); by default all kinds, all classes, and every other feature by its median on
    iid. With x the vector at the position that the prediction is made at, z its codes, w the unit direction of a
    linear probe for the concept and b what is decoded of no feature (b_dec):

    - the *main* features are those of a sparse probe: ranked by the difference of their mean contributions where the
      concept holds and where it does not, as many as raise F1 by more than 0.03 each, at most ten;
    - a vector is *absorbed* if the probe rightly finds the concept there, all main features are 0, and the feature with
      the largest z_f <w, W_dec,f> has a cosine of at least 0.025 with w and makes at least 0.4 of <w, x - b>.

    A transcoder reads in one space and writes in another, and a direction is taken over where it is written: z are the
    codes of what enters the MLP, x is what the MLP gives, and so the probe finds what the MLP says of the concept; a
    skip connection belongs to b.

    `absorbed` is their share among the vectors where the probe rightly finds the concept (`found` of the `positives`
    where it holds), in [0, 1], lower is better; `gap` is `absorbed` on the split minus that on iid, positive where
    there is more under the shift. Both have `_low` and `_high`, over whole sequences. `main_on` is the share of the
    same vectors at which a main feature is on, `absorber` the feature that most of them are absorbed by. `reason` says
    why there is no number.

    Probes and main features come from one half of iid, drawn by `seed` (copies of a sequence on one side), and are
    judged on the other half and on all shifts. So under a shift a probe may find less (`found`), and what it finds is
    what the direction of iid still says there.

    Source: full absorption as in SAEBench (arXiv 2503.09532), after Chanin et al. (arXiv 2409.14507). Differences:
    concepts of the task instead of first letters; ranking by mean difference (Gurnee et al., arXiv 2305.01610) instead
    of an L1 probe; z_f <w, W_dec,f> instead of z_f cos(w, W_dec,f), which is the same where decoder rows have length 1;
    components from b on, as features have no part in it, instead of from 0; transcoders; intervals, and shifts.

    Raises AssayError for a recipe without dictionaries or not fitted, autoencoders that normalize vectors, unknown
    concepts, tasks that give none, and fewer than 4 different sequences of iid.
    """
    task = bound(task, subject.tokenizer)
    engine, one = Engine(subject), encoded(fitted, place)
    one.check_not_normalizing("absorption is not defined")
    splits = judged_splits(task, sequences)
    iid = splits[0]
    asked = concepts_of(task, iid) if concepts is None else [concept_of(task, name) for name in concepts]
    if not asked:
        raise AssayError(
            "this task has one kind of prediction and no features, so no concepts; name some by concepts=, or use a "
            "task with kinds."
        )
    fit_on, judged = _halves(iid, weights_of(iid, seed=seed, resamples=1), seed)
    probes = _probes(engine, one, fit_on, asked, seed)
    counts: dict[str, list[_Counts]] = {}
    weights: dict[str, Weights] = {}
    for split in (judged, *splits[1:]):
        counts[split.name] = _count(engine, one, split, probes)
        weights[split.name] = weights_of(split, seed=seed, resamples=resamples)
    rows = []
    for number, probe in enumerate(probes):
        found = {name: own[number] for name, own in counts.items()}
        drawn = {name: own.drawn(weights[name]) for name, own in found.items()}
        rows += [
            _row(one, probe, split, found[split.name], drawn[split.name], drawn[iid.name], level) for split in splits
        ]
    return pd.DataFrame(rows, columns=list(ABSORPTION_COLUMNS))


def _halves(split: Split, weights: Weights, seed: int) -> tuple[Split, Split]:
    """A split in two, copies of a sequence on one side."""
    if weights.size < 4:
        raise AssayError(
            f"split {split.name!r} has {weights.size} different sequences; probes are fitted on one half and judged on "
            "the other, so give at least 4."
        )
    first = np.random.default_rng(seed).permutation(weights.size)[: weights.size // 2]
    chosen = np.isin(weights.units, first)
    return split.take(np.flatnonzero(chosen)), split.take(np.flatnonzero(~chosen))


@dataclass(frozen=True)
class _Probe:
    """A concept's direction, offset and main features; or the reason why there are none."""

    concept: Concept
    direction: Float[Tensor, " width"] | None = None
    offset: float = 0.0
    main: tuple[int, ...] = ()
    reason: str | None = None


def _scored(batch: Batch) -> Bool[np.ndarray, " row"]:
    return batch.split.kinds[batch.valid] != UNSCORED


def _probes(engine: Engine, one: Encoded, split: Split, concepts: Sequence[Concept], seed: int) -> list[_Probe]:
    """The probe of every concept, from some of the scored predictions of a split."""
    scored = int(((split.kinds != UNSCORED) & split.valid).sum())
    rng = np.random.default_rng([seed, 1])
    kept = np.isin(np.arange(scored), rng.permutation(scored)[:FIT_ROWS])
    vectors: list[Tensor] = []
    entries: list[np.ndarray] = []
    known: list[np.ndarray] = []
    start = taken = 0
    length = one.dictionary.W_dec.double().norm(dim=1).cpu().numpy()
    for batch in one.batches(engine, split):
        chosen = _scored(batch)
        rows = np.flatnonzero(chosen)[kept[start : start + int(chosen.sum())]]
        start += int(chosen.sum())
        vectors.append(batch.wanted[torch.from_numpy(rows).to(batch.wanted.device)].double().cpu())
        place = np.full(len(chosen), -1)
        place[rows] = np.arange(taken, taken + len(rows))
        taken += len(rows)
        index, value = batch.codes.index.cpu().numpy(), batch.codes.value.double().cpu().numpy()
        entries.append(np.stack([place[batch.codes.rows.cpu().numpy()], index, value * length[index]]))
        both = [(concept.asked(batch.split), concept.holds(batch.split)) for concept in concepts]
        known.append(np.array(both)[:, :, batch.valid][:, :, rows])
    x, answers = torch.cat(vectors).numpy(), np.concatenate(known, axis=2)
    row, feature, value = np.concatenate(entries, axis=1)
    on = row >= 0
    codes = _Entries(row[on].astype(np.int64), feature[on].astype(np.int64), value[on], len(x), len(length))
    centre = x.mean(axis=0)
    scale = float(np.sqrt(((x - centre) ** 2).sum(axis=1).mean())) or 1.0
    return [
        _probe(concept, (x - centre) / scale, centre, scale, codes, use, holds)
        for concept, (use, holds) in zip(concepts, answers, strict=True)
    ]


@dataclass(frozen=True)
class _Entries:
    """What the features that are on make of each of some vectors: row, feature and contribution of every entry."""

    row: Int[np.ndarray, " entry"]
    feature: Int[np.ndarray, " entry"]
    value: Float[np.ndarray, " entry"]
    rows: int
    features: int

    def means(self, chosen: Bool[np.ndarray, " row"]) -> Float[np.ndarray, " feature"]:
        """The mean contribution of every feature over the chosen rows."""
        own = chosen[self.row]
        return np.bincount(self.feature[own], self.value[own], self.features) / chosen.sum()

    def columns(self, features: Int[np.ndarray, " chosen"]) -> Float[np.ndarray, "row chosen"]:
        """The contributions of some features, with zeros."""
        found = np.zeros((self.rows, len(features)))
        for number, feature in enumerate(features):
            own = self.feature == feature
            found[self.row[own], number] = self.value[own]
        return found


def _probe(  # noqa: PLR0917
    concept: Concept,
    vectors: Float[np.ndarray, "row width"],
    centre: Float[np.ndarray, " width"],
    scale: float,
    codes: _Entries,
    use: Bool[np.ndarray, " row"],
    holds: Bool[np.ndarray, " row"],
) -> _Probe:
    """The probe of one concept, from vectors about their centre and in units of their scale."""
    yes, no = int((use & holds).sum()), int((use & ~holds).sum())
    if min(yes, no) < LEAST:
        reason = f"of {yes + no} predictions of iid to fit on, it holds at {yes}; {LEAST} of each are needed"
        return _Probe(concept, reason=reason)
    model = _logistic(vectors[use], holds[use])
    direction = model.coef_[0] / scale
    norm = float(np.linalg.norm(direction))
    offset = float(model.intercept_[0]) - float(direction @ centre)
    return _Probe(concept, torch.from_numpy(direction / norm), offset / norm, _main(codes, use, holds))


def _logistic(values: Float[np.ndarray, "row column"], labels: Bool[np.ndarray, " row"]) -> LogisticRegression:
    """A logistic regression in which both answers weigh the same."""
    with warnings.catch_warnings():
        # A direction that is nearly found is a direction; what it tells is judged on other rows.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(class_weight="balanced", max_iter=1_000).fit(values, labels)


def _main(codes: _Entries, use: Bool[np.ndarray, " row"], holds: Bool[np.ndarray, " row"]) -> tuple[int, ...]:
    """The features of a sparse probe: one more as long as it raises F1 by enough."""
    difference = codes.means(use & holds) - codes.means(use & ~holds)
    order = np.argsort(-difference, kind="stable")[:MOST_MAIN]
    order = order[difference[order] > 0]
    columns = codes.columns(order)[use]
    columns /= columns.std(axis=0)
    best = 0.0
    for count in range(1, len(order) + 1):
        own = columns[:, :count]
        score = _f1(_logistic(own, holds[use]).predict(own), holds[use])
        if count > 1 and score - best <= JUMP:
            return tuple(order[: count - 1].tolist())
        best = score
    return tuple(order.tolist())


def _f1(said: Bool[np.ndarray, " row"], right: Bool[np.ndarray, " row"]) -> float:
    return 2 * float((said & right).sum()) / float(said.sum() + right.sum())


@dataclass
class _Counts:
    """By sequence: predictions where a concept holds, those that the probe finds, and of these those absorbed and those
    with a main feature on; and how many are absorbed by each feature.
    """

    positives: Int[np.ndarray, " sequence"]
    found: Int[np.ndarray, " sequence"]
    absorbed: Int[np.ndarray, " sequence"]
    main_on: Int[np.ndarray, " sequence"]
    by: Int[np.ndarray, " feature"]

    @classmethod
    def none(cls, sequences: int, features: int) -> "_Counts":
        """Before anything is counted."""
        positives, found, absorbed, main_on = np.zeros((4, sequences), dtype=np.int64)
        return cls(positives, found, absorbed, main_on, np.zeros(features, dtype=np.int64))

    def drawn(self, weights: Weights) -> Draws:
        """Draws of the share that is absorbed."""
        return draws(self.absorbed[None, :, None].astype(float), self.found[None, :, None], weights, bounds=[RATE])


def _count(engine: Engine, one: Encoded, split: Split, probes: Sequence[_Probe]) -> list[_Counts]:
    """What is absorbed on a split, concept by concept."""
    found = [_Counts.none(len(split), one.dictionary.features) for _ in probes]
    for batch in one.batches(engine, split):
        for probe, own in zip(probes, found, strict=True):
            if probe.direction is None:
                continue
            holds = probe.concept.holds(batch.split)[batch.valid]
            finds, absorbed, on = _absorbed(one, batch, probe)
            np.add.at(own.positives, batch.sequence[holds], 1)
            np.add.at(own.found, batch.sequence[holds & finds], 1)
            np.add.at(own.main_on, batch.sequence[holds & finds & on], 1)
            rows = holds & finds & (absorbed >= 0)
            np.add.at(own.absorbed, batch.sequence[rows], 1)
            np.add.at(own.by, absorbed[rows], 1)
    return found


def _absorbed(
    one: Encoded, batch: Batch, probe: _Probe
) -> tuple[Bool[np.ndarray, " row"], Int[np.ndarray, " row"], Bool[np.ndarray, " row"]]:
    """Of every vector: does the probe find the concept, which feature absorbs it (-1: none), is a main feature on."""
    assert probe.direction is not None
    direction = probe.direction
    vectors, codes, decoder = batch.wanted.double().cpu(), batch.codes, one.dictionary.W_dec.double().cpu()
    base = one.dictionary.without_features(batch.vectors.double()).cpu()
    along = decoder @ direction
    cosine = along / decoder.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    index, rows = codes.index.cpu(), codes.rows.cpu()
    parts = codes.value.double().cpu() * along[index]
    # The largest part of every row, by sorting entries by it and then by row; the last of a row is the largest.
    order = torch.from_numpy(np.lexsort((parts.numpy(), rows.numpy())))
    last = codes.start.cpu() + codes.counts.cpu() - 1
    has = codes.counts.cpu() > 0
    best = torch.full((len(vectors),), -1, dtype=torch.int64)
    best[has] = order[last[has]]
    whole = (vectors - base) @ direction
    part, feature = parts[best.clamp_min(0)] if len(parts) else whole, index[best.clamp_min(0)] if len(index) else best
    aligned = has & (cosine[feature.clamp_min(0)] >= ALIGNED) & (whole > 0) & (part >= SHARE * whole)
    on = torch.zeros(len(vectors), dtype=torch.bool)
    on[rows[torch.isin(index, torch.tensor(probe.main, dtype=torch.int64))]] = True
    finds = vectors @ direction + probe.offset > 0
    absorbed = torch.where(aligned & ~on, feature, torch.full_like(feature, -1))
    return finds.numpy(), absorbed.numpy(), on.numpy()


def _row(  # noqa: PLR0917
    one: Encoded, probe: _Probe, split: Split, own: _Counts, drawn: Draws, of_iid: Draws, level: float
) -> dict[str, Any]:
    """The row of one concept and split."""
    found = int(own.found.sum())
    row: dict[str, Any] = {
        **dict.fromkeys(ABSORPTION_COLUMNS, np.nan),
        "place": one.name,
        "concept": probe.concept.name,
        "split": split.name,
        "role": split.role,
        "sequences": int((own.found > 0).sum()),
        "positives": int(own.positives.sum()),
        "found": found,
        "main": probe.main,
        "absorber": None,
        "reason": probe.reason,
    }
    if probe.reason is not None:
        return row
    if not found:
        return row | {"reason": "the probe finds the concept nowhere that it holds"}
    limits = estimate(drawn, level=level)
    row["main_on"] = float(own.main_on.sum()) / found
    row |= dict(_limits("absorbed", limits.value, limits.low, limits.high))
    if split.role != "iid" and np.isfinite(of_iid.value[0]):
        change, _ = gap(of_iid, drawn, signs=np.array([-1.0]), level=level)
        row |= dict(_limits("gap", change.value, change.low, change.high))
    if own.by.any():
        row["absorber"] = int(own.by.argmax())
    return row


def _limits(name: str, *found: Float[np.ndarray, " column"]) -> Iterator[tuple[str, float]]:
    for end, value in zip(("", "_low", "_high"), found, strict=True):
        yield f"{name}{end}", float(value[0])
