"""From the scores of cells to estimates, gaps and the table of sequences."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow

from assay.faithfulness._cells import Candidate
from assay.faithfulness._metrics import Metric
from assay.faithfulness._scores import ALL, Column, NotFiniteError, Scores
from assay.faithfulness._statistics import Estimates, Method, estimate, gap, holm
from assay.simplify import label
from assay.subjects import Subject
from assay.tasks import Split


def _rng(seed: int, *names: str) -> np.random.Generator:
    """A generator of its own for each estimate, so that results do not depend on their order."""
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def summarise(
    judged: Sequence[Metric],
    variants: Sequence[Subject],
    candidates: Sequence[Candidate],
    splits: Mapping[str, Split],
    found: Mapping[tuple[int, str, str], Scores | NotFiniteError],
    *,
    seed: int,
    resamples: int,
    level: float,
    method: Method,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The results (a row a split, metric, kind, feature and bin) and the gaps (a row a shift, metric and kind)."""
    by_name = {metric.name: metric for metric in judged}
    iid = next(name for name, split in splits.items() if split.role == "iid")
    options: dict[str, Any] = {"resamples": resamples, "level": level, "method": method}
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
            stacked: dict[str, tuple[tuple[Column, ...], np.ndarray, np.ndarray, Estimates]] = {}
            for name in splits:
                cells = [found[number, item.key, name] for number in members]
                failed = [cell for cell in cells if isinstance(cell, NotFiniteError)]
                scores = [cell for cell in cells if isinstance(cell, Scores)]
                if failed:
                    results.append(_unmeasured(base, name, str(failed[0])))
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
                stacked[name] = (columns, sums, counts, limits)
                results += _rows({**base, "split": name}, columns, counts, limits, by_name)
            if iid not in stacked:
                continue
            columns, sums, counts, limits = stacked[iid]
            whole = [index for index, column in enumerate(columns) if not column.feature]
            signs = np.array([1.0 if by_name[columns[index].metric].higher_is_better else -1.0 for index in whole])
            for name, split in splits.items():
                if split.role != "shift" or name not in stacked:
                    continue
                # A feature's bins differ between splits; the columns without one come in the same order in all.
                other_columns, other_sums, other_counts, other_limits = stacked[name]
                other = [index for index, column in enumerate(other_columns) if not column.feature]
                values, p_values = gap(
                    (sums[..., whole], counts[..., whole]),
                    (other_sums[..., other], other_counts[..., other]),
                    (_select(limits, whole), _select(other_limits, other)),
                    signs=signs,
                    rng=_rng(seed, "gap", item.key, name, str(trained)),
                    **options,
                )
                for place, index in enumerate(whole):
                    gaps.append(
                        {
                            **base,
                            "split": name,
                            "metric": columns[index].metric,
                            "kind": columns[index].kind,
                            "gap": values.value[place],
                            "low": values.low[place],
                            "high": values.high[place],
                            "interval": values.how[place],
                            "p": p_values[place],
                            "unit": by_name[columns[index].metric].unit,
                        }
                    )
    frame = pd.DataFrame(gaps)
    if len(frame):
        frame["p_holm"] = np.nan
        for _, family in frame[~frame["is_control"]].groupby(["trained", "metric", "kind"], sort=False):
            frame.loc[family.index, "p_holm"] = holm(family["p"].tolist())
    return pd.DataFrame(results), frame


def _select(limits: Estimates, index: Sequence[int]) -> Estimates:
    return Estimates(
        limits.value[index], limits.low[index], limits.high[index], limits.error[index],
        tuple(limits.how[place] for place in index),
    )  # fmt: skip


def _unmeasured(base: Mapping[str, Any], split: str, reason: str) -> dict[str, Any]:
    return {
        **base,
        "split": split,
        "metric": "same_prediction",
        "kind": ALL,
        "feature": "",
        "bin": 0,
        "estimate": np.nan,
        "low": np.nan,
        "high": np.nan,
        "interval": "none",
        "sequences": 0,
        "predictions": 0,
        "seeds": 0,
        "unit": "rate",
        "higher_is_better": True,
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
