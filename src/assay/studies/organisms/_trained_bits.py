"""Training on questions about bits, and measures of what was learned."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from assay.studies.organisms._bits import tokens_of
from assay.subjects import IGNORED, Batch, PooledMLPForCausalLM


@runtime_checkable
class AboutBits(Protocol):
    """A task about bits: patterns by split, the right answers to its questions, and how many tokens are answers."""

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits, the training data first."""

    @property
    def answers(self) -> int:
        """How many tokens are answers."""

    def bits(self, name: str) -> Int[np.ndarray, "pattern bit"]:
        """All patterns of a split."""

    def labels(self, bits: Int[np.ndarray, "row bit"]) -> Int[np.ndarray, "row question"]:
        """The answers, 0 or 1."""


def at_last(model: PreTrainedModel, tokens: Int[Tensor, "row bit"]) -> Float[Tensor, "row answer"]:
    """Logits behind the last bit."""
    if isinstance(model, PooledMLPForCausalLM):
        return model.at_last(tokens)
    logits: Tensor = model(input_ids=tokens).logits[:, -1]
    return logits


def loss_of_pairs(questions: int) -> Callable[[PreTrainedModel, Batch], Tensor]:
    """The cross-entropy between the two answers of each question, in nats: mean over rows, sum over questions.

    For batches of `batches_of`, where every question is asked of every row.
    """

    def loss(model: PreTrainedModel, batch: Batch) -> Tensor:
        codes = torch.from_numpy(batch.labels[:, -1]).to(model.device)
        labels = (codes[:, None] >> torch.arange(questions, device=codes.device)) & 1
        logits = at_last(model, torch.from_numpy(batch.tokens).to(model.device))[:, : 2 * questions]
        return questions * torch.nn.functional.cross_entropy(logits.reshape(-1, 2), labels.flatten())

    return loss


def batches_of(
    task: AboutBits, *, rows: int, seed: int, labels: Callable[[np.ndarray], np.ndarray] | None = None
) -> Callable[[int], Batch]:
    """Fresh draws of the train split's patterns, with the answers to all questions, or those that `labels` gives.

    The label behind the last bit has the answer to question q as its q-th binary digit. A batch depends on the task,
    the seed and the step alone.
    """
    bits = task.bits(task.split_names[0])
    answers = task.labels if labels is None else labels

    def batch(step: int) -> Batch:
        drawn = bits[np.random.default_rng([seed, step]).integers(len(bits), size=rows)]
        found = answers(drawn)
        codes = np.full(drawn.shape, IGNORED)
        codes[:, -1] = found @ 2 ** np.arange(found.shape[1])
        return Batch(tokens_of(drawn, task.answers), codes)

    return batch


@dataclass(frozen=True)
class Looked:
    """Patterns on which a model is looked at: tokens (row, bit) and the answers (row, question) that are right."""

    tokens: Int[Tensor, "row bit"]
    labels: Int[np.ndarray, "row question"]

    @classmethod
    def of(cls, task: AboutBits, bits: Int[np.ndarray, "row bit"]) -> "Looked":
        """These patterns, with the answers of a task."""
        return cls(torch.from_numpy(tokens_of(bits, task.answers)), task.labels(bits))

    @torch.no_grad()
    def right(self, model: PreTrainedModel) -> Bool[np.ndarray, "row question"]:
        """Whether a model answers each question rightly."""
        questions = self.labels.shape[1]
        logits = at_last(model, self.tokens.to(model.device))[:, : 2 * questions]
        said: np.ndarray = logits.unflatten(1, (questions, 2)).argmax(dim=2).cpu().numpy()
        return said == self.labels


def explained(vectors: Float[np.ndarray, "row width"], label: Int[np.ndarray, " row"]) -> float:
    """The share of the variance of vectors that a label explains, in [0, 1]: that of its class means.

    Sum over units of Var(E[unit | label]) / sum over units of Var(unit), the R² of the label pooled over units.
    """
    centred = vectors - vectors.mean(axis=0)
    means = np.zeros_like(centred)
    for value in np.unique(label):
        means[label == value] = centred[label == value].mean(axis=0)
    return float((means**2).sum() / (centred**2).sum())


def similarity(vectors: Float[np.ndarray, "row width"], label: Int[np.ndarray, " row"]) -> float:
    """Representational similarity: the correlation, over pairs of rows, of their distance and whether labels differ."""
    above = np.triu_indices(len(vectors), 1)
    squares = (vectors**2).sum(axis=1)
    distances = np.sqrt(np.clip(squares[:, None] + squares - 2 * vectors @ vectors.T, 0, None))
    differ = label[:, None] != label
    return float(np.corrcoef(distances[above], differ[above])[0, 1])


def kept(
    vectors: Float[np.ndarray, "row width"], label: Int[np.ndarray, " row"], ranks: tuple[int, ...]
) -> list[float]:
    """The share of the squared distance between a label's class means that is within the leading directions."""
    centred = vectors - vectors.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    between = centred[label == 1].mean(axis=0) - centred[label == 0].mean(axis=0)
    along = (directions[:, ::-1].T @ between) ** 2
    return [float(along[:rank].sum() / along.sum()) for rank in ranks]
