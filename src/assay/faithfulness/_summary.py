"""From the scores of cells to estimates, gaps and the table of sequences."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from assay.faithfulness._cells import REFITTED, Candidate
from assay.faithfulness._columns import CONTROL_COLUMNS, GAP_COLUMNS
from assay.faithfulness._effects import EFFECT_COLUMNS, EFFECT_METRICS, OfPairs, effect_rows
from assay.faithfulness._metrics import Metric
from assay.faithfulness._of_models import MODEL_COLUMNS, model_rows
from assay.faithfulness._scores import ALL, MARGIN, Column, NotFiniteError, Scores
from assay.faithfulness._statistics import (
    CHANGE_OF_RATE,
    NO_MARGIN,
    RATE,
    UNBOUNDED,
    Bounds,
    Draws,
    Estimates,
    Matched,
    Weights,
    draws,
    estimate,
    gap,
    holm,
    matched_gaps,
    share_recovered,
)
from assay.faithfulness._told_apart import not_told_apart
from assay.simplify import is_whole
from assay.subjects import Subject
from assay.tasks import Kind, Split, sequence_hashes


def weights_of(split: Split, *, seed: int, resamples: int) -> Weights:
    """The weights of a split's sequences: one seed for each split, so that its proxies are compared under the same."""
    digest = hashlib.sha256(json.dumps([seed, split.name]).encode()).digest()
    number: dict[bytes, int] = {}
    units = np.array([number.setdefault(one, len(number)) for one in sequence_hashes(split)])
    return Weights(units, resamples, int.from_bytes(digest[:6], "little"))


def bounds_of(metric: Metric) -> Bounds:
    """What a metric can be at one prediction, as far as its draws use it."""
    return RATE if metric.unit == "rate" else UNBOUNDED


class Summary(NamedTuple):
    """Results (a row a split, metric, kind, feature and bin), gaps (a row a shift, metric and kind), what stands beside
    the controls (a row a proxy and split), the largest difference of a logit, by proxy and site and by split, what is
    said of whole models (a row a proxy, split and kind), and effects on the answer (a row a proxy and split of pairs).
    """

    results: pd.DataFrame
    gaps: pd.DataFrame
    controls: pd.DataFrame
    largest: Mapping[tuple[str, str], Mapping[str, float]]
    models: pd.DataFrame
    effects: pd.DataFrame


@dataclass(frozen=True)
class _Way:
    """How a comparison is summed up: metrics, the pairs (metric, kind) that have gaps, weights by split, level."""

    by_name: Mapping[str, Metric]
    pairs: Sequence[tuple[str, str]]
    weights: Mapping[str, Weights]
    level: float

    @property
    def bounds(self) -> list[Bounds]:
        """Those of the pairs."""
        return [bounds_of(self.by_name[metric]) for metric, _ in self.pairs]

    @property
    def signs(self) -> Float[np.ndarray, " pair"]:
        """1 where a higher number is more faithful, else -1."""
        return np.array([1.0 if self.by_name[metric].higher_is_better else -1.0 for metric, _ in self.pairs])


