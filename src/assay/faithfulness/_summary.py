"""From the scores of cells to estimates, gaps and the table of sequences."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow

from assay.faithfulness._cells import Candidate
from assay.faithfulness._metrics import Metric
from assay.faithfulness._scores import ALL, Column, NotFiniteError, Scores
from assay.faithfulness._statistics import Estimates, Method, estimate, gap, holm
from assay.simplify import label
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
    results: list[dict[str, Any]] = []
    gaps: list[dict[str, Any]] = []
    for trained in sorted({variant.trained for variant in variants}, reverse=True):
        members = [number for number, variant in enumerate(variants) if variant.trained == trained]
        for item in candidates:
            if item.is_control and not trained:
                continue
            base = {
                "subject": variants[members[0]].name,
                "trained": trained,
                "proxy": label(item.simplification),
                "site": item.site,
                "is_control": item.is_control,
            }
            stacked: dict[str, _Measured] = {}
            for name in splits:
                cells = [found[number, item.key, name] for number in members]
                failed = [cell for cell in cells if isinstance(cell, NotFiniteError)]
                scores = [cell for cell in cells if isinstance(cell, Scores)]
                if failed:
                    results += _unmeasured({**base, "split": name}, pairs, by_name, str(failed[0]))
                    continue
                columns = scores[0].columns
                sums = np.stack([cell.sums for cell in scores])
                counts = np.stack([cell.counts for cell in scores])
                limits = estimate(
                    sums,
                    counts,
                    rates=[by_name[column.metric].unit == "rate" for column in columns],
                    rng=_rng(seed, item.key, name, str(trained)),
                    **options,
                )
                stacked[name] = _Measured(columns, sums, counts, limits)
                results += _rows({**base, "split": name}, columns, counts, limits, by_name)
            for name, split in splits.items():
                if split.role == "shift":
                    rng = _rng(seed, "gap", item.key, name, str(trained))
                    gaps += _gap_rows(
                        {**base, "split": name},
                        stacked.get(iid),
                        stacked.get(name),
                        pairs=pairs,
                        by_name=by_name,
                        rng=rng,
                        options=options,
                    )
    frame = pd.DataFrame(gaps, columns=list(_GAP_COLUMNS))
    frame["p_holm"] = np.nan
    for _, family in frame[~frame["is_control"].astype(bool)].groupby(["trained", "metric", "kind"], sort=False):
        frame.loc[family.index, "p_holm"] = holm(family["p"].tolist())
    return pd.DataFrame(results), frame


_GAP_COLUMNS = (
    "subject", "trained", "proxy", "site", "is_control", "split", "metric", "kind",
    "gap", "low", "high", "interval", "error", "degrees", "p", "unit",
)  # fmt: skip


class _Measured(NamedTuple):
    """The cells of all seeds on one split, with their estimates."""

    columns: tuple[Column, ...]
    sums: np.ndarray
    counts: np.ndarray
    limits: Estimates

    def at(self, pairs: Sequence[tuple[str, str]]) -> "_Measured":
        """The columns of kinds as wholes, in the order of `pairs`."""
        place = {(column.metric, column.kind): i for i, column in enumerate(self.columns) if not column.feature}
        index = [place[pair] for pair in pairs]
        return _Measured(
            tuple(self.columns[i] for i in index),
            self.sums[..., index],
            self.counts[..., index],
            self.limits.select(index),
        )


def _gap_rows(
    base: Mapping[str, Any],
    on_iid: _Measured | None,
    on_shift: _Measured | None,
    *,
    pairs: Sequence[tuple[str, str]],
    by_name: Mapping[str, Metric],
    rng: np.random.Generator,
    options: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """One row a metric and kind; NaN where either side was not measured."""
    values, p_values = None, None
    if on_iid is not None and on_shift is not None:
        first, second = on_iid.at(pairs), on_shift.at(pairs)
        values, p_values = gap(
            (first.sums, first.counts),
            (second.sums, second.counts),
            (first.limits, second.limits),
            signs=np.array([1.0 if by_name[metric].higher_is_better else -1.0 for metric, _ in pairs]),
            rng=rng,
            **options,
        )
    for place, (metric, kind) in enumerate(pairs):
        yield {
            **base,
            "metric": metric,
            "kind": kind,
            "gap": values.value[place] if values is not None else np.nan,
            "low": values.low[place] if values is not None else np.nan,
            "high": values.high[place] if values is not None else np.nan,
            "interval": values.how[place] if values is not None else "none",
            "error": values.error[place] if values is not None else np.nan,
            "degrees": values.degrees[place] if values is not None else np.nan,
            "p": p_values[place] if p_values is not None else np.nan,
            "unit": by_name[metric].unit,
        }


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


def _rows(
    base: Mapping[str, Any],
    columns: Sequence[Column],
    counts: np.ndarray,
    limits: Estimates,
    by_name: Mapping[str, Metric],
) -> list[dict[str, Any]]:
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
                "proxy": _coded([label(item.simplification)], np.zeros(size, dtype=np.int32)),
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
