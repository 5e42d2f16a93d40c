"""From the scores of cells to estimates, gaps and the table of sequences."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow

from assay.faithfulness._cells import REFITTED, Candidate
from assay.faithfulness._metrics import Metric
from assay.faithfulness._scores import ALL, MARGIN, Column, NotFiniteError, Scores
from assay.faithfulness._statistics import (
    NO_MARGIN,
    Estimates,
    Matched,
    Method,
    change,
    estimate,
    gap,
    holm,
    matched_gap,
)
from assay.subjects import Subject
from assay.tasks import Kind, Split


def _rng(seed: int, *names: str) -> np.random.Generator:
    """A generator of its own for each estimate, so that results do not depend on their order."""
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def summarise(
    judged: Sequence[Metric],
    kinds: Sequence[Kind],
    variants: Sequence[Subject],
    candidates: Sequence[Candidate],
    *,
    splits: Mapping[str, Split],
    found: Mapping[tuple[int, str, str], Scores | NotFiniteError],
    seed: int,
    resamples: int,
    level: float,
    method: Method,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The results (a row a split, metric, kind, feature and bin) and the gaps (a row a shift, metric and kind)."""
    by_name = {metric.name: metric for metric in judged}
    iid = next(name for name, split in splits.items() if split.role == "iid")
    options: dict[str, Any] = {"resamples": resamples, "level": level, "method": method}
    undetermined = {kind.name for kind in kinds if not kind.determined}
    pairs = [
        (metric.name, kind)
        for metric in judged
        for kind in (ALL, *(kind.name for kind in kinds))
        if not (metric.needs_answer and kind in undetermined)
    ]

    def measured(item: Candidate, trained: bool) -> tuple[dict[str, _Measured], list[dict[str, Any]]]:
        """A candidate on every split on which it was judged, and the rows of that."""
        members = [number for number, variant in enumerate(variants) if variant.trained == trained]
        base = _base(variants[members[0]], item)
        cells: dict[str, _Measured] = {}
        rows: list[dict[str, Any]] = []
        for name in splits:
            if (members[0], item.key, name) not in found:
                continue
            scores = [found[number, item.key, name] for number in members]
            failed = [cell for cell in scores if isinstance(cell, NotFiniteError)]
            if failed:
                rows += _unmeasured({**base, "split": name}, pairs, by_name, str(failed[0]))
                continue
            cell = _Measured.of([cell for cell in scores if isinstance(cell, Scores)])
            cells[name] = cell.estimated(by_name, _rng(seed, item.key, name, str(trained)), options)
            rows += _rows({**base, "split": name}, cells[name], by_name)
        return cells, rows

    by_key = {item.key: item for item in candidates}
    results: list[dict[str, Any]] = []
    gaps: list[dict[str, Any]] = []
    for trained in sorted({variant.trained for variant in variants}, reverse=True):
        # What was measured of a candidate is dropped with its last gap: a long run does not fit in memory.
        rows: dict[str, list[dict[str, Any]]] = {}
        for item in candidates:
            if item.refitted or (item.is_control and not trained):
                continue
            own, rows[item.key] = measured(item, trained)
            again: dict[str, _Measured] = {}
            other = by_key.get(f"{item.name}{REFITTED} at {item.site}")
            if other is not None and trained:
                again, rows[other.key] = measured(other, trained)
            variant = next(variant for variant in variants if variant.trained == trained)
            for name, split in splits.items():
                if split.role == "shift":
                    gaps += _gap_rows(
                        {**_base(variant, item), "split": name},
                        own.get(iid),
                        own.get(name),
                        again.get(name),
                        pairs=pairs,
                        by_name=by_name,
                        rngs=tuple(_rng(seed, what, item.key, name, str(trained)) for what in _PARTS),
                        options=options,
                    )
        results += [row for item in candidates for row in rows.get(item.key, ())]
    frame = pd.DataFrame(gaps, columns=list(_GAP_COLUMNS))
    frame["p_holm"] = np.nan
    for _, family in frame[~frame["is_control"].astype(bool)].groupby(["trained", "metric", "kind"], sort=False):
        frame.loc[family.index, "p_holm"] = holm(family["p"].tolist())
    return pd.DataFrame(results), _beside(frame, candidates)


