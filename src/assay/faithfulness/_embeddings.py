"""Faithfulness of encoders: one embedding a sequence, compared with the subject's.

Whether a sequence keeps its nearest neighbour depends on the other sequences of the split, so the outcomes of two
sequences are not independent, and resampling them as if they were makes intervals too narrow. The dependence is local:
two outcomes have to do with each other if the sequences, or their neighbours under subject or proxy, coincide. The
variance of a sum of locally dependent terms is the sum of the covariances of those pairs (Chen and Shao 2004, Normal
approximation under local dependence, Annals of Probability 32). So outcomes are spread around their mean until their
variance as independent values would be that one (never drawn together), and then go through the same intervals as the
scores of any other metric. Cosines are of one sequence each and need nothing of the kind.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from assay._errors import AssayError
from assay.engine import Engine, Proxy, batches, tensors
from assay.faithfulness._clean_pass import CleanPass
from assay.faithfulness._metrics import AttentionJSD, Metric
from assay.faithfulness._scores import ALL, LAYER, Column, NotFiniteError, Scores, score
from assay.subjects import pool
from assay.tasks import Split, Task

LEAST = 3
"""With fewer sequences in a split, every sequence has the same neighbour whatever the embeddings are."""

_ROWS = 1_024
"""Sequences whose cosines with all others are held at a time."""


class SameNeighbour:
    """Has a sequence the same nearest neighbour among the proxy's embeddings as among the subject's?

    The neighbour is the other sequence of the split with the largest cosine, each model asked among its own
    embeddings; of equally near sequences the first counts. Rate in [0, 1], higher is more faithful. It depends on how
    many sequences there are to choose from: compare splits of one size.
    """

    name = "same_neighbour"
    unit = "rate"
    higher_is_better = True
    needs_answer = False
    description = "a sequence's nearest neighbour within the split, by cosine, is the same for proxy and subject"

    def __call__(
        self, subject: Float[np.ndarray, "sequence width"], proxy: Float[np.ndarray, "sequence width"]
    ) -> Float[np.ndarray, " sequence"]:
        """Outcomes, 1 or 0, spread around their mean as their dependence asks (see above); the mean is the rate."""
        first, second = neighbours(subject), neighbours(proxy)
        same = (first == second).astype(float)
        spread = same - same.mean()
        independent = float(spread @ spread)
        if independent == 0:
            return same
        size = np.arange(len(same))
        points = csr_array(
            (np.ones(3 * len(same)), (np.tile(size, 3), np.concatenate((size, first, second)))), shape=(len(same),) * 2
        )
        related = (points @ points.T).astype(bool)
        dependent = float(spread @ (related @ spread))
        found: np.ndarray = same.mean() + spread * np.sqrt(max(dependent / independent, 1.0))
        return found


class Cosine:
    """Cosine of the proxy's embedding of a sequence to the subject's. In [-1, 1], higher is more faithful."""

    name = "cosine"
    unit = "cosine"
    higher_is_better = True
    needs_answer = False
    description = "cosine of the proxy's embedding to the subject's"

    def __call__(
        self, subject: Float[np.ndarray, "sequence width"], proxy: Float[np.ndarray, "sequence width"]
    ) -> Float[np.ndarray, " sequence"]:
        """The cosine of every sequence."""
        found: np.ndarray = (directions(subject) * directions(proxy)).sum(axis=1)
        return found


embedding_metrics: tuple[SameNeighbour | Cosine | AttentionJSD, ...] = (SameNeighbour(), Cosine(), AttentionJSD())
"""What is measured of embeddings; attention is compared as everywhere, averaged over a sequence's tokens."""


def directions(embeddings: Float[np.ndarray, "sequence width"]) -> Float[np.ndarray, "sequence width"]:
    """Embeddings scaled to length 1, in float64; zero stays zero, and what is not finite stays that."""
    exact = embeddings.astype(np.float64)
    with np.errstate(invalid="ignore"):
        found: np.ndarray = exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-300)
    return found


def neighbours(embeddings: Float[np.ndarray, "sequence width"]) -> Int[np.ndarray, " sequence"]:
    """The nearest other sequence by cosine; of equally near ones the first."""
    unit = directions(embeddings)
    found = []
    for start in range(0, len(unit), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(unit)))
        near = unit[rows] @ unit.T
        near[np.arange(len(rows)), rows] = -np.inf
        found.append(near.argmax(axis=1))
    return np.concatenate(found)


def check_embeddings(split: Split) -> None:
    """Raise AssayError if a split of embeddings is too small for neighbours to differ."""
    if split.objective == "embedding" and len(split) < LEAST:
        raise AssayError(
            f"split {split.name!r} has {len(split)} different sequences; for nearest neighbours give at least {LEAST}."
        )


