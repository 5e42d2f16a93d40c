"""Scores of one cell (subject x proxy x split): sums and counts a sequence, for every metric and kind."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay._errors import AssayError
from assay.engine import Engine, Proxy, Run, batches, device_scale, tensors
from assay.faithfulness._clean_pass import CleanPass
from assay.faithfulness._metrics import Metric, Pair, Predictions, margins
from assay.tasks import UNSCORED, Split, Task

ALL = "all"
"""The kind that stands for every scored prediction."""

LAYER = "layer"
"""The feature under which attention divergences are given by layer."""

MARGIN = "margin"
"""The feature under which cells keep scores by the subject's margin (not part of the results)."""

MARGIN_EDGES = (
    0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32,
)  # fmt: skip
"""Left edges of the bins of the margin, in nats; the last bin is open.

They are the same for every subject and task, so that a cell depends on nothing but itself: a margin is the log odds of
two tokens and means the same everywhere. Steps are a quarter of a nat where a prediction flips easily, and a seventh
to a quarter of the margin above two.
"""

NUMBERS_HELD, LOGITS_HELD = 2_000_000, 1_500_000
"""Final hidden states of proxies, and logits of one model, that a CPU has in memory at the same time (in numbers)."""

PREDICTIONS_HELD = 64
"""Predictions whose logits are held even if they are more: the unembedding is read once for every piece of the logits,
so that pieces of a few predictions cost more than they compute."""


class Column(NamedTuple):
    """What a column of scores is about; `feature` is empty and `bin` 0 where it is a kind as a whole.

    `bin` is the left edge of a feature's bin, a layer, or the number of a bin of the margin.
    """

    metric: str
    kind: str
    feature: str
    bin: int


@dataclass(frozen=True)
class Scores:
    """Per sequence and column: the sum of the metric over predictions, and how many predictions there were."""

    columns: tuple[Column, ...]
    sums: Float[np.ndarray, "sequence column"]
    counts: Int[np.ndarray, "sequence column"]

    def write(self, path: Path) -> None:
        """Write to an .npz file."""
        columns = json.dumps([list(column) for column in self.columns])
        with path.open("wb") as file:
            np.savez_compressed(file, columns=np.array(columns), sums=self.sums, counts=self.counts)

    @classmethod
    def read(cls, path: Path) -> "Scores":
        """Read what `write` wrote."""
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            columns = tuple(Column(*column) for column in json.loads(str(data["columns"])))
            return cls(columns, data["sums"], data["counts"])


class NotFiniteError(ArithmeticError):
    """A proxy gave logits that are not numbers: what stands in the place of its scores."""


