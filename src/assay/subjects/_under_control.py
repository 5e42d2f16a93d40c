"""Training data under control: documents that come again, and labels that are wrong."""

from collections.abc import Callable

import numpy as np

from assay._errors import AssayError
from assay._given import checked
from assay.subjects._train import Batch


class Repeated:
    """Batches of which a share comes, with replacement, from a fixed set of documents (arXiv 2205.10487).

    `batches(step)` gives the fresh ones; in each, the last rows, the share of them rounded to whole rows, are replaced
    by rows of `documents`, which were drawn as the fresh ones are, so that nothing but their coming again is new.
    `share` is in [0, 1]; a batch is a function of the step and the seed. The source repeats by epochs of a fixed
    subset; here every draw is independent.
    Raises AssayError for a share outside [0, 1], no documents, and where rows of batch and documents do not fit.
    """

    def __init__(self, batches: Callable[[int], Batch], documents: Batch, *, share: float, seed: int) -> None:
        if not 0 <= share <= 1:
            raise AssayError(f"share is {share}; give a share of each batch from 0 (all fresh) to 1 (all repeated).")
        if len(documents.tokens) == 0:
            raise AssayError("there is no document to repeat; give at least one.")
        self.batches = batches
        self.documents = documents
        self.share = share
        self.seed = seed

    def repeats(self, rows: int, steps: int) -> float:
        """How often each document is seen on the average, in so many steps of so many rows."""
        return self._rows(rows) * steps / len(self.documents.tokens)

    def _rows(self, rows: int) -> int:
        return round(self.share * rows)

    def __call__(self, step: int) -> Batch:
        """The batch of a step."""
        fresh = self.batches(step)
        again = self._rows(len(fresh.tokens))
        chosen = np.random.default_rng([self.seed, step]).integers(len(self.documents.tokens), size=again)

        def joined(mine: np.ndarray | None, old: np.ndarray | None, what: str) -> np.ndarray | None:
            if mine is None and old is None:
                return None
            if mine is None or old is None or mine.shape[1:] != old.shape[1:]:
                shapes = ["none" if one is None else f"shape {one.shape}" for one in (mine, old)]
                raise AssayError(
                    f"{what} of the batches ({shapes[0]}) and of the documents ({shapes[1]}) do not fit; "
                    "draw both alike."
                )
            return np.concatenate((mine[: len(mine) - again], old[chosen]))

        tokens = joined(fresh.tokens, self.documents.tokens, "tokens")
        labels = joined(fresh.labels, self.documents.labels, "labels")
        assert tokens is not None
        assert labels is not None
        return Batch(
            tokens,
            labels,
            joined(fresh.weights, self.documents.weights, "weights"),
            joined(fresh.documents, self.documents.documents, "numbers of documents"),
        )


@checked
def corrupted(labels: np.ndarray, values: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which a share is wrong: each of those is replaced by another value, evenly drawn.

    `labels` (integers, any shape) are in [0, values). Gives the labels and which of them are wrong: exactly the share,
    rounded to whole labels. In arXiv 2310.13061 the new value may be the old one, so that 1/values of theirs are right
    again; here none is.
    Raises AssayError for a share outside [0, 1], fewer than 2 values, and labels outside [0, values).
    """
    if not 0 <= share <= 1:
        raise AssayError(f"share is {share}; give a share of the labels from 0 to 1.")
    if values < 2:
        raise AssayError(f"values is {values}; a label can only be wrong where there are at least 2.")
    if labels.size and not 0 <= labels.min() <= labels.max() < values:
        raise AssayError(f"labels run from {labels.min()} to {labels.max()}; they must be in [0, {values}).")
    rng = np.random.default_rng(seed)
    wrong = (rng.permutation(labels.size) < round(share * labels.size)).reshape(labels.shape)
    # Adding 1 to values - 1 goes round to every other value, each as often.
    moved = (labels + rng.integers(1, values, size=labels.shape)) % values
    return np.where(wrong, moved, labels), wrong
