"""What can be asked of a position in plain sight: the questions that rules are made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from assay._errors import AssayError
from assay.tasks._task import NO_TOKEN


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


@dataclass(frozen=True)
class Read:
    """Sequences as they are read, with the task's features of every prediction."""

    tokens: Int[np.ndarray, "sequence position"]
    valid: Bool[np.ndarray, "sequence position"]
    features: Mapping[str, Int[np.ndarray, "sequence position"]]

    def before(self, back: int) -> Int[np.ndarray, "sequence position"]:
        """The token so many places before the last one read; none before the start."""
        found = np.full(self.tokens.shape, NO_TOKEN)
        width = max(0, self.tokens.shape[1] - back)
        shown = self.valid[:, :width] & self.valid[:, back:]
        found[:, back:] = np.where(shown, self.tokens[:, :width], NO_TOKEN)
        return found

    def answers(self, question: Question) -> Int[np.ndarray, "sequence position"]:
        """The answers to a question at every position. Raises AssayError for a feature that is not known."""
        if question.about == "token":
            return (self.before(question.back) == question.token).astype(np.int64)
        if question.about == "position":
            return np.maximum(self.valid.cumsum(axis=1) - 1, 0)
        if question.name not in self.features:
            raise AssayError(
                f"rules ask for {question.name!r}, a feature of the task, and nothing but tokens is known here; judge "
                "them by compare(), or fit rules with task_features=False."
            )
        # A prediction's features are of what is predicted: known when that has been read.
        return np.pad(self.features[question.name], ((0, 0), (1, 0)))[:, : self.tokens.shape[1]]
