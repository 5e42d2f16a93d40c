"""What is said of whole models beside means: flips in both directions, and the tails of KL."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from assay.faithfulness._flips import sign_flip_test
from assay.faithfulness._quantiles import SHARES, quantiles
from assay.faithfulness._scores import ALL, Scores
from assay.faithfulness._statistics import CHANGE_OF_RATE, Weights, draws, estimate
from assay.faithfulness._told_apart import least, reason
from assay.tasks import UNSCORED, Kind, Split

MODEL_COLUMNS = (
    "proxy", "site", "split", "kind", "predictions", "sequences",
    "flips_to_wrong", "flips_to_right", "flips_p", "accuracy_change", "accuracy_change_low", "accuracy_change_high",
    *(f"kl_{round(100 * q)}{end}" for q in SHARES for end in ("", "_low", "_high")), "kl_reason",
    "kl_max", "kl_max_sequence", "kl_max_position", "kl_worst", "kl_worst_means", "design_effect",
)  # fmt: skip

WORST = 10
"""Sequences with the largest mean KL that are named."""


def model_rows(
    base: dict[str, Any],
    cells: Sequence[Scores],
    split: Split,
    kinds: Sequence[Kind],
    *,
    weights: Weights,
    level: float,
) -> Iterator[dict[str, Any]]:
    """One row a kind of what a whole model does on a split, from the cells of all training seeds."""
    for kind in (ALL, *(kind.name for kind in kinds)):
        row = {**dict.fromkeys(MODEL_COLUMNS, np.nan), **base, "split": split.name, "kind": kind, "kl_reason": None}
        row |= _flips(cells, kind, weights, level)
        number = None if kind == ALL else [kind.name for kind in kinds].index(kind)
        row |= _tails(cells, split, number, weights, level)
        yield row


def _column(cells: Sequence[Scores], metric: str, kind: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Sums and counts (seed, sequence) of a metric on a kind; None where it was not measured."""
    wanted = (metric, kind, "")
    place = next((n for n, column in enumerate(cells[0].columns) if tuple(column[:3]) == wanted), None)
    if place is None or metric in cells[0].skipped:
        return None
    return np.stack([cell.sums[:, place] for cell in cells]), np.stack([cell.counts[:, place] for cell in cells])


def _flips(cells: Sequence[Scores], kind: str, weights: Weights, level: float) -> dict[str, Any]:
    """How many predictions flip each way, over all seeds, whether it is more one way, and what accuracy makes of it."""
    wrong, right = (_column(cells, metric, kind) for metric in ("flip_to_wrong", "flip_to_right"))
    if wrong is None or right is None or not wrong[1].any():
        return {}
    (to_wrong, counts), (to_right, _) = wrong, right
    by_sequence = weights.pooled((to_wrong - to_right).sum(axis=0)[None])[0]
    change = draws((to_right - to_wrong)[..., None], counts[..., None], weights, bounds=[CHANGE_OF_RATE])
    found = estimate(change, level=level, nonnegative=np.array([False]))
    return {
        "predictions": int(counts.sum()),
        "sequences": int((counts > 0).any(axis=0).sum()),
        "flips_to_wrong": int(to_wrong.sum()),
        "flips_to_right": int(to_right.sum()),
        "flips_p": sign_flip_test(np.rint(by_sequence).astype(np.int64)),
        "accuracy_change": found.value[0],
        "accuracy_change_low": found.low[0],
        "accuracy_change_high": found.high[0],
    }


def _tails(cells: Sequence[Scores], split: Split, kind: int | None, weights: Weights, level: float) -> dict[str, Any]:
    """The quantiles and the maximum of KL over predictions (of all seeds), and how far tokens are from independent."""
    if any("kl" not in cell.kept for cell in cells):
        return {"kl_reason": "the values of single predictions were not kept"}
    sequence, position = np.nonzero(split.kinds != UNSCORED)
    chosen = np.ones(len(sequence), dtype=bool)
    if kind is not None:
        chosen = split.kinds[sequence, position] == kind
    if not chosen.any():
        return {"kl_reason": "no such prediction in this split"}
    values = np.concatenate([cell.kept["kl"][chosen] for cell in cells]).astype(np.float64)
    where = np.tile(sequence[chosen], len(cells))
    kl_error = max(cell.kl_error for cell in cells)
    smallest = least("kl", kl_error)
    if values.mean() < smallest:
        return {"kl_reason": reason(kl_error)}
    found = quantiles(values, where, weights, level=level)
    row: dict[str, Any] = {
        "kl_max": found.largest,
        "kl_max_sequence": int(where[found.at]),
        "kl_max_position": int(np.tile(position[chosen], len(cells))[found.at]),
        "kl_reason": found.reason,
        **_worst(values, where, smallest),
        "design_effect": _design_effect(values, where),
    }
    for number, q in enumerate(SHARES):
        if found.value[number] < smallest:
            row["kl_reason"] = reason(kl_error)
            continue
        name = f"kl_{round(100 * q)}"
        row |= {name: found.value[number], f"{name}_low": found.low[number], f"{name}_high": found.high[number]}
    return row


def _worst(values: np.ndarray, sequence: np.ndarray, smallest: float) -> dict[str, Any]:
    """The sequences with the largest means that are not below `smallest`, and these; of equal ones the first."""
    counts = np.bincount(sequence)
    means = np.bincount(sequence, weights=values) / np.maximum(counts, 1)
    there = (counts > 0) & (means >= smallest)
    order = [int(place) for place in np.argsort(-means, kind="stable") if there[place]][:WORST]
    return {"kl_worst": order, "kl_worst_means": [float(means[place]) for place in order]}


def _design_effect(values: np.ndarray, sequence: np.ndarray) -> float:
    """The standard error of the mean over whole sequences, divided by that over tokens as if they were independent."""
    mean, count = values.mean(), len(values)
    sums = np.bincount(sequence, weights=values - mean)
    alone = float(np.sqrt(((values - mean) ** 2).sum())) / count
    return float(np.sqrt((sums**2).sum())) / count / alone if alone else float("nan")
