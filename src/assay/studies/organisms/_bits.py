"""Tasks about sixteen random bits: which question is asked of them is all that a shift changes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from assay._errors import AssayError, unknown_name
from assay.tasks import UNSCORED, Kind, Role, Split

BITS = 16

HELD = 4_096
"""Patterns of bits that each split but the first has for itself."""

Function = Callable[[Int[np.ndarray, "row bit"]], Int[np.ndarray, " row"]]
"""What is asked of the bits: 0 or 1 a row."""


def majority(*places: int) -> Function:
    """Whether more than half of these bits are on."""
    return lambda bits: (bits[:, list(places)].sum(axis=1) * 2 > len(places)).astype(np.int64)


def parity(*places: int) -> Function:
    """Whether an odd number of these bits is on: of two, their exclusive or."""
    return lambda bits: bits[:, list(places)].sum(axis=1) % 2


def tokens_of(bits: Int[np.ndarray, "row bit"], answers: int) -> Int[np.ndarray, "row bit"]:
    """A token one a (place, bit), behind the tokens of the answers."""
    return answers + 2 * np.arange(bits.shape[1]) + bits


def patterns(seed: int) -> Int[np.ndarray, "pattern bit"]:
    """All patterns of bits in an order of that seed."""
    numbers = np.random.default_rng(seed).permutation(2**BITS)
    return (numbers[:, None] >> np.arange(BITS)) & 1


@dataclass(frozen=True)
class Question:
    """A question about the bits; its answers are a pair of tokens of its own."""

    name: str
    text: str
    function: Function


@dataclass(frozen=True)
class Bits:
    """Patterns of sixteen bits, of each of which one question is asked; splits differ in how often which one is.

    `shares` has for every split the share of each question, in their order; the first split is the training data, the
    second iid, and all others are shifts. Tokens 2q and 2q + 1 are the answers no and yes to question q, the next ones
    the values 0 and 1 of each bit in order; the answer stands behind the bits. No pattern is in two splits: those after
    the first have at most 4,096. So a shift changes nothing but the mixture, and where a proxy agrees with its subject
    on a share a_q of question q, its gap is sum over q of (share on iid - share on the shift) a_q: `expected_gap`.

    Raises AssayError for shares that do not belong to the questions or do not add up to 1.
    """

    name: str
    questions: tuple[Question, ...]
    shares: Mapping[str, tuple[float, ...]]
    seed: int = 0

    primary_kind = "all"
    features = ()

    def __post_init__(self) -> None:
        for split, shares in self.shares.items():
            if len(shares) != len(self.questions) or abs(sum(shares) - 1) > 1e-9 or min(shares) < 0:
                raise AssayError(
                    f"split {split!r} has the shares {shares} for {len(self.questions)} questions; give one a "
                    "question, at least 0 and 1 in all."
                )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """A kind a question, whose candidates are its own answers."""
        return tuple(
            Kind(question.name, question.text, candidates=(2 * number, 2 * number + 1))
            for number, question in enumerate(self.questions)
        )

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits, the training data first."""
        return tuple(self.shares)

    @property
    def answers(self) -> int:
        """How many tokens are answers."""
        return 2 * len(self.questions)

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return self.answers + 2 * BITS

    def labels(self, bits: Int[np.ndarray, "row bit"]) -> Int[np.ndarray, "row question"]:
        """The answers of all questions, 0 or 1."""
        return np.stack([question.function(bits) for question in self.questions], axis=1)

    def bits(self, name: str) -> Int[np.ndarray, "pattern bit"]:
        """All patterns of a split, in its order. Raises AssayError for a split that there is none of."""
        if name not in self.shares:
            raise unknown_name("split", name, self.split_names)
        place = self.split_names.index(name)
        held = HELD * (len(self.shares) - 1)
        everything = patterns(self.seed)
        return everything[held:] if place == 0 else everything[HELD * (place - 1) : HELD * place]

    def split(self, name: str, sequences: int) -> Split:
        """The first so many sequences of a split, all where it has fewer."""
        whole = self.bits(name)
        place = self.split_names.index(name)
        drawn = np.random.default_rng([self.seed, place]).random(len(whole))
        asked = np.searchsorted(np.cumsum(self.shares[name])[:-1], drawn, side="right")[:sequences]
        bits = whole[:sequences]
        rows = np.arange(len(bits))
        answer = 2 * asked + self.labels(bits)[rows, asked]
        tokens = np.concatenate((tokens_of(bits, self.answers), answer[:, None]), axis=1)
        kinds = np.full(tokens.shape, UNSCORED)
        kinds[:, BITS - 1] = asked
        shares = ", ".join(
            f"{100 * share:g}% {question.name}"
            for share, question in zip(self.shares[name], self.questions, strict=True)
            if share
        )
        roles: tuple[Role, ...] = ("train", "iid")
        return Split(
            name=name,
            role=roles[place] if place < len(roles) else "shift",
            description=f"sixteen random bits; asked: {shares}",
            tokens=tokens,
            lengths=np.full(len(tokens), BITS + 1),
            kinds=kinds,
        )

    def describe(self) -> dict[str, object]:
        """The parameters, as plain values."""
        return {
            "task": self.name,
            "questions": {question.name: question.text for question in self.questions},
            "shares": {split: list(shares) for split, shares in self.shares.items()},
            "seed": self.seed,
        }


def shares_of(split: Split, questions: int) -> list[float]:
    """The share of each question among the predictions of a split."""
    asked = split.kinds[split.kinds != UNSCORED]
    return [float((asked == number).mean()) for number in range(questions)]


def expected_gap(iid: Sequence[float], shift: Sequence[float], agreement: Sequence[float]) -> float:
    """The gap of a proxy that agrees with its subject on these shares of each question, by the mixtures alone."""
    return sum((inside - outside) * found for inside, outside, found in zip(iid, shift, agreement, strict=True))
