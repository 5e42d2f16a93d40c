"""What dictionaries make of vectors and what that loses, as a table: for studies and one's own comparison."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from assay.diagnostics import loss_recovered, reconstruction
from assay.dictionaries import GivenDictionary, Replacement, SparseAutoencoder, Transcoder
from assay.engine import Engine, collect
from assay.faithfulness import ALL, Comparison
from assay.reports import TableView
from assay.simplify import Simplification, label
from assay.subjects import Subject
from assay.tasks import Task

Cell = tuple[str, str]
"""A cell of a table: a number, and its limits."""

_DICTIONARIES = (SparseAutoencoder, Transcoder, GivenDictionary, Replacement)


def tables_of(
    comparison: Comparison,
    subject: Subject,
    task: Task,
    simplifications: Sequence[Simplification],
    *,
    sequences: int,
    fit_sequences: int,
    progress: Callable[[str], None],
) -> Iterator[TableView]:
    """A table for every dictionary among the recipes of a comparison, and every site that it was judged at."""
    dictionaries = {label(item): item for item in simplifications if isinstance(item, _DICTIONARIES)}
    engine = Engine(subject) if dictionaries else None
    for verdict in comparison.verdicts():
        recipe = dictionaries.get(verdict.proxy)
        if recipe is None or engine is None:
            continue
        progress(f"{verdict.proxy} at {verdict.site}")
        if getattr(recipe, "keeps", False):
            fitted = comparison.fitted(verdict.proxy, verdict.site)
        else:
            train = task.split(task.split_names[0], fit_sequences)
            fitted = copy.deepcopy(recipe).fit(collect(engine, train, ()).at(engine.site(verdict.site)))
        vectors = reconstruction(subject, task, fitted, sequences=sequences)
        of_tokens = subject.objective != "embedding"
        losses = loss_recovered(subject, task, fitted, sequences=sequences) if of_tokens else None
        places = list(dict.fromkeys(vectors["place"]))
        for place in places:
            own = vectors[vectors["place"] == place]
            title = f"{verdict.proxy} at {place}" + (f", one of {len(places)} places" if len(places) > 1 else "")
            yield split_by_split(title, own, losses)


def split_by_split(title: str, vectors: pd.DataFrame, losses: pd.DataFrame | None) -> TableView:
    """What the features of a dictionary do on every split, and the loss that it recovers there, where there is one."""
    rows = []
    for split in dict.fromkeys(vectors["split"]):
        row, loss = whole(vectors, split), {} if losses is None else whole(losses, split)
        rows.append([
            (split.replace("_", " "), ""),
            cell(row, "explained"),
            cell(row, "off_support", scale=100.0, digits=1),
            cell(row, "l0", digits=1),
            cell(row, "dead", scale=100.0, digits=1),
            cell(row, "newly_dense", scale=100.0, digits=1),
            cell(row, "shrinkage"),
            cell(loss, "loss_added"),
            cell(loss, "recovered_from_zeros"),
            cell(loss, "recovered_from_means"),
        ])  # fmt: skip
    return TableView(
        title=f"{title}, split by split",
        note="Explained: the share of variance, by the split's own mean. Off support: per cent of vectors with a "
        "larger error than 95 in 100 of iid. L0: features on. Dead: per cent of features on in no vector of the split "
        "(the fewer vectors, the more). Newly dense: per cent of features on in more than a tenth of the vectors there "
        "and not on iid. Shrinkage: 1 is unbiased. Loss added: nats of the next token; recovered: of what zeros or "
        "means in the place of the vectors add.",
        headings=[
            "split", "explained", "off support", "L0", "dead", "newly dense", "shrinkage", "loss added",
            "loss recovered from zeros", "loss recovered from means",
        ],
        rows=rows,
    )  # fmt: skip


def whole(frame: pd.DataFrame, split: str) -> Mapping[str, Any]:
    """The row of all kinds together on a split."""
    row = frame[(frame["split"] == split) & (frame["kind"] == ALL)]
    found: Mapping[str, Any] = row.iloc[0].to_dict()
    return found


def cell(row: Mapping[str, Any], name: str, *, scale: float = 1.0, digits: int = 3, ends: str | None = None) -> Cell:
    """A number of a row, with its limits, which are called `ends` and low or high (default: as the number)."""
    prefix = f"{name}_" if ends is None else ends
    value, low, high = (float(row.get(key, np.nan)) for key in (name, f"{prefix}low", f"{prefix}high"))
    if np.isnan(value):
        return "–", ""
    limits = "" if np.isnan(low) else f"{scale * low:.{digits}f} to {scale * high:.{digits}f}"
    return f"{scale * value:.{digits}f}", limits