# One thread: products this small gain nothing from more, wait for each other on a machine that is busy, and differ in
# their last digit with the number of threads.
@threadpool_limits.wrap(limits=1, user_api="blas")
def summarise(
    judged: Sequence[Metric],
    kinds: Sequence[Kind],
    variants: Sequence[Subject],
    candidates: Sequence[Candidate],
    *,
    primary: tuple[str, str],
    splits: Mapping[str, Split],
    found: Mapping[tuple[int, str, str], Scores | NotFiniteError],
    seed: int,
    resamples: int,
    level: float,
) -> Summary:
    """Estimates, gaps and comparisons with controls of all candidates; `primary` is the metric and kind of verdicts."""
    iid = next(name for name, split in splits.items() if split.role == "iid")
    way = _Way(
        by_name={metric.name: metric for metric in judged},
        pairs=_pairs(judged, kinds),
        weights={name: weights_of(split, seed=seed, resamples=resamples) for name, split in splits.items()},
        level=level,
    )
    again_of = _draws_of(candidates)

    def measured(item: Candidate, trained: bool) -> tuple[dict[str, _Measured], list[dict[str, Any]]]:
        """A candidate on every split on which it was judged, and the rows of that."""
        members = [number for number, variant in enumerate(variants) if variant.trained == trained]
        base = _base(variants[members[0]], item)
        cells: dict[str, _Measured] = {}
        rows: list[dict[str, Any]] = []
        for name in splits:
            if (members[0], item.key, name) not in found:
                continue
            draws_of_it = again_of[item.of_all_draws]
            scores = [[found[number, one.key, name] for one in draws_of_it] for number in members]
            failed = [cell for cell in chain(*scores) if isinstance(cell, NotFiniteError)]
            if failed:
                rows += _unmeasured({**base, "split": name}, way, str(failed[0]))
                continue
            cells[name] = _Measured.of(scores, way, name)  # type: ignore[arg-type]
            rows += _rows({**base, "split": name}, cells[name], way)
        return cells, rows

    by_key = {item.key: item for item in candidates}
    results: list[dict[str, Any]] = []
    gaps: list[dict[str, Any]] = []
    beside: list[dict[str, Any]] = []
    largest: dict[tuple[str, str], dict[str, float]] = {}
    of_pairs: dict[str, dict[str, OfPairs]] = {}
    for trained in sorted({variant.trained for variant in variants}, reverse=True):
        # What was measured of a candidate is dropped with its last gap: a long run does not fit in memory. Only the
        # primary column and those of pairs are kept, for the comparisons with controls.
        rows: dict[str, list[dict[str, Any]]] = {}
        columns: dict[str, dict[str, _Column]] = {}
        for item in candidates:
            if item.refitted or item.redraw or (item.is_control and not trained):
                continue
            own, rows[item.key] = measured(item, trained)
            if not trained and not own:  # what replaces a model whole is not judged on a shuffled copy
                continue
            if trained:
                largest[item.name, item.site] = {name: cell.largest for name, cell in own.items()}
                of_pairs[item.key] = _of_pairs(own, primary[1])
            columns[item.key] = {name: cell.column(primary) for name, cell in own.items()}
            again: dict[str, _Measured] = {}
            other = by_key.get(f"{item.name}{REFITTED} at {item.site}")
            if other is not None and trained:
                again, rows[other.key] = measured(other, trained)
                of_pairs[other.key] = _of_pairs(again, primary[1])
            variant = next(variant for variant in variants if variant.trained == trained)
            for name, split in splits.items():
                if split.role == "shift":
                    base = {**_base(variant, item), "split": name}
                    gaps += _gap_rows(base, own.get(iid), own.get(name), again.get(name), way=way, names=(iid, name))
        results += [row for item in candidates for row in rows.get(item.key, ())]
        if trained:
            proxies = [item for item in candidates if not item.is_control]
            beside += [row for item in proxies for row in _beside_controls(item, columns, way, primary, splits)]
    return Summary(
        pd.DataFrame(results),
        _beside(_adjusted(pd.DataFrame(gaps, columns=list(GAP_COLUMNS))), candidates),
        pd.DataFrame(beside, columns=list(CONTROL_COLUMNS)),
        largest,
        pd.DataFrame(_of_models(variants, candidates, splits, kinds, way, found), columns=list(MODEL_COLUMNS)),
        pd.DataFrame(_effects(candidates, splits, of_pairs, way, iid), columns=list(EFFECT_COLUMNS)),
    )


def _of_models(  # noqa: PLR0917
    variants: Sequence[Subject],
    candidates: Sequence[Candidate],
    splits: Mapping[str, Split],
    kinds: Sequence[Kind],
    way: _Way,
    found: Mapping[tuple[int, str, str], Scores | NotFiniteError],
) -> Iterator[dict[str, Any]]:
    """What is said of whole models beside means."""
    seeds = [number for number, variant in enumerate(variants) if variant.trained]
    for item in candidates:
        if item.is_control or not is_whole(item.simplification):
            continue
        for name, split in splits.items():
            cells = [found[seed, item.key, name] for seed in seeds]
            scores = [cell for cell in cells if isinstance(cell, Scores)]
            if len(scores) == len(cells):
                base = {"proxy": item.name, "site": item.site}
                yield from model_rows(base, scores, split, kinds, weights=way.weights[name], level=way.level)


def _effects(
    candidates: Sequence[Candidate],
    splits: Mapping[str, Split],
    of_pairs: Mapping[str, Mapping[str, OfPairs]],
    way: _Way,
    iid: str,
) -> Iterator[dict[str, Any]]:
    """The effects on the answer of all that has an ablation, on the splits of pairs, if they were measured.

    What was refitted on a shift is judged on that shift alone, from the same ablated model as what was not.
    """
    named = [name for name, split in splits.items() if split.has_pairs]
    if not set(EFFECT_METRICS) <= set(way.by_name):
        return
    for item in candidates:
        if item.ablation is not None and item.key in of_pairs:
            base = {"proxy": item.name, "site": item.site, "is_control": item.is_control, "ablation": item.ablation}
            ablated = of_pairs.get(f"{item.ablation} at {item.site}", {})
            own = of_pairs[item.key]
            judged = [name for name in named if name in own] if item.refitted else named
            yield from effect_rows(base, own, ablated, judged, iid=iid, weights=way.weights, level=way.level)