class _Grouping:
    """Which columns a prediction counts towards, for a task."""

    def __init__(self, task: Task, split: Split, metrics: Sequence[Metric], layers: int) -> None:
        self.kinds = [kind.name for kind in task.kinds]
        undetermined = {kind.name for kind in task.kinds if not kind.determined}
        self.layers = layers
        self.edges = {
            feature.name: np.array(
                feature.edges if feature.edges is not None else range(int(split.features[feature.name].max()) + 1)
            )
            for feature in task.features
        }
        self.features = [(feature.name, kind) for feature in task.features for kind in feature.kinds]
        self.columns: list[Column] = []
        self.metrics = metrics
        for metric in metrics:
            for kind in (ALL, *self.kinds):
                if not (metric.needs_answer and kind in undetermined):
                    self.columns.append(Column(metric.name, kind, "", 0))
                    if metric.name == "attention_jsd":
                        self.columns += [Column(metric.name, kind, LAYER, layer) for layer in range(layers)]
            if metric.unit == "rate":
                for name, kind in self.features:
                    self.columns += [Column(metric.name, kind, name, int(edge)) for edge in self.edges[name]]
            for kind in self.kinds:
                if not (metric.needs_answer and kind in undetermined):
                    self.columns += [Column(metric.name, kind, MARGIN, bin_) for bin_ in range(len(MARGIN_EDGES))]
        self.undetermined = np.array([kind.name in undetermined for kind in task.kinds])

    def scores(
        self, values: Mapping[str, np.ndarray], by_layer: Mapping[int, np.ndarray], margin: np.ndarray, batch: Split
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sums and counts (sequence, column) of a batch; `margin` is the subject's at every position."""
        rows = len(batch)
        sums = np.zeros((rows, len(self.columns)))
        counts = np.zeros((rows, len(self.columns)), dtype=np.int64)
        scored = batch.kinds != UNSCORED
        row = np.broadcast_to(np.arange(rows)[:, None], batch.kinds.shape)[scored]
        kind = batch.kinds[scored]
        place = {column: index for index, column in enumerate(self.columns)}

        def add(column: Column, mask: np.ndarray, numbers: np.ndarray) -> None:
            counts[:, place[column]] = np.bincount(row[mask], minlength=rows)
            sums[:, place[column]] = np.bincount(row[mask], weights=numbers[mask], minlength=rows)

        def add_bins(first: Column, size: int, bins: np.ndarray, mask: np.ndarray, numbers: np.ndarray) -> None:
            """Fill the `size` columns from `first` on by bin."""
            flat = row[mask] * size + bins[mask]
            block = slice(place[first], place[first] + size)
            counts[:, block] = np.bincount(flat, minlength=rows * size).reshape(rows, -1)
            sums[:, block] = np.bincount(flat, weights=numbers[mask], minlength=rows * size).reshape(rows, -1)

        sure = np.searchsorted(MARGIN_EDGES, margin[scored], side="right") - 1
        layer_values = {layer: numbers[scored] for layer, numbers in by_layer.items()}
        for metric in self.metrics:
            numbers = values[metric.name][scored]
            answered = ~self.undetermined[kind] if metric.needs_answer else np.ones(len(kind), dtype=bool)
            for index, name in enumerate((ALL, *self.kinds)):
                column = Column(metric.name, name, "", 0)
                if column in place:
                    mask = answered & ((kind == index - 1) if index else True)
                    add(column, mask, numbers)
                    if metric.name == "attention_jsd":
                        for layer, of_layer in layer_values.items():
                            add(Column(metric.name, name, LAYER, layer), mask, of_layer)
            if metric.unit == "rate":
                for name, kind_name in self.features:
                    edges = self.edges[name]
                    bins = np.searchsorted(edges, batch.features[name][scored], side="right") - 1
                    of_kind = True if kind_name == ALL else kind == self.kinds.index(kind_name)
                    mask = answered & of_kind & (bins >= 0)
                    add_bins(Column(metric.name, kind_name, name, int(edges[0])), len(edges), bins, mask, numbers)
            for index, name in enumerate(self.kinds):
                first = Column(metric.name, name, MARGIN, 0)
                if first in place:
                    add_bins(first, len(MARGIN_EDGES), sure, kind == index, numbers)
        return sums, counts


def score(
    engine: Engine,
    proxies: Mapping[str, Proxy],
    task: Task,
    split: Split,
    metrics: Sequence[Metric],
    *,
    clean_pass: Callable[[Engine, Tensor, Tensor], CleanPass] = CleanPass,
) -> dict[str, Scores | NotFiniteError]:
    """Scores of several proxies of one subject on one split.

    The subject's own pass, made by `clean_pass`, is shared by all of them, and a proxy resumes from its first
    simplified layer. A proxy whose logits are not finite gets the error instead of scores; for a subject AssayError
    is raised.
    """
    grouping = _Grouping(task, split, metrics, engine.layers)
    shape = (len(split), len(grouping.columns))
    found: dict[str, Scores | NotFiniteError] = {
        name: Scores(tuple(grouping.columns), np.zeros(shape), np.zeros(shape, dtype=np.int64)) for name in proxies
    }
    with engine.ready():
        for index, batch in batches(engine, split):
            tokens, valid = tensors(batch, engine.subject.device)
            judged = _Batch(engine, task, split.name, metrics, batch, clean_pass(engine, tokens, valid))
            finite = {name: proxy for name, proxy in proxies.items() if not isinstance(found[name], NotFiniteError)}
            for some in _groups(list(finite), judged.clean.held, device_scale(tokens.device)):
                for name, measured in judged.of({name: finite[name] for name in some}).items():
                    current = found[name]
                    if isinstance(measured, NotFiniteError):
                        found[name] = measured
                    elif isinstance(current, Scores):
                        current.sums[index], current.counts[index] = grouping.scores(*measured, judged.margin, batch)
    return found


class _Batch:
    """One batch of a split, with the subject's pass on it; `margin` is the subject's, where it was asked."""

    def __init__(  # noqa: PLR0917
        self, engine: Engine, task: Task, split: str, metrics: Sequence[Metric], batch: Split, shared: CleanPass
    ) -> None:
        self.engine, self.task, self.split, self.metrics, self.shared = engine, task, split, metrics, shared
        self.clean = shared.clean
        self.kind_of = torch.from_numpy(batch.kinds).to(engine.subject.device)
        targets = np.roll(batch.tokens, -1, axis=1) if batch.targets is None else batch.targets
        self.targets = torch.from_numpy(targets).to(engine.subject.device)
        self.margin = np.zeros(batch.tokens.shape)
        self._attention = any(getattr(metric, "needs_attention", True) for metric in metrics)

    def of(
        self, proxies: Mapping[str, Proxy]
    ) -> dict[str, tuple[dict[str, np.ndarray], dict[int, np.ndarray]] | NotFiniteError]:
        """For every proxy, the metrics at every position, by name, and its attention's divergence, by layer."""
        names = list(proxies)
        runs = {
            names[number]: (run, divergence)
            for number, run, divergence in self.shared.of(list(proxies.values()), attention=self._attention)
        }
        values = {name: {metric.name: np.zeros(self.margin.shape) for metric in self.metrics} for name in runs}
        broken: dict[str, NotFiniteError] = {}
        logits_held = LOGITS_HELD * device_scale(self.kind_of.device)
        for positions in _chunks(self.kind_of != UNSCORED, self.engine.subject.vocabulary, logits_held):
            chosen = positions.cpu().numpy()
            subject = self._predictions(self.clean, positions)
            if subject is None:
                raise AssayError(
                    f"the subject {self.engine.subject.name!r} gives logits that are not finite numbers on split "
                    f"{self.split!r}; it cannot be judged (in half precision, try float32)."
                )
            self.margin[:, chosen] = margins(subject.logits, self.kind_of[:, positions], self.task.kinds).cpu().numpy()
            for name, (run, divergence) in runs.items():
                measured = self._measured(subject, run, divergence, positions)
                if measured is None:
                    broken[name] = NotFiniteError(f"{name} gives logits that are not finite numbers on {self.split}")
                    continue
                for metric, numbers in measured.items():
                    values[name][metric][:, chosen] = numbers
        return {
            name: broken.get(name) or (values[name], {layer: rows.cpu().numpy() for layer, rows in divergence.items()})
            for name, (_, divergence) in runs.items()
        }

    def _measured(
        self, subject: Predictions, run: Run, divergence: Mapping[int, Tensor], positions: Tensor
    ) -> dict[str, np.ndarray] | None:
        """The metrics at some positions; None if the proxy's logits are not finite. Its logits end here."""
        proxy = self._predictions(run, positions)
        if proxy is None:
            return None
        rows = {layer: rows[:, positions] for layer, rows in divergence.items()}
        pair = Pair(subject, proxy, self.targets[:, positions], rows)
        return {metric.name: metric(pair).cpu().numpy() for metric in self.metrics}

    def _predictions(self, run: Run, positions: Tensor) -> Predictions | None:
        """What a run predicts at some positions; None if logits that are scored are not finite."""
        here = self.kind_of[:, positions]
        logits = self.engine.logits(run, positions)
        return Predictions(logits, here, self.task.kinds) if _finite(logits, here != UNSCORED) else None


def _finite(logits: Tensor, scored: Tensor) -> bool:
    """Whether the logits of all scored positions are finite (their sums are then, and only then)."""
    return bool(torch.isfinite(logits.sum(dim=-1, dtype=torch.float32)[scored]).all())


def _groups(names: Sequence[str], held: int, scale: int) -> Iterator[Sequence[str]]:
    """The proxies in groups whose runs are held at the same time (one at least)."""
    size = max(1, scale * NUMBERS_HELD // held)
    for start in range(0, len(names), size):
        yield names[start : start + size]


def _chunks(scored: Bool[Tensor, "batch position"], vocabulary: int, held: int) -> Iterator[Int[Tensor, " chosen"]]:
    """The scored positions in pieces of at most `held` logits, or of those of `PREDICTIONS_HELD` predictions."""
    predictions = max(PREDICTIONS_HELD, held // vocabulary)
    return iter(scored.any(dim=0).nonzero()[:, 0].split(max(1, predictions // len(scored))))
