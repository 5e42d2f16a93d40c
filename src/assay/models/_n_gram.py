"""A table of which token follows which: the floor that a model has to rise above."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay._errors import AssayError
from assay._given import check_fields, checked
from assay.engine import Answer, Clean, Samples
from assay.simplify import label, source_of
from assay.simplify._protocol import check_positive
from assay.subjects import Subject
from assay.tasks import Split

_UNSEEN = -1
"""The number of a context that does not occur in the counts."""


@dataclass(frozen=True)
class Level:
    """Which tokens followed the contexts of one length (at least 1), and how often.

    An entry is a context and a token that followed it; `keys`, ascending, are number of the context · vocabulary +
    token. Contexts of length 1 are numbered by their token; an entry is itself a context of the next length, numbered
    by its place in `keys`. `before` counts what occurred before each entry, and ends with the sum.
    """

    keys: Int[np.ndarray, " entry"]
    before: Int[np.ndarray, " bound"]

    def entries(
        self, contexts: Int[np.ndarray, "*shape"], vocabulary: int
    ) -> tuple[Int[np.ndarray, "*shape"], Int[np.ndarray, "*shape"]]:
        """The first entry of each context, and the one after its last; a context that was not seen has none."""
        return (
            np.searchsorted(self.keys, contexts * vocabulary),
            np.searchsorted(self.keys, (contexts + 1) * vocabulary),
        )

    def next_context(
        self, contexts: Int[np.ndarray, "*shape"], tokens: Int[np.ndarray, "*shape"], vocabulary: int
    ) -> Int[np.ndarray, "*shape"]:
        """The numbers of contexts made longer by a token each."""
        asked = contexts * vocabulary + tokens
        place = np.minimum(np.searchsorted(self.keys, asked), len(self.keys) - 1)
        return np.where((contexts != _UNSEEN) & (self.keys[place] == asked), place, _UNSEEN)


@dataclass(frozen=True)
class Counts:
    """How often tokens followed contexts of length 0 (`first`, by token) and of each greater length (`levels`)."""

    first: Int[np.ndarray, " vocabulary"]
    levels: tuple[Level, ...]

    @classmethod
    def of(cls, split: Split, order: int, vocabulary: int) -> "Counts":
        """Count a split; a context does not reach back beyond its sequence, nor is its first token predicted."""
        valid = split.valid
        tokens = split.tokens[valid].astype(np.int64)
        place = np.broadcast_to(np.arange(valid.shape[1]), valid.shape)[valid]
        followed = np.append(place[1:] > 0, False)
        first = np.bincount(tokens[place > 0], minlength=vocabulary)
        levels = []
        contexts, at = tokens, np.arange(len(tokens))
        for length in range(1, order):
            here = (place[at] >= length - 1) & followed[at]
            if not here.any():
                break
            contexts, at = contexts[here], at[here]
            keys, number, counts = np.unique(
                contexts * vocabulary + tokens[at + 1], return_inverse=True, return_counts=True
            )
            levels.append(Level(keys, np.append(0, np.cumsum(counts))))
            contexts, at = number, at + 1
        return cls(first, tuple(levels))

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return len(self.first)

    @property
    def contexts_and_entries(self) -> tuple[tuple[int, int], ...]:
        """By length from 0 on: how many contexts were followed by a token, and by how many different ones in all."""
        found = [(1, int((self.first > 0).sum()))]
        found += [(len(np.unique(level.keys // self.vocabulary)), len(level.keys)) for level in self.levels]
        return tuple(found)

    def contexts(
        self, tokens: Int[np.ndarray, "batch position"], valid: Bool[np.ndarray, "batch position"]
    ) -> list[Int[np.ndarray, "batch position"]]:
        """The numbers of the contexts that end at every position, by length from 1 on."""
        found = [np.where(valid, tokens, _UNSEEN)]
        for level in self.levels[:-1]:
            longer = np.full(tokens.shape, _UNSEEN)
            longer[:, 1:] = level.next_context(found[-1][:, :-1], tokens[:, 1:], self.vocabulary)
            found.append(np.where(valid, longer, _UNSEEN))
        return found[: len(self.levels)]

    def log_probabilities(
        self, contexts: Sequence[Int[np.ndarray, " row"]], rows: int
    ) -> Float[np.ndarray, "row vocabulary"]:
        """Natural logarithms of the probabilities of every next token, for contexts of length 1, 2, … that end alike.

        What a token has from shorter contexts is the same for all that follow none of the longer ones: so only the
        entries of the contexts are computed one by one.
        """
        total, different = self.first.sum(), (self.first > 0).sum()
        shortest = (self.first + different / self.vocabulary) / (total + different)
        remaining = np.ones(rows)
        touched, added = [np.empty(0, dtype=np.int64)], [np.empty(0)]
        for level, numbers in zip(reversed(self.levels), reversed(contexts), strict=True):
            start, end = level.entries(numbers, self.vocabulary)
            different, total = end - start, level.before[end] - level.before[start]
            row = np.repeat(np.arange(rows), different)
            entry = np.arange(len(row)) - np.repeat(np.cumsum(different) - different - start, different)
            weight = np.divide(remaining, total + different, out=np.zeros(rows), where=different > 0)
            touched.append(row * self.vocabulary + level.keys[entry] % self.vocabulary)
            added.append(weight[row] * (level.before[entry + 1] - level.before[entry]))
            remaining = np.where(different > 0, weight * different, remaining)
        found = np.log(shortest)[None, :] + np.log(remaining)[:, None]
        places, which = np.unique(np.concatenate(touched), return_inverse=True)
        row, token = np.divmod(places, self.vocabulary)
        sums = np.bincount(which, weights=np.concatenate(added), minlength=len(places))
        found[row, token] = np.log(sums + remaining[row] * shortest[token])
        return found


class NGramProxy:
    """A table of counts that answers as a subject does: with the logarithms of its probabilities."""

    def __init__(self, counts: Counts, dtype: torch.dtype) -> None:
        self.counts, self.dtype = counts, dtype

    def __call__(
        self, tokens: Int[Tensor, "batch position"], valid: Int[Tensor, "batch position"] | None = None
    ) -> Float[Tensor, "batch position vocabulary"]:
        """Log-probabilities of the next token; `valid` is 1 at tokens and 0 at padding (default: no padding)."""
        return self._logits(self._contexts(tokens, valid), slice(None), tokens)

    def answer(self, clean: Clean) -> Answer:
        """The answer on the batch of `clean`, some positions at a time: all of them may not fit in memory."""
        contexts = self._contexts(clean.tokens, clean.valid)
        return Answer(
            lambda positions: self._logits(contexts, positions, clean.tokens),
            "a table of counts has no attention",
            clean.tokens.numel() * max(1, len(contexts)),
        )

    def _contexts(self, tokens: Tensor, valid: Tensor | None) -> list[Int[np.ndarray, "batch position"]]:
        shown = torch.ones_like(tokens) if valid is None else valid
        return self.counts.contexts(tokens.cpu().numpy(), shown.bool().cpu().numpy())

    def _logits(
        self, contexts: list[Int[np.ndarray, "batch position"]], positions: slice | Tensor, tokens: Tensor
    ) -> Float[Tensor, "batch chosen vocabulary"]:
        chosen = positions if isinstance(positions, slice) else positions.cpu().numpy()
        shape = tokens.cpu().numpy()[:, chosen].shape
        rows = [numbers[:, chosen].reshape(-1) for numbers in contexts]
        found = torch.from_numpy(self.counts.log_probabilities(rows, shape[0] * shape[1]))
        return found.to(self.dtype).to(tokens.device).view(*shape, -1)

    def __repr__(self) -> str:
        return f"NGramProxy(contexts of up to {len(self.counts.levels)} tokens)"


@dataclass
class NGram:
    """Predict the next token from the last `order` − 1 by counting, in the train split: what needs no model at all.

    For a context c of k tokens, with N(c w) how often w followed it, N(c) their sum, T(c) how many different ones did
    and c' the context without its first token, the probabilities are the interpolated ones of Witten and Bell,

        p(w | c) = (N(c w) + T(c) p(w | c')) / (N(c) + T(c)),

    from p = 1 / vocabulary below the empty context up to the longest context that was seen, at most order − 1 tokens
    and never beyond the start of the sequence. A longer context that was not seen is left out. The first token of a
    sequence is context, and is not counted as predicted. Logits are ln p, finite for every token; the prediction is
    the token of the largest p among the candidates of its kind. So it is mostly the one that followed the longest seen
    context most often, equal counts are told apart by shorter contexts, and so are candidates that did not follow
    it at all; but shorter contexts can outvote a few occurrences.

    Order 1 knows no context: it is the control of the others. Source: Witten and Bell (1991, IEEE Trans. Inf. Theory
    37), method C. Raises AssayError for an order below 1 and a subject that does not predict next tokens.
    """

    order: int
    counts_: Counts | None = field(default=None, init=False, repr=False, compare=False)

    streams: ClassVar[tuple[str, ...]] = ()
    whole: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    def check_parameters(self) -> None:
        """Raise AssayError for values that no subject could have."""
        check_positive(self, order=self.order)

    def check(self, subject: Subject, splits: Sequence[Split]) -> None:
        """Raise AssayError for a bad order, or a subject that predicts something else than the next token."""
        self.check_parameters()
        if subject.objective != "causal":
            raise AssayError(
                f"{label(self)} predicts the next token, and {subject.name!r} is judged as {subject.objective!r}; only "
                "causal language models can be compared with it."
            )

    @checked
    def fit(self, samples: Samples) -> "NGram":
        """Count the sequences of the split."""
        subject, split = source_of(self, samples)
        self.check(subject, [split])
        self.counts_ = None
        if int(split.lengths.max()) < 2:
            raise AssayError(f"{label(self)}: split {split.name!r} has no sequence of two tokens; nothing follows.")
        self.counts_ = Counts.of(split, self.order, _vocabulary(subject))
        return self

    @checked
    def apply(self, subject: Subject) -> NGramProxy:
        """The table, in float32 (float64 for a subject in float64)."""
        return NGramProxy(self.fitted_counts, torch.promote_types(subject.model.dtype, torch.float32))

    @property
    def fitted_counts(self) -> Counts:
        """What was counted. Raises AssayError before `fit`."""
        if self.counts_ is None:
            raise AssayError(f"{label(self)} has not been fitted; call fit(samples) before apply(subject).")
        return self.counts_

    def control(self) -> "NGram | None":
        """How often tokens occur, whatever came before; None for order 1, which is just that."""
        return NGram(order=1) if self.order > 1 else None


def _vocabulary(subject: Subject) -> int:
    """How many logits a subject gives."""
    head = subject.model.get_output_embeddings()
    return subject.vocabulary if head is None else int(head.weight.shape[0])