def _of_pairs(cells: "Mapping[str, _Measured]", kind: str) -> dict[str, OfPairs]:
    """What was measured of pairs of one kind, by split."""
    return {name: pairs for name, cell in cells.items() if (pairs := cell.of_pairs(kind)) is not None}


def _pairs(judged: Sequence[Metric], kinds: Sequence[Kind]) -> list[tuple[str, str]]:
    """Every metric on every kind on which it has a meaning."""
    undetermined = {kind.name for kind in kinds if not kind.determined}
    return [
        (metric.name, kind)
        for metric in judged
        for kind in (ALL, *(kind.name for kind in kinds))
        if not (metric.needs_answer and kind in undetermined)
    ]


def _draws_of(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """The candidates by the name that all draws of a control share."""
    found: dict[str, list[Candidate]] = {}
    for item in candidates:
        found.setdefault(item.of_all_draws, []).append(item)
    return found


def _base(subject: Subject, item: Candidate) -> dict[str, Any]:
    """What all rows of a candidate begin with."""
    return {
        "subject": subject.name,
        "trained": subject.trained,
        "proxy": item.name,
        "site": item.site,
        "is_control": item.is_control,
    }


def _adjusted(frame: pd.DataFrame) -> pd.DataFrame:
    """The gaps with their p-values adjusted by Holm, controls apart, over all that has one metric, kind and subject."""
    frame["p_holm"] = np.nan
    for _, family in frame[~frame["is_control"].astype(bool)].groupby(["trained", "metric", "kind"], sort=False):
        frame.loc[family.index, "p_holm"] = holm(family["p"].tolist())
    return frame


def _beside(frame: pd.DataFrame, candidates: Sequence[Candidate]) -> pd.DataFrame:
    """The gaps with those of the perturbations of equal size in three more columns (NaN where there is none)."""
    key = ["trained", "site", "split", "metric", "kind"]
    names = {item.name: item.perturbation for item in candidates if item.perturbation is not None}
    columns = {"gap": "perturbed", "low": "perturbed_low", "high": "perturbed_high"}
    of_controls = frame[[*key, "proxy", *columns]].rename(columns={**columns, "proxy": "perturbation"})
    named = frame.assign(perturbation=frame["proxy"].map(names).astype(object))
    return named.merge(of_controls, how="left", on=[*key, "perturbation"]).drop(columns="perturbation")


@dataclass(frozen=True)
class _Column:
    """Sums and counts of one column, with the axes (seed, sequence, 1)."""

    sums: Float[np.ndarray, "seed sequence 1"]
    counts: Int[np.ndarray, "seed sequence 1"]


@dataclass(frozen=True)
class _Measured:
    """The cells of all seeds on one split: kinds, features and layers with their estimates, and what stands by margin.

    `limits` has an entry for each of `columns`, `draws` for each of the pairs; `strata[metric, kind]` are sums and
    counts (seed, sequence, bin). A control that was drawn several times counts each draw as a seed, where there is one
    training seed; where there are more, a seed has the mean over its draws. What is not told apart from the error of
    stored answers counts nothing, and `unsure[metric, kind]` says why.
    """

    columns: tuple[Column, ...]
    sums: Float[np.ndarray, "seed sequence column"]
    counts: Int[np.ndarray, "seed sequence column"]
    strata: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]]
    place: Mapping[tuple[str, str], int]
    limits: Estimates
    draws: Draws
    seeds: int
    skipped: Mapping[str, str]
    unsure: Mapping[tuple[str, str], str]
    largest: float

    @classmethod
    def of(cls, cells: Sequence[Sequence[Scores]], way: _Way, split: str) -> "_Measured":
        """From the cells of every seed, one a draw."""
        columns = cells[0][0].columns
        sums = np.stack([np.stack([cell.sums for cell in draws]) for draws in cells])
        counts = np.stack([draws[0].counts for draws in cells])
        if len(cells) == 1:
            sums, counts = sums[0], np.repeat(counts, sums.shape[1], axis=0)
        else:
            sums = sums.mean(axis=1)
        unsure = not_told_apart(columns, sums, counts, max(cell.kl_error for cell in chain(*cells)))
        by_margin: dict[tuple[str, str], list[int]] = {}
        for index, column in enumerate(columns):
            if column.feature == MARGIN:
                by_margin.setdefault((column.metric, column.kind), []).append(index)
                by_margin.setdefault((column.metric, ALL), []).append(index)
        for pair in unsure:
            by_margin.pop(pair, None)
            alone = columns.index(Column(*pair, "", 0))
            sums[..., alone] = counts[..., alone] = 0
        rest = [index for index, column in enumerate(columns) if column.feature != MARGIN]
        kept = tuple(columns[index] for index in rest)
        place = {(column.metric, column.kind): i for i, column in enumerate(kept) if not column.feature}
        drawn = draws(
            sums[..., rest],
            counts[..., rest],
            way.weights[split],
            bounds=[bounds_of(way.by_name[column.metric]) for column in kept],
        )
        negative = sums[..., rest].min(axis=(0, 1)) < 0
        return cls(
            columns=kept,
            sums=sums[..., rest],
            counts=counts[..., rest],
            strata={pair: (sums[..., index], counts[..., index]) for pair, index in by_margin.items()},
            place=place,
            limits=estimate(drawn, level=way.level, nonnegative=~negative),
            draws=drawn.select([place[pair] for pair in way.pairs]),
            seeds=len(cells),
            skipped=cells[0][0].skipped,
            unsure=unsure,
            largest=max(cell.largest for cell in chain(*cells)),
        )

    def column(self, pair: tuple[str, str]) -> _Column:
        """One kind as a whole."""
        index = [self.place[pair]]
        return _Column(self.sums[..., index], self.counts[..., index])

    def of_pairs(self, kind: str) -> OfPairs | None:
        """The pairs of one kind; None where they were not measured."""
        places = [place for metric in EFFECT_METRICS if (place := self.place.get((metric, kind))) is not None]
        if len(places) < len(EFFECT_METRICS) or not self.skipped.keys().isdisjoint(EFFECT_METRICS):
            return None
        subject, proxy, deviation = (self.sums[..., place] for place in places)
        return OfPairs(subject, proxy, deviation, self.counts[..., places[0]])

    def at(self, pairs: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
        """Sums and counts of kinds as wholes, in the order of `pairs`."""
        index = [self.place[pair] for pair in pairs]
        return self.sums[..., index], self.counts[..., index]


def _gap_rows(
    base: Mapping[str, Any],
    on_iid: _Measured | None,
    on_shift: _Measured | None,
    again: _Measured | None,
    *,
    way: _Way,
    names: tuple[str, str],
) -> Iterator[dict[str, Any]]:
    """One row a metric and kind; NaN where either side was not measured.

    `again` is the same recipe refitted on the shift, where it was; `names` are those of the two splits.
    """
    columns: dict[str, Any] = {}
    pairs, signs = way.pairs, way.signs
    matched = [Matched.nothing("not measured")] * len(pairs)
    if on_iid is not None and on_shift is not None:
        values, p_values = gap(on_iid.draws, on_shift.draws, signs=signs, level=way.level)
        columns = {**_limits("gap", values), "interval": values.how, "error": values.error,
                   "degrees": values.degrees, "p": p_values}  # fmt: skip
        columns |= _per_sequence(on_iid, on_shift, way, names)
        weights = way.weights[names[0]], way.weights[names[1]]
        both = on_iid.strata.keys() & on_shift.strata.keys()
        places = [place for place, pair in enumerate(pairs) if pair in both and not base["is_control"]]
        reason = "controls are not compared at equal margin" if base["is_control"] else NO_MARGIN
        unsure = {**on_shift.unsure, **on_iid.unsure}
        matched = [Matched.nothing(unsure.get(pair, reason)) for pair in pairs]
        compared = matched_gaps(
            [on_iid.strata[pairs[place]] for place in places],
            [on_shift.strata[pairs[place]] for place in places],
            weights,
            signs=signs[places].tolist(),
            bounds=[way.bounds[place] for place in places],
            level=way.level,
        )
        for place, one in zip(places, compared, strict=True):
            matched[place] = one
        if again is not None:
            before, counts = on_shift.at(pairs)
            differences = signs * (again.at(pairs)[0] - before)
            bounds = [CHANGE_OF_RATE if bound == RATE else UNBOUNDED for bound in way.bounds]
            drawn = draws(differences, counts, weights[1], bounds=bounds)
            removed = estimate(drawn, level=way.level, nonnegative=np.zeros(len(pairs), dtype=bool))
            remaining, _ = gap(on_iid.draws, again.draws, signs=signs, level=way.level)
            columns |= {**_limits("removed", removed), **_limits("remaining", remaining)}
    for place, (metric, kind) in enumerate(pairs):
        whole = matched[place]
        known = {name: column[place] for name, column in columns.items()}
        parts = ("effective", "overlap", "overlap_low", "overlap_high", "outside", "outside_low", "outside_high")
        yield {
            **base,
            "metric": metric,
            "kind": kind,
            **dict.fromkeys(GAP_COLUMNS[8:], np.nan),
            "interval": "none",
            **known,
            "unit": way.by_name[metric].unit,
            "matched": whole.value,
            **{f"matched_{name}": getattr(whole, name) for name in ("low", "high", "error", "degrees", "reason")},
            **{name: getattr(whole, name) for name in parts},
        }


def _per_sequence(
    on_iid: _Measured, on_shift: _Measured, way: _Way, names: tuple[str, str]
) -> dict[str, Float[np.ndarray, " pair"]]:
    """The gaps of rates between means of sequences, each counting once; NaN for what is no rate."""
    rates = [place for place, bounds in enumerate(way.bounds) if bounds == RATE]
    found = {f"per_sequence{end}": np.full(len(way.pairs), np.nan) for end in ("", "_low", "_high")}
    sides = []
    for side, name in zip((on_iid, on_shift), names, strict=True):
        sums, counts = side.at([way.pairs[place] for place in rates])
        there = counts > 0
        means = np.divide(sums, counts, out=np.zeros_like(sums), where=there)
        sides.append(draws(means, there.astype(np.int64), way.weights[name], bounds=[RATE] * len(rates)))
    values, _ = gap(sides[0], sides[1], signs=way.signs[rates], level=way.level)
    for name, column in _limits("per_sequence", values).items():
        found[name][rates] = column
    return found


def _beside_controls(
    item: Candidate,
    columns: Mapping[str, Mapping[str, _Column]],
    way: _Way,
    primary: tuple[str, str],
    splits: Mapping[str, Split],
) -> Iterator[dict[str, Any]]:
    """A proxy beside its own control and what ablates all that it could keep, on every split, sequences paired."""
    sign = 1.0 if way.by_name[primary[0]].higher_is_better else -1.0
    for split in splits:
        row: dict[str, Any] = dict.fromkeys(CONTROL_COLUMNS, np.nan)
        row |= {"proxy": item.name, "site": item.site, "split": split, "control": item.control}
        own = columns[item.key].get(split)
        control = columns.get(f"{item.control} at {item.site}", {}).get(split)
        ablated = columns.get(f"{item.ablation} at {item.site}", {}).get(split)
        if own is not None and control is not None:
            difference = draws(
                sign * (own.sums - control.sums),
                np.maximum(own.counts, control.counts),
                way.weights[split],
                bounds=[CHANGE_OF_RATE if bounds_of(way.by_name[primary[0]]) == RATE else UNBOUNDED],
            )
            found = estimate(difference, level=way.level, nonnegative=np.array([False]))
            row |= {name: column[0] for name, column in _limits("beyond_control", found).items()}
        reason: str | None = "no ablation was judged"
        if own is not None and ablated is not None:
            whole = draws(ablated.sums, ablated.counts, way.weights[split], bounds=[bounds_of(way.by_name[primary[0]])])
            found = estimate(whole, level=way.level)
            row |= {"ablated": found.value[0], "ablated_low": found.low[0], "ablated_high": found.high[0]}
            share = None
            if bounds_of(way.by_name[primary[0]]) == RATE and sign > 0:
                share = share_recovered(
                    own.counts - own.sums,
                    ablated.counts - ablated.sums,
                    own.counts,
                    way.weights[split],
                    level=way.level,
                )
                reason = f"{item.ablation} changes no prediction"
            else:
                reason = "defined for rates of agreement"
            if share is not None:
                row |= dict(zip(("recovered", "recovered_low", "recovered_high"), share, strict=True))
                reason = None
        yield {**row, "recovered_reason": reason}


def _limits(name: str, found: Estimates) -> dict[str, Any]:
    """The columns of an estimate and its limits."""
    prefix = "" if name == "gap" else f"{name}_"
    return {name: found.value, f"{prefix}low": found.low, f"{prefix}high": found.high}


def _unmeasured(base: Mapping[str, Any], way: _Way, reason: str) -> Iterator[dict[str, Any]]:
    """Rows that say that nothing was measured, and why."""
    for metric, kind in way.pairs:
        yield {
            **base,
            "metric": metric,
            "kind": kind,
            "feature": "",
            "bin": 0,
            "estimate": np.nan,
            "low": np.nan,
            "high": np.nan,
            "interval": "none",
            "sequences": 0,
            "predictions": 0,
            "seeds": 0,
            "unit": way.by_name[metric].unit,
            "higher_is_better": way.by_name[metric].higher_is_better,
            "reason": reason,
        }


def _rows(base: Mapping[str, Any], measured: _Measured, way: _Way) -> list[dict[str, Any]]:
    columns, counts, limits = measured.columns, measured.counts, measured.limits
    predictions = counts[0].sum(axis=0)
    sequences = (counts[0] > 0).sum(axis=0)
    rows = []
    for index, column in enumerate(columns):
        if column.feature and predictions[index] == 0:
            continue
        reason = None
        if column.metric in measured.skipped:
            reason = f"skipped: {measured.skipped[column.metric]}"
        elif not column.feature and (column.metric, column.kind) in measured.unsure:
            reason = f"skipped: {measured.unsure[column.metric, column.kind]}"
        elif predictions[index] == 0:
            reason = "no such prediction in this split"
        elif limits.how[index] == "none":
            reason = "fewer than two sequences: no interval"
        rows.append(
            {
                **base,
                "metric": column.metric,
                "kind": column.kind,
                "feature": column.feature,
                "bin": column.bin,
                "estimate": limits.value[index],
                "low": limits.low[index],
                "high": limits.high[index],
                "interval": limits.how[index],
                "sequences": int(sequences[index]),
                "predictions": int(predictions[index]),
                "seeds": measured.seeds,
                "unit": way.by_name[column.metric].unit,
                "higher_is_better": way.by_name[column.metric].higher_is_better,
                "reason": reason,
            }
        )
    return rows


def sequence_tables(
    variants: Sequence[Subject],
    candidates: Sequence[Candidate],
    found: Mapping[tuple[int, str, str], Scores | NotFiniteError],
) -> Iterator[pyarrow.Table]:
    """One table a cell, one row a (subject, seed, proxy, draw, site, split, metric, kind, sequence) with predictions.

    `draw` numbers the draws of a control that is drawn at random, from 1.
    """
    by_key = {item.key: item for item in candidates}
    for (number, key, split), scores in found.items():
        if isinstance(scores, NotFiniteError):
            continue
        item, variant = by_key[key], variants[number]
        unsure = not_told_apart(scores.columns, scores.sums[None], scores.counts[None], scores.kl_error)
        whole = [
            index
            for index, column in enumerate(scores.columns)
            if not column.feature and (column.metric, column.kind) not in unsure
        ]
        column, sequence = np.nonzero(scores.counts[:, whole].T)
        counts = scores.counts[:, whole][sequence, column]
        size = len(column)
        yield pyarrow.table(
            {
                "subject": _coded([variant.name], np.zeros(size, dtype=np.int32)),
                "seed": pyarrow.array(np.full(size, -1 if variant.seed is None else variant.seed, dtype=np.int32)),
                "trained": pyarrow.array(np.full(size, variant.trained)),
                "proxy": _coded([item.name], np.zeros(size, dtype=np.int32)),
                "draw": pyarrow.array(np.full(size, item.redraw + 1, dtype=np.int32)),
                "site": _coded([item.site], np.zeros(size, dtype=np.int32)),
                "split": _coded([split], np.zeros(size, dtype=np.int32)),
                "metric": _coded([scores.columns[index].metric for index in whole], column),
                "kind": _coded([scores.columns[index].kind for index in whole], column),
                "sequence": pyarrow.array(sequence.astype(np.int32)),
                "mean": pyarrow.array((scores.sums[:, whole][sequence, column] / counts).astype(np.float32)),
                "predictions": pyarrow.array(counts.astype(np.int32)),
            }
        )


def _coded(values: Sequence[str], index: np.ndarray) -> pyarrow.DictionaryArray:
    """The values at `index`, each stored once."""
    names = sorted(set(values))
    codes = np.array([names.index(value) for value in values], dtype=np.int32)
    return pyarrow.DictionaryArray.from_arrays(codes[index], names)
