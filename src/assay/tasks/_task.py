"""What a task is: sequences in named splits, each prediction of a known kind."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from assay._errors import AssayError

Role = Literal["train", "iid", "shift"]

UNSCORED = -1
"""In `Split.kinds`: no prediction is scored at this position."""


@dataclass(frozen=True)
class Kind:
    """A kind of prediction, by which results are broken down.

    `candidates` are the token ids among which the prediction (the arg max) is taken; None means the whole
    vocabulary. `determined` says whether the context fixes the right answer: where it does not (an opening bracket
    of a random type), accuracy has no meaning and is reported as skipped, while agreement with the subject remains.
    """

    name: str
    description: str
    candidates: tuple[int, ...] | None = None
    determined: bool = True


@dataclass(frozen=True)
class Feature:
    """A number known of every prediction (depth, distance), against which results of `kinds` are drawn.

    `edges` are the left edges of the bins, ascending; the last bin is open. None gives every integer its own bin.
    """

    name: str
    description: str
    kinds: tuple[str, ...]
    edges: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Split:
    """Sequences of one named distribution.

    Shapes: `tokens`, `kinds` and every array of `features` are (sequence, position); `lengths` is (sequence,).
    Sequences are padded on the right. `kinds[s, t]` is the index (in the task's kinds) of the prediction *made at*
    position t, which is of token t + 1; `UNSCORED` where none is made. `features[name][s, t]` belongs to that same
    prediction.
    """

    name: str
    role: Role
    description: str
    tokens: Int[np.ndarray, "sequence position"]
    lengths: Int[np.ndarray, " sequence"]
    kinds: Int[np.ndarray, "sequence position"]
    features: Mapping[str, Int[np.ndarray, "sequence position"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.tokens) == 0:
            raise AssayError(f"split {self.name!r} has no sequences; every split needs at least one.")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def valid(self) -> Bool[np.ndarray, "sequence position"]:
        """True at positions that hold a token, False at padding."""
        return np.arange(self.tokens.shape[1])[None, :] < self.lengths[:, None]

    def take(self, index: Int[np.ndarray, " chosen"]) -> "Split":
        """The chosen sequences, cut to the longest of them."""
        width = int(self.lengths[index].max())
        return replace(
            self,
            tokens=self.tokens[index, :width],
            lengths=self.lengths[index],
            kinds=self.kinds[index, :width],
            features={name: values[index, :width] for name, values in self.features.items()},
        )

    def first(self, count: int) -> "Split":
        """The first `count` sequences (all, if there are fewer)."""
        return self.take(np.arange(min(count, len(self))))


@runtime_checkable
class Task(Protocol):
    """A source of sequences with named splits: `train` to fit on, `iid`, and any number of shifts.

    An object with these members is a task; nothing is to be inherited.
    """

    @property
    def name(self) -> str:
        """The task's name."""
        ...

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of prediction."""
        ...

    @property
    def primary_kind(self) -> str:
        """The kind that verdicts are about, or "all" for every scored prediction."""
        ...

    @property
    def features(self) -> tuple[Feature, ...]:
        """What results are drawn against."""
        ...

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits in the order in which they are shown; the first is the train split."""
        ...

    def split(self, name: str, sequences: int) -> Split:
        """The first `sequences` sequences of a split; the same ones every time."""
        ...

    def describe(self) -> dict[str, object]:
        """The parameters that define the task, for the record; plain values only."""
        ...