def score_split(
    engine: Engine,
    proxies: Mapping[str, Proxy],
    task: Task,
    split: Split,
    metrics: Sequence[Metric],
    *,
    keep: Collection[str] = (),
    clean_pass: Callable[..., CleanPass] = CleanPass,
) -> dict[str, Scores | NotFiniteError]:
    """Scores of several proxies of one subject on one split, of tokens (see `score`) or of embeddings.

    Of embeddings there is one prediction a sequence, and of `metrics` those are measured that `embedding_metrics` has.
    `clean_pass` makes the subject's own pass, which all proxies share.
    """
    if split.objective != "embedding":
        return score(engine, proxies, task, split, metrics, keep=keep, clean_pass=clean_pass)
    names = [metric.name for metric in metrics]
    return _Collected(engine, proxies, split, clean_pass, attention=AttentionJSD.name in names).scores(names)


class _Collected:
    """Embeddings of a whole split by the subject and its proxies, and the divergence of attention by layer."""

    subject_key: ClassVar[str] = ""

    def __init__(
        self,
        engine: Engine,
        proxies: Mapping[str, Proxy],
        split: Split,
        clean_pass: Callable[..., CleanPass],
        *,
        attention: bool,
    ) -> None:
        self.split = split
        self.layers = engine.layers
        self.vectors: dict[str, np.ndarray] = {}
        self.attention = {name: np.zeros((len(split), engine.layers)) for name in proxies}
        self.without_attention: dict[str, str] = {}
        subject = engine.subject
        with engine.ready():
            for index, batch in batches(engine, split):
                tokens, valid = tensors(batch, subject.device)
                shared = clean_pass(engine, tokens, valid, attention=attention)
                hidden = engine.logits(shared.run, slice(None))
                self._put(self.subject_key, index, pool(hidden, valid, subject.pooling))
                for number, answer in shared.answers(list(proxies.values()), attention=attention):
                    name = list(proxies)[number]
                    self._put(name, index, pool(answer.logits(slice(None)), valid, subject.pooling))
                    if isinstance(answer.attention, str):
                        self.without_attention[name] = answer.attention
                        continue
                    for layer, rows in answer.attention.items():
                        mean = (rows * valid).sum(dim=1) / valid.sum(dim=1)
                        self.attention[name][index, layer] = mean.cpu().numpy()
        if not self._usable(self.subject_key):
            raise AssayError(
                f"the subject {subject.name!r} gives embeddings that are zero or not finite on split {split.name!r}; "
                "it cannot be judged (in half precision, try float32)."
            )

    def _put(self, name: str, index: np.ndarray, vectors: Tensor) -> None:
        found = vectors.cpu().numpy()
        if name not in self.vectors:
            self.vectors[name] = np.zeros((len(self.split), found.shape[1]), dtype=found.dtype)
        self.vectors[name][index] = found

    def _usable(self, name: str) -> bool:
        vectors = self.vectors[name]
        return bool(np.isfinite(vectors).all() and (np.abs(vectors).max(axis=1) > 0).all())

    def scores(self, metrics: Sequence[str]) -> dict[str, Scores | NotFiniteError]:
        """Scores of every proxy."""
        found: dict[str, Scores | NotFiniteError] = {}
        for name, attention in self.attention.items():
            if not self._usable(name):
                found[name] = NotFiniteError(
                    f"{name} gives embeddings that are zero or not finite on {self.split.name}"
                )
                continue
            columns: list[Column] = []
            values: list[np.ndarray] = []
            skipped: dict[str, str] = {}
            of_subject, own = self.vectors[self.subject_key], self.vectors[name]
            alike = of_subject.shape == own.shape
            for metric in embedding_metrics:
                if metric.name not in metrics:
                    continue
                columns.append(Column(metric.name, ALL, "", 0))
                if isinstance(metric, AttentionJSD):
                    values.append(attention.mean(axis=1) if self.layers else np.zeros(len(attention)))
                    columns += [Column(metric.name, ALL, LAYER, layer) for layer in range(self.layers)]
                    values += list(attention.T)
                    if name in self.without_attention:
                        skipped[metric.name] = self.without_attention[name]
                elif isinstance(metric, Cosine) and not alike:
                    values.append(np.zeros(len(own)))
                    skipped[metric.name] = (
                        f"the proxy's embeddings have {own.shape[1]} numbers and the subject's {of_subject.shape[1]}"
                    )
                else:
                    values.append(metric(of_subject, own))
            sums = np.stack(values, axis=1)
            counts = np.ones(sums.shape, dtype=np.int64)
            counts[:, [column.metric in skipped for column in columns]] = 0
            largest = float(np.abs(own - of_subject).max()) if alike else math.nan
            found[name] = Scores(tuple(columns), sums, counts, skipped, largest)
        return found
