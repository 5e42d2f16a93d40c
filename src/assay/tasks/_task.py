"""What a task is: sequences in named splits, each prediction of a known kind."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from assay._errors import AssayError
from assay._given import check_fields

Role = Literal["train", "iid", "shift"]

Objective = Literal["causal", "masked", "embedding"]
"""What a model is asked: the next token, the tokens under masks, or one vector for the whole sequence."""

UNSCORED = -1
"""In `Split.kinds`: no prediction is scored at this position."""

NO_TOKEN = -1
"""In `Split.answers` and `Split.foils`: there is none."""

LABEL = 28
"""So many characters has `Split.label` at most: it heads columns and stands in sentences."""


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

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Feature:
    """A number known of every prediction (depth, distance), against which results of `kinds` are drawn.

    `kinds` are names of kinds, or "all" for every prediction. `edges` are the left edges of the bins, ascending; the
    last bin is open. None gives every integer its own bin. Where the number stands for a class of predictions (a digit,
    punctuation), `labels` name the bins, one an edge, and results are drawn class by class instead of along a line.
    """

    name: str
    description: str
    kinds: tuple[str, ...]
    edges: tuple[int, ...] | None = None
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.labels is not None and len(self.labels) != len(self.edges or ()):
            raise AssayError(
                f"Feature({self.name!r}): {len(self.labels)} labels for {len(self.edges or ())} edges; each bin needs "
                "one label."
            )


@dataclass(frozen=True)
class Split:
    """Sequences of one named distribution.

    Shapes: `tokens`, `kinds` and every array of `features` are (sequence, position); `lengths` is (sequence,).
    Sequences are padded on the right. `kinds[s, t]` is the index (in the task's kinds) of the prediction *made at*
    position t; `UNSCORED` where none is made. `features[name][s, t]` belongs to that same prediction.

    `label` are a few words for the split, at most 28 characters, which figures, tables and sentences have in place of
    its name ("deeper nesting"); None: they have the name. `description` says the same at length.

    `objective` says what the model is asked. Under "causal" the prediction at t is of token t + 1. Under "masked"
    `tokens` holds the mask token where a prediction is made, and `targets` (sequence, position) the right token there
    (of a model that tags tokens without hiding them: its tag).
    Under "embedding" the model gives one vector a sequence, which is what is judged: `kinds` is `UNSCORED` everywhere,
    and no two sequences may be equal (each would be the other's nearest neighbour). AssayError if these do not fit.

    `names` are what the vocabulary behind the tokens calls those that occur (others may be among them): a subject whose
    tokenizer calls one of them something else is refused. None where the tokens have no names. `prompt` is the text
    with which every sequence begins by intention; None where that is not known. `lost` is how many lines or files were
    passed over while the sequences were read, by why they could not be used.

    A split of pairs has `counterfactuals`, `answers` and `foils`, all or none of them. A counterfactual (sequence,
    position) is the same sequence with one thing changed: as long, and different at or before every scored position.
    `answers` (sequence, position) are the tokens that are right where a prediction is scored, and `NO_TOKEN` elsewhere;
    `foils` (sequence, position) or (sequence, position, foil) those that the counterfactual makes right, `NO_TOKEN`
    elsewhere and where there are fewer. Where several answers are right, `also_right` (sequence, position, other) are
    those besides, `NO_TOKEN` where there are fewer: accuracy counts them, logit differences are of the answer alone.
    AssayError, with the row, if these do not hold.
    """

    name: str
    role: Role
    description: str
    tokens: Int[np.ndarray, "sequence position"]
    lengths: Int[np.ndarray, " sequence"]
    kinds: Int[np.ndarray, "sequence position"]
    features: Mapping[str, Int[np.ndarray, "sequence position"]] = field(default_factory=dict)
    objective: Objective = "causal"
    targets: Int[np.ndarray, "sequence position"] | None = None
    names: Mapping[int, str] | None = None
    prompt: str | None = None
    counterfactuals: Int[np.ndarray, "sequence position"] | None = None
    answers: Int[np.ndarray, "sequence position"] | None = None
    foils: Int[np.ndarray, "sequence position *foil"] | None = None
    lost: Mapping[str, int] = field(default_factory=dict)
    also_right: Int[np.ndarray, "sequence position other"] | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.tokens) == 0:
            raise AssayError(f"split {self.name!r} has no sequences; every split needs at least one.")
        label = self.label
        if label is not None and not (label.strip() and label.isprintable() and len(label) <= LABEL):
            raise AssayError(
                f"split {self.name!r}: label={label!r} has to be a line of 1 to {LABEL} characters; or leave it out."
            )
        self._check_pairs()
        if (self.targets is not None) != (self.objective == "masked"):
            raise AssayError(f"split {self.name!r}: targets belong to the objective 'masked', and it needs them.")
        if self.objective == "embedding":
            different = {row[:length].tobytes() for row, length in zip(self.tokens, self.lengths.tolist(), strict=True)}
            if len(different) < len(self.tokens):
                raise AssayError(
                    f"split {self.name!r} has {len(self.tokens) - len(different)} sequences that occur before in it; "
                    "for embeddings every sequence must be different."
                )

    def _check_pairs(self) -> None:
        given = (self.counterfactuals, self.answers, self.foils)
        who = f"split {self.name!r}"
        if all(part is None for part in given):
            if self.also_right is not None:
                raise AssayError(f"{who}: also_right is for pairs; give counterfactuals, answers and foils, too.")
            return
        if self.counterfactuals is None or self.answers is None or self.foils is None:
            raise AssayError(f"{who}: pairs need counterfactuals, answers and foils; give all three, or none.")
        if self.objective != "causal":
            raise AssayError(f"{who}: pairs are for the objective 'causal', not {self.objective!r}.")
        shape = self.tokens.shape
        if self.counterfactuals.shape != shape or self.answers.shape != shape or self.foils.shape[:2] != shape:
            raise AssayError(
                f"{who}: counterfactuals {self.counterfactuals.shape}, answers {self.answers.shape} and foils "
                f"{self.foils.shape} have to be as the tokens, {shape} (foils may have one axis more)."
            )
        also = np.full((*shape, 0), NO_TOKEN) if self.also_right is None else self.also_right
        if also.shape[:2] != shape:
            raise AssayError(f"{who}: also_right {also.shape} has to be as the tokens, {shape}, with one axis more.")
        foils = self.foils.reshape(*shape, -1)
        scored, answers = self.kinds != UNSCORED, self.answers[..., None]
        differs = np.logical_or.accumulate((self.counterfactuals != self.tokens) & self.valid, axis=1)
        for wrong, what in (
            ((self.answers != NO_TOKEN) != scored, "has an answer where no prediction is scored, or none where one is"),
            (
                (foils != NO_TOKEN).any(axis=-1) != scored,
                "has a foil where no prediction is scored, or none where one is",
            ),
            (scored & (foils == answers).any(axis=-1), "has a foil that is the answer"),
            (~scored & (also != NO_TOKEN).any(axis=-1), "has another right answer where no prediction is scored"),
            (_shared(scored, foils, also), "has a foil that is right, too"),
            (scored & ~differs, "does not differ from its counterfactual at or before a scored position"),
        ):
            if wrong.any():
                raise AssayError(f"{who}: row {int(wrong.any(axis=1).argmax())} {what}.")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def has_pairs(self) -> bool:
        """Whether every sequence has a counterfactual."""
        return self.counterfactuals is not None

    @property
    def valid(self) -> Bool[np.ndarray, "sequence position"]:
        """True at positions that hold a token, False at padding."""
        return np.arange(self.tokens.shape[1])[None, :] < self.lengths[:, None]

    @property
    def occurring(self) -> Int[np.ndarray, " token"]:
        """The tokens that occur, ascending: of pairs both sides, with what is asked for, without padding."""
        shown = self.tokens[self.valid]
        asked = [] if self.targets is None else [self.targets[self.kinds != UNSCORED]]
        asked += [] if self.counterfactuals is None else [self.counterfactuals[self.valid]]
        of_pairs = (self.answers, self.foils, self.also_right)
        asked += [part[part != NO_TOKEN] for part in of_pairs if part is not None]
        return np.unique(np.concatenate((shown, *asked)))

    @property
    def right(self) -> Int[np.ndarray, "sequence position"]:
        """The right token of every prediction, where one is scored: the answer, the one masked, or the next token."""
        for given in (self.answers, self.targets):
            if given is not None:
                return given
        return np.roll(self.tokens, -1, axis=1)

    def take(self, index: Int[np.ndarray, " chosen"]) -> "Split":
        """The chosen sequences, cut to the longest of them."""
        width = int(self.lengths[index].max())
        optional: dict[str, Any] = {
            name: None if values is None else values[index, :width]
            for name in ("targets", "counterfactuals", "answers", "foils", "also_right")
            for values in (getattr(self, name),)
        }
        return replace(
            self,
            tokens=self.tokens[index, :width],
            lengths=self.lengths[index],
            kinds=self.kinds[index, :width],
            features={name: values[index, :width] for name, values in self.features.items()},
            **optional,
        )

    def first(self, count: int) -> "Split":
        """The first `count` sequences (all, if there are fewer)."""
        return self.take(np.arange(min(count, len(self))))


def _shared(
    scored: Bool[np.ndarray, "sequence position"],
    foils: Int[np.ndarray, "sequence position foil"],
    also: Int[np.ndarray, "sequence position other"],
) -> Bool[np.ndarray, "sequence position"]:
    """Where, of the scored positions, a foil is one of the other right answers."""
    found = np.zeros_like(scored)
    here = foils[scored][:, :, None]
    found[scored] = ((here == also[scored][:, None]) & (here != NO_TOKEN)).any(axis=(1, 2))
    return found


@runtime_checkable
class Task(Protocol):
    """A source of sequences with named splits: `train` to fit on (none, where nothing is fitted), `iid`, and shifts.

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
        """The splits in the order in which they are shown; first the train split, where there is one."""
        ...

    def split(self, name: str, sequences: int) -> Split:
        """The first `sequences` sequences of a split; the same ones every time."""
        ...

    def describe(self) -> dict[str, object]:
        """The parameters that define the task, for the record; plain values only."""
        ...
