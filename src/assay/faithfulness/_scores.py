"""Scores of one cell (subject x proxy x split): sums and counts a sequence, for every metric and kind."""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay._errors import AssayError
from assay.engine import Answer, Engine, Proxy, batches, device_scale, tensors
from assay.faithfulness._clean_pass import CleanPass
from assay.faithfulness._metrics import Metric, Pair, Predictions, ReverseKL, is_of_pairs, margins
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
    """Per sequence and column: the sum of the metric over predictions, and how many predictions there were.

    `skipped` says why a metric was not measured (its counts are 0). `largest` is the largest absolute difference of a
    logit from the subject's at any scored position (of embeddings: of an entry); 0 only if not one differs. `kept` has,
    by metric, its value at every scored prediction, where they are kept: sequence after sequence, in float32.
    `kl_error` is the mean KL in nats that the form of the proxy's answers makes by itself.
    """

    columns: tuple[Column, ...]
    sums: Float[np.ndarray, "sequence column"]
    counts: Int[np.ndarray, "sequence column"]
    skipped: Mapping[str, str] = field(default_factory=dict)
    largest: float = math.nan
    kept: Mapping[str, Float[np.ndarray, " prediction"]] = field(default_factory=dict)
    kl_error: float = 0.0

    def write(self, path: Path) -> None:
        """Write to an .npz file."""
        columns = [list(column) for column in self.columns]
        about = json.dumps({"columns": columns, "skipped": dict(self.skipped), "kl_error": self.kl_error})
        with path.open("wb") as file:
            kept: dict[str, Any] = {f"{_KEPT}{name}": values for name, values in self.kept.items()}
            np.savez_compressed(
                file, about=np.array(about), sums=self.sums, counts=self.counts, largest=np.array(self.largest), **kept
            )

    @classmethod
    def read(cls, path: Path) -> "Scores":
        """Read what `write` wrote."""
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            about = json.loads(str(data["about"]))
            columns = tuple(Column(*column) for column in about["columns"])
            kept = {name.removeprefix(_KEPT): data[name] for name in data.files if name.startswith(_KEPT)}
            largest, kl_error = float(data["largest"]), about["kl_error"]
            return cls(columns, data["sums"], data["counts"], about["skipped"], largest, kept, kl_error)


_KEPT = "kept_"


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
        """Sums and counts (sequence, column) of a batch; `margin` is the subject's at every position.

        A metric that is not among `values` was not measured, and counts nothing.
        """
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
            if metric.name not in values:
                continue
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
    keep: Collection[str] = (),
    clean_pass: Callable[..., CleanPass] = CleanPass,
) -> dict[str, Scores | NotFiniteError]:
    """Scores of several proxies of one subject on one split; of the metrics in `keep`, every prediction's value, too.

    The subject's own pass, made by `clean_pass`, is shared by all of them, and a proxy resumes from its first
    simplified layer. A proxy whose logits are not finite gets the error instead of scores; for a subject AssayError
    is raised.
    """
    attention = any(map(_needs_attention, metrics))
    grouping = _Grouping(task, split, metrics, engine.layers)
    shape = (len(split), len(grouping.columns))
    found: dict[str, Scores | NotFiniteError] = {
        name: Scores(tuple(grouping.columns), np.zeros(shape), np.zeros(shape, dtype=np.int64), {}, 0.0)
        for name in proxies
    }
    kept = {
        (name, metric.name): np.zeros(split.kinds.shape, dtype=np.float32)
        for name in proxies
        for metric in metrics
        if metric.name in keep
    }
    with engine.ready():
        for index, batch in batches(engine, split):
            tokens, valid = tensors(batch, engine.subject.device)
            shared = clean_pass(engine, tokens, valid, attention=attention)
            judged = _Batch(engine, task, split.name, metrics, batch, shared)
            finite = {name: proxy for name, proxy in proxies.items() if not isinstance(found[name], NotFiniteError)}
            for name, measured in judged.of(finite):
                current = found[name]
                if isinstance(measured, NotFiniteError):
                    found[name] = measured
                elif isinstance(current, Scores):
                    own = grouping.scores(measured.values, measured.by_layer, judged.margin, batch)
                    current.sums[index], current.counts[index] = own
                    found[name] = replace(
                        current,
                        skipped={**current.skipped, **measured.skipped},
                        largest=max(current.largest, measured.largest),
                        kl_error=max(current.kl_error, measured.kl_error),
                    )
                    for metric in set(keep) & set(measured.values):
                        kept[name, metric][index, : batch.kinds.shape[1]] = measured.values[metric]
    for (name, metric), values in kept.items():
        scores = found[name]
        if isinstance(scores, Scores) and metric not in scores.skipped:
            found[name] = replace(scores, kept={**scores.kept, metric: values[split.kinds != UNSCORED]})
    return found


@dataclass
class _Measured:
    """The metrics of a proxy at every position of a batch, and its attention's divergence by layer.

    `skipped` says why a metric is not there, `largest` is the largest difference of a logit, `kl_error` the answer's.
    """

    values: dict[str, np.ndarray]
    by_layer: dict[int, np.ndarray]
    skipped: dict[str, str]
    kl_error: float
    largest: float = 0.0