_PARTS = ("gap", "removed", "remaining")

_GAP_COLUMNS = (
    "subject", "trained", "proxy", "site", "is_control", "split", "metric", "kind",
    "gap", "low", "high", "interval", "error", "degrees", "p", "unit",
    "matched", "matched_low", "matched_high", "matched_error", "matched_degrees", "effective", "overlap", "outside",
    "matched_reason", "removed", "removed_low", "removed_high", "remaining", "remaining_low", "remaining_high",
)  # fmt: skip


def _base(subject: Subject, item: Candidate) -> dict[str, Any]:
    """What all rows of a candidate begin with."""
    return {
        "subject": subject.name,
        "trained": subject.trained,
        "proxy": item.name,
        "site": item.site,
        "is_control": item.is_control,
    }


def _beside(frame: pd.DataFrame, candidates: Sequence[Candidate]) -> pd.DataFrame:
    """The gaps with those of the perturbations of equal size in three more columns (NaN where there is none)."""
    key = ["trained", "site", "split", "metric", "kind"]
    names = {item.name: item.perturbation for item in candidates if item.perturbation is not None}
    columns = {"gap": "perturbed", "low": "perturbed_low", "high": "perturbed_high"}
    of_controls = frame[[*key, "proxy", *columns]].rename(columns={**columns, "proxy": "perturbation"})
    named = frame.assign(perturbation=frame["proxy"].map(names).astype(object))
    return named.merge(of_controls, how="left", on=[*key, "perturbation"]).drop(columns="perturbation")


class _Measured(NamedTuple):
    """The cells of all seeds on one split: kinds, features and layers with their estimates, and what stands by margin.

    `limits` has an entry for each of `columns`; `strata[metric, kind]` are sums and counts (seed, sequence, bin).
    """

    columns: tuple[Column, ...]
    sums: np.ndarray
    counts: np.ndarray
    strata: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]]
    limits: Estimates | None = None

    @classmethod
    def of(cls, cells: Sequence[Scores]) -> "_Measured":
        columns = cells[0].columns
        sums = np.stack([cell.sums for cell in cells])
        counts = np.stack([cell.counts for cell in cells])
        by_margin: dict[tuple[str, str], list[int]] = {}
        for index, column in enumerate(columns):
            if column.feature == MARGIN:
                by_margin.setdefault((column.metric, column.kind), []).append(index)
                by_margin.setdefault((column.metric, ALL), []).append(index)
        rest = [index for index, column in enumerate(columns) if column.feature != MARGIN]
        return cls(
            tuple(columns[index] for index in rest),
            sums[..., rest],
            counts[..., rest],
            {pair: (sums[..., index], counts[..., index]) for pair, index in by_margin.items()},
        )

    def estimated(
        self, by_name: Mapping[str, Metric], rng: np.random.Generator, options: Mapping[str, Any]
    ) -> "_Measured":
        """With estimates of all columns."""
        rates = [by_name[column.metric].unit == "rate" for column in self.columns]
        return self._replace(limits=estimate(self.sums, self.counts, rates=rates, rng=rng, **options))

    def at(self, pairs: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray, Estimates]:
        """Sums, counts and estimates of kinds as wholes, in the order of `pairs`."""
        place = {(column.metric, column.kind): i for i, column in enumerate(self.columns) if not column.feature}
        index = [place[pair] for pair in pairs]
        assert self.limits is not None
        return self.sums[..., index], self.counts[..., index], self.limits.select(index)


