"""What can be asked of a position in plain sight: the questions that rules are made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from assay.tasks import Split

_NONE = -1


@dataclass(frozen=True)
class Question:
    """A number that is known of every position.

    "token": 1 where the token `back` places before the last one read is `token`, else 0. "position": how many tokens
    stand before it in the sequence. "feature": the task's feature `name` of the last token read (not of the one that
    is to be predicted); 0 at the first position, before any prediction.
    """

    about: Literal["token", "position", "feature"]
    back: int = 0
    token: int = 0
    name: str = ""

    def text(self, names: Mapping[int, str]) -> str:
        """How it is written."""
        if self.about == "token":
            which = "the token" if self.back == 0 else f"the token {self.back} before"
            return f"{which} is {names.get(self.token, self.token)!r}"
        return self.about if self.about == "position" else self.name

    def answers(self, split: Split) -> Int[np.ndarray, "sequence position"]:
        """The answers at every position of a split."""
        if self.about == "token":
            return (tokens_before(split, self.back) == self.token).astype(np.int64)
        if self.about == "position":
            return np.broadcast_to(np.arange(split.tokens.shape[1]), split.tokens.shape)
        # A prediction's features are of what is predicted: known when that has been read.
        return np.pad(split.features[self.name], ((0, 0), (1, 0)))[:, : split.tokens.shape[1]]


def tokens_before(split: Split, back: int) -> Int[np.ndarray, "sequence position"]:
    """The token so many places before each; -1 before the start, and at padding."""
    valid: Bool[np.ndarray, "sequence position"] = split.valid.astype(bool)
    found = np.full(split.tokens.shape, _NONE)
    width = max(0, split.tokens.shape[1] - back)
    found[:, split.tokens.shape[1] - width :] = split.tokens[:, :width]
    return np.where(valid, found, _NONE)


def questions_about(
    split: Split, on: Bool[np.ndarray, "sequence position"], *, tokens: int, most: int
) -> list[Question]:
    """Questions that may tell where something is on: positions, task features, and of each of the last `tokens` tokens
    the `most` whose share where it is on differs most from that elsewhere.
    """
    valid = split.valid.astype(bool)
    found: list[Question] = []
    for back in range(tokens):
        there = tokens_before(split, back)
        ids, numbers = np.unique(there[valid], return_inverse=True)
        yes = np.bincount(numbers, weights=on[valid], minlength=len(ids))
        no = np.bincount(numbers, weights=~on[valid], minlength=len(ids))
        difference = np.abs(yes / max(yes.sum(), 1) - no / max(no.sum(), 1))
        often = ids[np.argsort(-difference, kind="stable")]
        found += [Question("token", back=back, token=int(token)) for token in often[often != _NONE][:most]]
    return [*found, Question("position"), *(Question("feature", name=name) for name in sorted(split.features))]
