"""Faithfulness of encoders: one embedding a sequence, compared with the subject's.

Whether a sequence keeps its nearest neighbour depends on all other sequences of the split, so the outcomes of two
sequences are not independent, and resampling them as if they were would make intervals too narrow. The rate is a
symmetric function of independent sequences, however, and for those the jackknife's variance is too large rather than
too small on average (Efron and Stein 1981, The jackknife estimate of variance, Annals of Statistics 9). So what a
sequence contributes is its pseudo-value: its own outcome, less what leaving it out changes for those whose neighbour it
is. Pseudo-values are moved together so that their mean is the rate itself, and go through the same intervals as the
scores of any other metric. Cosines are of one sequence each and need nothing of the kind.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int
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
        """Pseudo-values of the rate, whose mean it is (plain outcomes where all are alike)."""
        first, second = neighbours(subject), neighbours(proxy)
        same = (first[:, 0] == second[:, 0]).astype(float)
        if same.min() == same.max():
            return same
        without = np.zeros(len(same))
        for one, other in ((first, second), (second, first)):
            left_out = one[:, 0]
            theirs = np.where(other[:, 0] == left_out, other[:, 1], other[:, 0])
            change = (one[:, 1] == theirs) - same
            counted = np.ones(len(same), dtype=bool) if one is first else other[:, 0] != left_out
            np.add.at(without, left_out[counted], change[counted])
        pseudo = same - without
        found: np.ndarray = pseudo - pseudo.mean() + same.mean()
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


def neighbours(embeddings: Float[np.ndarray, "sequence width"]) -> Int[np.ndarray, "sequence 2"]:
    """The nearest and the second nearest other sequence by cosine; of equally near ones the first."""
    unit = directions(embeddings)
    found = np.zeros((len(unit), 2), dtype=np.int64)
    for start in range(0, len(unit), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(unit)))
        near = unit[rows] @ unit.T
        near[np.arange(len(rows)), rows] = -np.inf
        for rank in range(2):
            found[rows, rank] = near.argmax(axis=1)
            near[np.arange(len(rows)), found[rows, rank]] = -np.inf
    return found


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
    clean_pass: Callable[[Engine, Tensor, Tensor], CleanPass] = CleanPass,
) -> dict[str, Scores | NotFiniteError]:
    """Scores of several proxies of one subject on one split, of tokens (see `score`) or of embeddings.

    Of embeddings there is one prediction a sequence, and of `metrics` those are measured that `embedding_metrics` has.
    `clean_pass` makes the subject's own pass, which all proxies share.
    """
    if split.objective != "embedding":
        return score(engine, proxies, task, split, metrics, clean_pass=clean_pass)
    return _Collected(engine, proxies, split, clean_pass).scores([metric.name for metric in metrics])


class _Collected:
    """Embeddings of a whole split by the subject and its proxies, and the divergence of attention by layer."""

    subject_key: ClassVar[str] = ""

    def __init__(
        self,
        engine: Engine,
        proxies: Mapping[str, Proxy],
        split: Split,
        clean_pass: Callable[[Engine, Tensor, Tensor], CleanPass],
    ) -> None:
        self.split = split
        self.layers = engine.layers
        self.vectors: dict[str, np.ndarray] = {}
        self.attention = {name: np.zeros((len(split), engine.layers)) for name in proxies}
        subject = engine.subject
        for index, batch in batches(engine, split):
            tokens, valid = tensors(batch, subject.device)
            shared = clean_pass(engine, tokens, valid)
            self._put(self.subject_key, index, pool(engine.logits(shared.clean, slice(None)), valid, subject.pooling))
            for name, proxy in proxies.items():
                run, divergence = shared.of(proxy)
                self._put(name, index, pool(engine.logits(run, slice(None)), valid, subject.pooling))
                for layer, rows in divergence.items():
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
            for metric in embedding_metrics:
                if metric.name not in metrics:
                    continue
                columns.append(Column(metric.name, ALL, "", 0))
                if isinstance(metric, AttentionJSD):
                    values.append(attention.mean(axis=1))
                    columns += [Column(metric.name, ALL, LAYER, layer) for layer in range(self.layers)]
                    values += list(attention.T)
                else:
                    values.append(metric(self.vectors[self.subject_key], self.vectors[name]))
            sums = np.stack(values, axis=1)
            found[name] = Scores(tuple(columns), sums, np.ones(sums.shape, dtype=np.int64))
        return found