class _Batch:
    """One batch of a split, with the subject's pass on it; `margin` is the subject's, where it was asked."""

    def __init__(  # noqa: PLR0917
        self, engine: Engine, task: Task, split: str, metrics: Sequence[Metric], batch: Split, shared: CleanPass
    ) -> None:
        self.engine, self.task, self.split, self.metrics, self.shared = engine, task, split, metrics, shared
        self.kind_of = torch.from_numpy(batch.kinds).to(engine.subject.device)
        self.batch = batch
        device = engine.subject.device
        self.targets = torch.from_numpy(batch.right.clip(min=0)).to(device)
        self.answers, self.foils, self.also_right = (
            None if tokens is None else torch.from_numpy(tokens).to(device)
            for tokens in (batch.answers, batch.foils, batch.also_right)
        )
        self.margin = np.zeros(batch.tokens.shape)
        self._scale = device_scale(self.kind_of.device)

    def of(self, proxies: Mapping[str, Proxy]) -> Iterator[tuple[str, _Measured | NotFiniteError]]:
        """Name and measurements of every proxy; as many are held at the same time as there is room for."""
        names, held = list(proxies), 0
        given: dict[str, Answer] = {}
        needed = any(map(_needs_attention, self.metrics))
        for number, answer in self.shared.answers(list(proxies.values()), attention=needed, batch=self.batch):
            if given and held + answer.held > self._scale * NUMBERS_HELD:
                yield from self._of(given)
                given, held = {}, 0
            given[names[number]] = answer
            held += answer.held
            del answer
        yield from self._of(given)

    def _of(self, given: Mapping[str, Answer]) -> Iterator[tuple[str, _Measured | NotFiniteError]]:
        found = {name: self._empty(answer) for name, answer in given.items()}
        broken: dict[str, NotFiniteError] = {}
        for positions in _chunks(self.kind_of != UNSCORED, self.engine.subject.vocabulary, self._scale * LOGITS_HELD):
            chosen = positions.cpu().numpy()
            subject = self._predictions(self.engine.logits(self.shared.run, positions), positions)
            if subject is None:
                raise AssayError(
                    f"the subject {self.engine.subject.name!r} gives logits that are not finite numbers on split "
                    f"{self.split!r}; it cannot be judged (in half precision, try float32)."
                )
            self.margin[:, chosen] = margins(subject.logits, self.kind_of[:, positions], self.task.kinds).cpu().numpy()
            for name, answer in given.items():
                if not self._measure(found[name], name, subject, answer, positions):
                    broken[name] = NotFiniteError(f"{name} gives logits that are not finite numbers on {self.split}")
        for name, measured in found.items():
            yield name, broken.get(name, measured)

    def _empty(self, answer: Answer) -> _Measured:
        """Where the measurements of a proxy go; those that it cannot have are skipped."""
        skipped, by_layer = {}, {}
        if self.answers is None:
            reason = f"{self.split} has no pairs"
            skipped = {metric.name: reason for metric in self.metrics if is_of_pairs(metric)}
        if isinstance(answer.attention, str):
            skipped |= {metric.name: answer.attention for metric in self.metrics if _needs_attention(metric)}
        else:
            by_layer = {layer: rows.cpu().numpy() for layer, rows in answer.attention.items()}
        values = {metric.name: np.zeros(self.margin.shape) for metric in self.metrics if metric.name not in skipped}
        return _Measured(values, by_layer, skipped, answer.kl_error)

    def _measure(self, into: _Measured, name: str, subject: Predictions, answer: Answer, positions: Tensor) -> bool:
        """Take the metrics at some positions; False if the proxy's logits are not finite. Its logits end here."""
        logits = answer.logits(positions)
        if logits.shape != subject.logits.shape:
            raise AssayError(
                f"{name}: it gives {logits.shape[-1]} logits for every token and the subject "
                f"{self.engine.subject.name!r} gives {subject.logits.shape[-1]}; they have to be of one vocabulary."
            )
        proxy = self._predictions(logits, positions)
        if proxy is None:
            return False
        scored = self.kind_of[:, positions] != UNSCORED
        if not torch.equal(subject.logits, proxy.logits):
            difference = (subject.logits - proxy.logits).abs_().amax(dim=-1)[scored]
            into.largest = max(into.largest, float(difference.max()))
        attention = {} if isinstance(answer.attention, str) else answer.attention
        rows = {layer: rows[:, positions] for layer, rows in attention.items()}
        both_ways = any(metric.name == ReverseKL.name for metric in self.metrics)
        answers, foils, also_right = (
            None if tokens is None else tokens[:, positions] for tokens in (self.answers, self.foils, self.also_right)
        )
        pair = Pair(
            subject,
            proxy,
            self.targets[:, positions],
            rows,
            both_ways=both_ways,
            answers=answers,
            foils=foils,
            also_right=also_right,
        )
        chosen = positions.cpu().numpy()
        for metric in self.metrics:
            if metric.name in into.values:
                into.values[metric.name][:, chosen] = metric(pair).cpu().numpy()
        return True

    def _predictions(self, logits: Tensor, positions: Tensor) -> Predictions | None:
        """What is predicted at some positions; None if logits that are scored are not finite."""
        here = self.kind_of[:, positions]
        return Predictions(logits, here, self.task.kinds) if _finite(logits, here != UNSCORED) else None


def _needs_attention(metric: Metric) -> bool:
    """Whether a metric has to see attention; one that does not say may."""
    return bool(getattr(metric, "needs_attention", True))


def _finite(logits: Tensor, scored: Tensor) -> bool:
    """Whether the logits of all scored positions are finite (their sums are then, and only then)."""
    return bool(torch.isfinite(logits.sum(dim=-1, dtype=torch.float32)[scored]).all())


def _chunks(scored: Bool[Tensor, "batch position"], vocabulary: int, held: int) -> Iterator[Int[Tensor, " chosen"]]:
    """The scored positions in pieces of at most `held` logits, or of those of `PREDICTIONS_HELD` predictions."""
    predictions = max(PREDICTIONS_HELD, held // vocabulary)
    return iter(scored.any(dim=0).nonzero()[:, 0].split(max(1, predictions // len(scored))))