def _gap_rows(
    base: Mapping[str, Any],
    on_iid: _Measured | None,
    on_shift: _Measured | None,
    again: _Measured | None,
    *,
    pairs: Sequence[tuple[str, str]],
    by_name: Mapping[str, Metric],
    rngs: Sequence[np.random.Generator],
    options: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """One row a metric and kind; NaN where either side was not measured.

    `again` is the same recipe refitted on the shift, where it was.
    """
    columns: dict[str, Any] = {}
    matched = [Matched.nothing("not measured")] * len(pairs)
    signs = np.array([1.0 if by_name[metric].higher_is_better else -1.0 for metric, _ in pairs])
    rates = [by_name[metric].unit == "rate" for metric, _ in pairs]
    if on_iid is not None and on_shift is not None:
        first, second = on_iid.at(pairs), on_shift.at(pairs)
        values, p_values = gap(first[:2], second[:2], (first[2], second[2]), signs=signs, rng=rngs[0], **options)
        columns = {**_limits("gap", values), "interval": values.how, "error": values.error,
                   "degrees": values.degrees, "p": p_values}  # fmt: skip
        matched = [
            matched_gap(on_iid.strata[pair], on_shift.strata[pair], sign=sign, rate=rate, level=options["level"])
            if pair in on_iid.strata
            else Matched.nothing(NO_MARGIN)
            for pair, sign, rate in zip(pairs, signs.tolist(), rates, strict=True)
        ]
        if again is not None:
            third = again.at(pairs)
            sums = [signs * side for side in (second[0], third[0])]
            removed = change(sums[0], sums[1], second[1], rates=rates, rng=rngs[1], **options)
            remaining, _ = gap(first[:2], third[:2], (first[2], third[2]), signs=signs, rng=rngs[2], **options)
            columns |= {**_limits("removed", removed), **_limits("remaining", remaining)}
    for place, (metric, kind) in enumerate(pairs):
        whole = matched[place]
        yield {
            **base,
            "metric": metric,
            "kind": kind,
            **dict.fromkeys(_GAP_COLUMNS[8:], np.nan),
            "interval": "none",
            **{name: column[place] for name, column in columns.items()},
            "unit": by_name[metric].unit,
            "matched": whole.value,
            **{f"matched_{name}": getattr(whole, name) for name in ("low", "high", "error", "degrees", "reason")},
            "effective": whole.effective,
            "overlap": whole.overlap,
            "outside": whole.outside,
        }


def _limits(name: str, found: Estimates) -> dict[str, Any]:
    """The columns of an estimate and its limits."""
    prefix = "" if name == "gap" else f"{name}_"
    return {name: found.value, f"{prefix}low": found.low, f"{prefix}high": found.high}


def _unmeasured(
    base: Mapping[str, Any], columns: Sequence[tuple[str, str]], by_name: Mapping[str, Metric], reason: str
) -> Iterator[dict[str, Any]]:
    """Rows that say that nothing was measured, and why."""
    for metric, kind in columns:
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
            "unit": by_name[metric].unit,
            "higher_is_better": by_name[metric].higher_is_better,
            "reason": reason,
        }


def _rows(base: Mapping[str, Any], measured: _Measured, by_name: Mapping[str, Metric]) -> list[dict[str, Any]]:
    columns, counts, limits = measured.columns, measured.counts, measured.limits
    assert limits is not None
    predictions = counts[0].sum(axis=0)
    sequences = (counts[0] > 0).sum(axis=0)
    rows = []
    for index, column in enumerate(columns):
        if column.feature and predictions[index] == 0:
            continue
        reason = None
        if predictions[index] == 0:
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
                "seeds": len(counts),
                "unit": by_name[column.metric].unit,
                "higher_is_better": by_name[column.metric].higher_is_better,
                "reason": reason,
            }
        )
    return rows


def sequence_tables(
    variants: Sequence[Subject],
    candidates: Sequence[Candidate],
    found: Mapping[tuple[int, str, str], Scores | NotFiniteError],
) -> Iterator[pyarrow.Table]:
    """One table a cell, one row a (subject, seed, proxy, site, split, metric, kind, sequence) that has predictions."""
    by_key = {item.key: item for item in candidates}
    for (number, key, split), scores in found.items():
        if isinstance(scores, NotFiniteError):
            continue
        item, variant = by_key[key], variants[number]
        whole = [index for index, column in enumerate(scores.columns) if not column.feature]
        column, sequence = np.nonzero(scores.counts[:, whole].T)
        counts = scores.counts[:, whole][sequence, column]
        size = len(column)
        yield pyarrow.table(
            {
                "subject": _coded([variant.name], np.zeros(size, dtype=np.int32)),
                "seed": pyarrow.array(np.full(size, -1 if variant.seed is None else variant.seed, dtype=np.int32)),
                "trained": pyarrow.array(np.full(size, variant.trained)),
                "proxy": _coded([item.name], np.zeros(size, dtype=np.int32)),
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
